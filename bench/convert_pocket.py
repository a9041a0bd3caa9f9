"""Cost of quantization for the pocket model: right answers of its skills and KL divergence by size, beside mlx-lm's.

The source is the model that comes with Pippin, its 8-bit weights unpacked to bfloat16. Calibration is on conversations
of the training split, figures are of held-out ones: they share no names, numbers or words.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from scripts.pocket import corpus
from server import pocket

_CALIBRATION = ("train", 16, 99)
_HELD_OUT = ("test", 16, 5)
"""Split, conversations of each skill, seed."""
_SMALLEST_BITS = 3.03
THEIRS: dict[str, tuple[str, ...]] = {
    "4 bits": ("--q-bits", "4"),
    "mixed_3_6": ("--quant-predicate", "mixed_3_6"),
    "3 bits": ("--q-bits", "3"),
    "mixed_2_6": ("--quant-predicate", "mixed_2_6"),
    "2 bits": ("--q-bits", "2"),
}
"""Conversions of mlx_lm.convert, by range, in groups of 64."""


@dataclass(frozen=True, slots=True)
class Row:
    """A conversion and what was measured of it."""

    name: str
    how: str
    num_bytes: int
    kl: float
    agreement: float
    right: str

    def __str__(self) -> str:
        cells = (
            f"{self.num_bytes / 1e6:.2f} MB",
            self.name,
            self.how,
            f"{self.kl:.4f}",
            f"{self.agreement:.1%}",
            self.right,
        )
        return f"| {' | '.join(cells)} |"


def run(work: Path, items: int, names: Sequence[str]) -> None:
    """Convert the pocket model to the sizes that mlx-lm's conversions have, and print what each loses.

    `items`: questions of each skill; 0: no skills.
    """
    source, calibration, held_out = work / "pocket-bf16", work / "calibration.jsonl", work / "held-out.jsonl"
    if not source.exists():
        _unpack(source)
    _write(calibration, *_CALIBRATION)
    _write(held_out, *_HELD_OUT)
    print("| size | at the bytes of | by | KL | same next token | right answers |", flush=True)
    print("| --- | --- | --- | --- | --- | --- |")
    # MLX's CPU backend multiplies the experts of a mixture in float32 alone: the source itself is not asked
    print(f"| {_size(source) / 1e6:.2f} MB | bfloat16 | - | 0 | 100 % | - |", flush=True)
    measured = ("--calibrate", str(calibration), "--losses", str(work / "losses.jsonl"))
    for name in names:
        if name != "3.03":
            theirs = work / name.replace(" ", "-")
            if not theirs.exists():
                _call("mlx_lm", "convert", "--hf-path", source, "--mlx-path", theirs, "-q", *THEIRS[name])
            num_bytes = _size(theirs)
            _print(name, "mlx_lm.convert", source, theirs, held_out, items)
        else:
            num_bytes = round(_SMALLEST_BITS / 8 * _num_weights(source))
        for how, options in (("--fit", ()), ("--fit --calibrate", measured)):
            out = work / f"{name.replace(' ', '-')}{'-calibrated' if options else '-fit'}"
            _call("server", "convert", source, "--fit", f"{num_bytes}B", *options, "--out", out)
            _print(name, how, source, out, held_out, items)


def _print(name: str, how: str, source: Path, out: Path, held_out: Path, items: int) -> None:
    quality = json.loads(_call("server", "compare", source, out, "--text", held_out, "--json"))
    print(Row(name, how, _size(out), quality["kl"], quality["agreement"], _right(out, items)), flush=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))


def _num_weights(folder: Path) -> int:
    return sum(array.size for array in mx.load(str(folder / "model.safetensors")).values())


def _right(folder: Path, items: int) -> str:
    """The share of right answers, over all skills."""
    if not items:
        return "-"
    found = folder / "skills.json"
    if not found.exists():
        options = ("--model", folder, "--items", items, "--context", 256, "--seed", 1, "--batch", 16, "--json", found)
        _call("scripts.pocket.evaluate", *options)
    rows = json.loads(found.read_text())["skills"]
    counted = [row for name, row in rows.items() if not name.endswith("is JSON")]  # those are counted as json_answer
    right, asked = (sum(row[key] for row in counted) for key in ("right", "items"))
    return f"{right / asked:.1%} of {asked}"


def _call(module: str, *arguments: Any) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    # on a busy machine, threads of a small product wait for one another
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{module} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _unpack(out: Path) -> None:
    """Write the pocket model in bfloat16."""
    source = pocket.folder()
    held = mx.load(str(source / "model.safetensors"))
    config = json.loads((source / "config.json").read_text())
    section = config.pop("quantization")
    del config["quantization_config"]
    weights = {}
    for name, array in held.items():
        path = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if f"{path}.scales" in held:
            scales = (held[f"{path}.scales"], held[f"{path}.biases"])
            array = mx.dequantize(array, *scales, group_size=section["group_size"], bits=section["bits"])
        weights[name] = array.astype(mx.bfloat16)
    out.mkdir(parents=True)
    mx.save_safetensors(str(out / "model.safetensors"), weights, {"format": "mlx"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out)
    (out / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))


def _write(file: Path, split: Any, count: int, seed: int) -> None:
    """Write conversations of every skill, in turn."""
    chance = random.Random(seed)
    items = [corpus.generate(skill, split, chance) for _ in range(count) for skill in corpus.SKILLS]
    lines = [
        {
            "messages": item.messages,
            **({"tools": item.tools} if item.tools else {}),
            **({} if item.enable_thinking else {"chat_template_kwargs": {"enable_thinking": False}}),
        }
        for item in items
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
