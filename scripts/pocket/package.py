"""Put a converted model into server/pocket: its files, their checksums, and a model card from an evaluation.

Uses the shipped folder and the format of evaluate's JSON; independent of training. Imports no MLX and no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server import pocket

MAX_BYTES = 8_000_000
"""Limit of all files together."""
CHECKSUMS, CARD = "SHA256SUMS", "MODEL_CARD.md"
MODEL_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SHIPPED = (*MODEL_FILES, *TOKENIZER_FILES, CARD)

_CARD = """\
# pocket

A language model of {parameters} parameters that comes with Pippin, so that the server can be tried and measured where
nothing can be downloaded. It is of DeepSeek V3's architecture (`model_type` deepseek_v3: latent attention, a mixture of
experts with shared experts, sigmoid routing), {layers} layers of width {width}, {experts} routed experts of which
{chosen} work on a token, a vocabulary of {vocabulary} tokens and a context of {context} tokens. The weights are
{precision} and take {megabytes:.1f} MB.

## What it can do

What its training text is about, in the forms that the text has: counting letters, comparing decimals, small arithmetic,
sorting and copying lists, recalling a fact from its context, answering as JSON, calling a described tool, following a
system prompt, saying what it is. English, and some Chinese. It reasons in `<think>…</think>` first where that helps;
`enable_thinking: false` in the chat template's arguments turns that off. Asked anything else it should say that it does
not know; it has no knowledge of the world, and its answers there mean nothing.

## How often it is right

Greedy decoding, with the switch of thinking on; held-out items: in the forms of the training text, with words, names,
codes and numbers that it does not have (see scripts/pocket/README.md). An answer counts where it is right and the model
ended its turn itself. Measured in process, {batch} at once:
`python -m scripts.pocket.evaluate --items {items} --batch {batch} --seed {seed}` (fewer items where `of` says fewer).

| skill | right | of | accuracy |
| --- | ---: | ---: | ---: |
{rows}

## How it was made

From text that the project generates, with no outside data, by `make pocket`; see scripts/pocket/README.md. The weights
are under the project's own terms. `SHA256SUMS` lists the files.
"""


def package(model: Path, tokenizer: Path, evaluation: Mapping[str, Any], target: Path) -> int:
    """Fill `target` and return the shipped size in bytes. Raises ValueError if it is too large."""
    target.mkdir(parents=True, exist_ok=True)
    for folder, names in ((model, MODEL_FILES), (tokenizer, TOKENIZER_FILES)):
        for name in names:
            shutil.copyfile(folder / name, target / name)
    (target / CARD).write_text(card(target, evaluation), encoding="utf-8")
    (target / CHECKSUMS).write_text("".join(f"{digest(target / n)}  {n}\n" for n in sorted(SHIPPED)), encoding="utf-8")
    total = sum((target / name).stat().st_size for name in (*SHIPPED, CHECKSUMS))
    if total > MAX_BYTES:
        raise ValueError(f"{total} bytes in {target}; at most {MAX_BYTES} are shipped")
    return total


def digest(file: Path) -> str:
    """Return the SHA-256 in hexadecimal, as sha256sum prints it."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def card(folder: Path, evaluation: Mapping[str, Any]) -> str:
    """Return the model card of the model in a folder, as Markdown."""
    config = _config(folder)
    weights = folder / "model.safetensors"
    quantized = config.get("quantization")
    return _CARD.format(
        parameters=f"{num_parameters(weights, config) / 1e6:.1f} million",
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        experts=config["n_routed_experts"],
        chosen=config["num_experts_per_tok"],
        vocabulary=f"{config['vocab_size']:,}",
        context=f"{config['max_position_embeddings']:,}",
        precision=f"quantized to {quantized['bits']} bits" if quantized else "not quantized",
        megabytes=weights.stat().st_size / 1e6,
        items=evaluation["items"],
        seed=evaluation["seed"],
        batch=evaluation["batch"],
        rows="\n".join(_row(name, row) for name, row in evaluation["skills"].items()),
    )


def num_parameters(weights: Path, config: Mapping[str, Any]) -> int:
    """Count parameters by the safetensors header; a quantized matrix counts the weights it represents."""
    with weights.open("rb") as stream:
        header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    quantization = config.get("quantization") or {}
    total = 0
    for name, tensor in header.items():
        if name.endswith((".scales", ".biases")):
            continue
        size = math.prod(tensor["shape"])
        own = quantization.get(name.removesuffix(".weight"), quantization)
        total += size * 32 // own["bits"] if tensor["dtype"] == "U32" else size
    return total


def _row(name: str, row: Mapping[str, Any]) -> str:
    return f"| {name} | {row['right']} | {row['items']} | {row['accuracy']:.1%} |"


def _config(folder: Path) -> Mapping[str, Any]:
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """Package the files that the arguments name; print one line and return 1 if that fails."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pocket.package", description=__doc__)
    parser.add_argument("model", type=Path, help="folder that mlx_lm.convert wrote")
    parser.add_argument("tokenizer", type=Path, help="folder that scripts.pocket.tokenizer wrote")
    parser.add_argument("evaluation", type=Path, help="JSON file that scripts.pocket.evaluate wrote")
    parser.add_argument("--into", type=Path, default=pocket.folder(), help="(default: server/pocket)")
    arguments = parser.parse_args(argv)
    try:
        evaluation = json.loads(arguments.evaluation.read_text(encoding="utf-8"))
        total = package(arguments.model, arguments.tokenizer, evaluation, arguments.into)
    except (OSError, ValueError) as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.into}: {total:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
