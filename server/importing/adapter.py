"""ADAPTER of a Modelfile: the folder of a LoRA adapter, checked against the model that FROM names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.adapter_files import AdapterFiles, open_adapter
from mlx_backend.model.checkpoint import read_header
from server.importing.gguf_file import is_gguf
from server.importing.problems import CannotImport

Layers = Mapping[str, tuple[int, int]]
"""Input and output size of each linear layer, by path."""


def find(name: str, path: Path) -> AdapterFiles:
    """Open the adapter that ADAPTER names. Raises CannotImport."""
    if path.is_file():
        kind = "a GGUF file" if is_gguf(path) else "a file"
        raise CannotImport(
            f"ADAPTER names {kind}, {path}; adapters are read from the folder in which mlx-lm or PEFT saved them"
        )
    if not path.is_dir():
        raise CannotImport(f"ADAPTER names {path}, which is no folder")
    try:
        return open_adapter(name, path)
    except ModelLoadError as error:
        raise CannotImport(f"ADAPTER: {error}") from None


def check(adapter: AdapterFiles, layers: Layers) -> None:
    """Compare an adapter with the layers of its model; some may have other names. Raises CannotImport."""
    known = [path for path in adapter.factors if path in layers]
    if layers and not known:
        path = next(iter(adapter.factors))
        raise CannotImport(f"ADAPTER is for another model than FROM names: that has no layer {path}")
    for path in known:
        factors, (num_in, num_out) = adapter.factors[path], layers[path]
        if (factors.num_in, factors.num_out) != (num_in, num_out):
            raise CannotImport(
                f"ADAPTER is for another model than FROM names: {path} is {num_in} x {num_out} there and "
                f"{factors.num_in} x {factors.num_out} in the adapter"
            )


def layers_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the linear layers of a model's folder from the headers of its weights; none if they cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shapes = {
            name: header["shape"]
            for file in sorted(folder.glob("model*.safetensors"))
            for name, header in read_header(file).items()
        }
        quantization = config.get("quantization") or {}
        return {
            name.removesuffix(".weight"): (_num_in(name, shape, shapes, quantization), shape[0])
            for name, shape in shapes.items()
            if name.endswith(".weight") and len(shape) == 2
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # faults of the model are reported when it is served


def _num_in(name: str, shape: list[int], shapes: Mapping[str, Any], quantization: Mapping[str, Any]) -> int:
    path = name.removesuffix(".weight")
    if f"{path}.scales" not in shapes:
        return shape[1]
    own = quantization.get(path)
    bits = own["bits"] if isinstance(own, dict) else quantization["bits"]
    return int(shape[1] * 32 // bits)
