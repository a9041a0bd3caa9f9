"""A model over two ranks on loopback: its cost beside one process, its memory, its shutdown, its endurance.

python -m bench.ranks [--only overhead,memory,ends,soak] [--times 5] [--minutes 5] [--events cut,…] [--joins]
[--model FOLDER] [--json FILE]

`overhead`: messages and microseconds of a step, and tokens per second, beside one process. `memory`: planned and held
bytes of every rank. `ends`: a rank is killed, stopped, cut off or fails, several times each: seconds until every client
has its error and until every process has ended. `soak`: mixed load with clients that leave, and memory of both ranks.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from bench import ranks_ends

PARTS = {
    "overhead": "bench.ranks_overhead",
    "memory": "bench.ranks_memory",
    "ends": "bench.ranks_ends",
    "soak": "bench.ranks_soak",
}


def main() -> None:
    """Print the tables of each part; exit with 1 if something hangs, is left behind, or grows."""
    parser = argparse.ArgumentParser(prog="python -m bench.ranks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--times", type=int, default=5, help="how often each event of `ends` is tried")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long the soak is")
    parser.add_argument("--events", default=",".join(ranks_ends.EVENTS), help="events of `ends`, separated by commas")
    parser.add_argument("--model", help="folder of the model of `ends`; none: the shipped one")
    parser.add_argument("--joins", action="store_true", help="`ends` by `pippin join`, not by processes of the server")
    parser.add_argument("--json", type=Path, help="write every figure to this file, too")
    options = parser.parse_args()
    names, events = options.only.split(","), options.events.split(",")
    for kind, given, known in (("part", names, set(PARTS)), ("event", events, set(ranks_ends.EVENTS))):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"no such {kind}: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    found: dict[str, object] = {}
    is_good = True
    for name in names:
        print(f"\n{name}", flush=True)
        found[name], fine = importlib.import_module(PARTS[name]).run(options)
        is_good = is_good and fine
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1))
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
