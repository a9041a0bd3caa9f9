"""Faults that several users of one large model would meet, each beside its remedy. In process.

python -m bench.large [--only NAME,…] [--list]
"""

from __future__ import annotations

import argparse
import importlib

PARTS: dict[str, tuple[str, str, str]] = {
    "starving": (
        "large_starving",
        "print_starving",
        "TTFT of a prompt alone, and beside a slow stream",
    ),
    "leaving": ("large_groups", "print_leaving", "time, and peak of memory, when rows leave a batch"),
    "groups": ("large_groups", "print_groups", "rows of mixed lengths, padded and in groups: bytes and time"),
    "turnover": ("large_groups", "print_turnover", "what is copied when a row leaves and another joins"),
    "wiring": (
        "large_wiring",
        "print_wiring",
        "buffers in and out of a model of MLX's residency sets",
    ),
    "mla": ("large_mla", "print_tables", "attention over latents: peak and time, by the model's own code and by ours"),
    "r1": ("large_r1", "print_r1", "DeepSeek R1 on a simulated M3 Ultra: 1, 2, 4 and 8 chats beside what is planned"),
    "admission": ("large_admission", "print_admission", "default chats at once: by worst case, by expected length"),
    "chunks": ("large_chunks", "print_chunks", "sizes of chunks, waits in a chunk, and several prompts in one pass"),
    "ranks": ("large_ranks", "print_ranks", "calls that another rank makes, too: bytes and time of a message"),
    "sampling": ("large_sampling", "print_sampling", "filters over large vocabularies, by sorting and by selection"),
}
"""Module of bench/, its function, and what it shows."""


def main() -> None:
    """Print the tables of each part."""
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--list", action="store_true", help="say what the parts show")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for name in names:
        module, function, shows = PARTS[name]
        print(f"{name}: {shows}")
        if not options.list:
            getattr(importlib.import_module(f"bench.{module}"), function)()


if __name__ == "__main__":
    main()
