"""Measure the quality cost of a quantized KV cache and write it into docs/kv-cache.md, with a plot.

    python -m scripts.kv_quality [--items 100] [--full-items 20] [--texts 40] [--model FOLDER]

Perplexity and KL divergence on held-out text, and the share of right answers, skill by skill, by the questions of
`scripts.pocket.evaluate`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_model
from rich.console import Console
from tokenizers import Tokenizer as Encoder

from mlx_backend.api.interface import KVCacheConfig
from scripts.kv_quality.asked import BATCH, FULL_CONTEXT, Asked, ask
from scripts.kv_quality.expanded import expand
from scripts.kv_quality.measure import Drift, Reader, Text, read_all
from scripts.pocket import corpus
from scripts.pocket.batches import held_out
from server import pocket

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
BITS = (8, 6, 5, 4)

progress = Console(stderr=True)

LATENT = {
    "full": KVCacheConfig(),
    **{f"{bits} bits, groups of 32": KVCacheConfig(bits=bits, group_size=32) for bits in BITS},
    "8 bits, groups of 64": KVCacheConfig(bits=8, group_size=64),
    "4 bits, groups of 32, start 64": KVCacheConfig(bits=4, group_size=32, start=64),
}
EXPANDED = {
    "full": KVCacheConfig(),
    **{
        f"keys {'full' if keys is None else keys}, values {'full' if values is None else values}": KVCacheConfig(
            key_bits=keys, value_bits=values, group_size=32
        )
        for keys, values in ((8, 8), (6, 6), (5, 5), (8, 4), (4, 8), (4, 4))
    },
}
ASKED = ("full", "8 bits, groups of 64", *(f"{bits} bits, groups of 32" for bits in BITS))


def held_out_texts(folder: Path, count: int) -> list[Text]:
    """Return `count` conversations of every skill, and as many look-ups in a full context."""
    encoder = Encoder.from_file(str(folder / "tokenizer.json"))
    found: list[Text] = []
    for skill in corpus.SKILLS:
        found += held_out(encoder, skill, count, seed=5)
    return found + held_out(encoder, "recall", count, seed=6, context_tokens=3900)


def drift_table(found: Mapping[str, Drift]) -> str:
    lines = [
        "| KV cache | bytes/token | of full | perplexity | KL, nats/token | worst token's KL | same likeliest token |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in found.items():
        share = each.bytes_per_token / each.full_bytes_per_token
        cells = [f"{each.bytes_per_token:,}", f"{share:.2f}", f"{each.perplexity:.4f}", f"{each.kl:.2e}"]
        cells += [f"{each.worst_kl:.2e}", f"{each.same_top:.2%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def asked_table(found: Mapping[str, Asked]) -> str:
    rows = list(next(iter(found.values())).right)
    lines = [f"| | {' | '.join(found)} |", f"| --- |{' ---: |' * len(found)}"]
    for row in rows:
        lines.append(f"| {row} | {' | '.join(f'{each.right[row]:.1%}' for each in found.values())} |")
    count = next(iter(found.values())).num_answers
    lines.append(
        f"| word for word as full, of {count:,} | {' | '.join(f'{each.same:.1%}' for each in found.values())} |"
    )
    return "\n".join(lines)


def plot(latent: Mapping[str, Drift], expanded: Mapping[str, Drift], asked: Mapping[str, Asked], file: Path) -> None:
    """Plot KL against size, and recall and all skills against bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6))
    for found, mark, label in ((latent, "o", "latent, as served"), (expanded, "s", "keys and values expanded")):
        points = [
            (each.bytes_per_token / each.full_bytes_per_token, each.kl, n) for n, each in found.items() if each.kl
        ]
        left.scatter([x for x, _, _ in points], [y for _, y, _ in points], marker=mark, label=label)
        for x, y, name in points:
            short = name.replace(" bits", "").replace("groups of ", "g").replace("keys ", "K").replace("values ", "V")
            left.annotate(short, (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")
    left.set(yscale="log", xlabel="bytes per token, share of full precision", ylabel="KL divergence, nats per token")
    left.legend(fontsize=8)
    names = list(asked)
    for row in next(iter(asked.values())).right:
        is_recall = row.startswith("recall at")
        style = {"linewidth": 2.2, "marker": "o"} if is_recall else {"linewidth": 0.9, "alpha": 0.6}
        shares = [asked[name].right[row] for name in names]
        right.plot(range(len(names)), shares, label=row, **style)
    right.set_xticks(range(len(names)), [name.split(" ")[0] for name in names])
    right.set(xlabel="bits", ylabel="right answers", ylim=(0, 1.02))
    right.legend(fontsize=6, ncol=2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def write_into(file: Path, measured: str) -> None:
    """Put `measured` between the marks of a Markdown file."""
    text = file.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    file.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure according to the arguments, and write table and plot."""
    parser = argparse.ArgumentParser(prog="python -m scripts.kv_quality", description=__doc__)
    parser.add_argument("--model", type=Path, default=pocket.folder(), help="(default: the shipped pocket model)")
    parser.add_argument("--items", type=int, default=100, help="questions per row (default 100)")
    parser.add_argument("--full-items", type=int, default=20, help="questions in a full context (default 20)")
    parser.add_argument("--texts", type=int, default=40, help="held-out texts per skill (default 40)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of kv-cache.md (default: docs)")
    options = parser.parse_args(argv)
    model, config = load_model(options.model)
    texts = held_out_texts(options.model, options.texts)
    reader = Reader(model, config)
    latent = read_all(reader, texts, LATENT, lambda name: progress.print(f"reading: {name}", style="dim"))
    expand(model)
    expanded = read_all(reader, texts, EXPANDED, lambda name: progress.print(f"expanded: {name}", style="dim"))
    settings = {name: LATENT[name] for name in ASKED}
    asked = ask(
        options.model,
        options.items,
        options.full_items,
        settings,
        lambda name: progress.print(f"asked: {name}", style="dim"),
    )
    num_tokens = sum(sum(marks) for _, marks in texts)
    plot(latent, expanded, asked, options.docs / "kv-cache.svg")
    write_into(options.docs / "kv-cache.md", _document(latent, expanded, asked, options, num_tokens))
    raw: dict[str, Any] = {
        "latent": {name: asdict(each) for name, each in latent.items()},
        "expanded": {name: asdict(each) for name, each in expanded.items()},
        "asked": {name: asdict(each) for name, each in asked.items()},
    }
    print(json.dumps(raw, indent=1))


def _document(
    latent: Mapping[str, Drift],
    expanded: Mapping[str, Drift],
    asked: Mapping[str, Asked],
    options: argparse.Namespace,
    num_tokens: int,
) -> str:
    return f"""
Held-out text, {num_tokens:,} predicted tokens, the pocket model as it is served (latent attention):

{drift_table(latent)}

The same model with keys and values expanded, as grouped-query attention keeps them; groups of 32:

{drift_table(expanded)}

Right answers of the pocket model, {options.items} held-out questions per row ({options.full_items} of
{FULL_CONTEXT:,} tokens), greedy, {BATCH} at once, groups of 32:

{asked_table(asked)}

![KL divergence against size, and right answers against bits](kv-cache.svg)
"""


if __name__ == "__main__":
    main()
