"""Write a training checkpoint as a Hugging Face folder, which mlx-lm's own converter turns into MLX weights.

python -m scripts.pocket.export WORK_DIR OUT_DIR
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from scripts.pocket.model import PocketConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export(work: Path, out: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files of the checkpoint in `work`."""
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    weights = {name: tensor.contiguous() for name, tensor in {**state["model"], **state["balance"]}.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(PocketConfig().to_json(), indent=1) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copy(work / name, out / name)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
