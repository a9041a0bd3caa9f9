"""The folder of a LoRA adapter, from mlx-lm or PEFT, checked before anything heavy is imported. No MLX.

mlx-lm: `adapters.safetensors` with `PATH.lora_a` [in, rank] and `PATH.lora_b` [rank, out], times `scale`. PEFT:
`adapter_model.safetensors` with `base_model.model.PATH.lora_A.weight` [rank, in] and `lora_B` [out, rank], times alpha
/ rank, or alpha / sqrt(rank) with rank-stabilized scaling (PEFT's `LoraConfig`). Every problem is a ModelLoadError of
one line.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.checkpoint import read_header

CONFIG = "adapter_config.json"
_FILES: Mapping[Literal["mlx-lm", "peft"], str] = {
    "mlx-lm": "adapters.safetensors",
    "peft": "adapter_model.safetensors",
}
_MLX = re.compile(r"(.+)\.lora_(a|b)")
_PEFT = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
Scale = Callable[[str, int], float]
"""Returns the scale of a layer from its path and its rank."""
_MOST_CONFIG_BYTES = 1 << 20
_MOST_RANK = 1024
_FUSE = "; fuse it into the weights instead (mlx_lm.fuse)"


@dataclass(frozen=True, slots=True)
class Factors:
    """An adapter's addition to one linear layer: scale * (x a) b, with a [in, rank] and b [rank, out]."""

    a: str
    b: str
    """Names of the tensors in the file."""
    num_in: int
    num_out: int
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A complete adapter. `factors`: by the path of the layer in the model."""

    name: str
    weights: Path
    form: Literal["mlx-lm", "peft"]
    factors: Mapping[str, Factors]
    digest: str
    """Hexadecimal digest of configuration and weights, which identifies the adapter in the prefix cache."""

    @property
    def rank(self) -> int:
        """The largest of its layers' ranks."""
        return max((each.rank for each in self.factors.values()), default=0)


def open_adapter(name: str, folder: Path) -> AdapterFiles:
    """Read and check the files of the adapter called `name`. Raises ModelLoadError."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelLoadError(f"adapter {name}: {folder} has no {CONFIG}; set the folder of a LoRA adapter")
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise ValueError("it is too large")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"adapter {name}: {path} cannot be read ({error})") from error
    form: Literal["mlx-lm", "peft"] = "peft" if "peft_type" in config else "mlx-lm"
    weights = folder / _FILES[form]
    if not weights.is_file():
        pickled = folder / "adapter_model.bin"
        hint = "; save it with safe_serialization=True: pickled files are not read" if pickled.is_file() else ""
        raise ModelLoadError(f"adapter {name}: {folder} has no {weights.name}{hint}")
    try:
        shapes = {tensor: _shape(header) for tensor, header in read_header(weights).items()}
        scale = _peft_scales(config) if form == "peft" else _mlx_scale(config)
        factors = _pair(shapes, _PEFT if form == "peft" else _MLX, is_transposed=form == "peft", scale=scale)
    except ValueError as error:
        raise ModelLoadError(f"adapter {name}: {error}") from error
    return AdapterFiles(name, weights, form, factors, _digest(path, weights))


def stacked_bytes(adapters: Sequence[AdapterFiles]) -> int:
    """Return the bytes of all adapters' factors and the base model's zeros, as held: float32, ranks padded."""
    total = 0
    for path in {path for adapter in adapters for path in adapter.factors}:
        own = [adapter.factors[path] for adapter in adapters if path in adapter.factors]
        rank = max(each.rank for each in own)
        total += 4 * (len(adapters) + 1) * rank * (own[0].num_in + own[0].num_out)
    return total


def _mlx_scale(config: Mapping[str, Any]) -> Scale:
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise ValueError(f"its fine_tune_type is {str(kind)[:40]!r}; only lora is supported{_FUSE}")
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    number = _number(scale, "lora_parameters.scale")
    return lambda path, rank: number


def _peft_scales(config: Mapping[str, Any]) -> Scale:
    """Return alpha / rank, or alpha / sqrt(rank); `alpha_pattern` has other alphas by the end of a layer's path."""
    if config["peft_type"] != "LORA":
        raise ValueError(f"its peft_type is {str(config['peft_type'])[:40]!r}; only LORA is supported")
    for key, without in (("use_dora", False), ("bias", "none"), ("fan_in_fan_out", False)):
        if config.get(key, without) != without:
            raise ValueError(f"{key} is {str(config[key])[:40]!r}, which is not supported{_FUSE}")
    for key in ("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"):
        if config.get(key):
            raise ValueError(f"{key} is set, which is not supported{_FUSE}")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"alpha_pattern must be a mapping, not {str(patterns)[:40]!r}")
    for pattern in patterns:
        if re.search(r"[^\w.]", pattern):
            raise ValueError(f"alpha_pattern has {pattern[:60]!r}; name each layer by the end of its path")
    alphas = {pattern: _number(alpha, "alpha_pattern") for pattern, alpha in patterns.items()}
    common, is_stabilized = _number(config.get("lora_alpha"), "lora_alpha"), bool(config.get("use_rslora"))

    def scale(path: str, rank: int) -> float:
        found = (alpha for end, alpha in alphas.items() if path == end or path.endswith(f".{end}"))
        return next(found, common) / (math.sqrt(rank) if is_stabilized else rank)

    return scale


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} of its {CONFIG} must be a number, not {str(value)[:40]!r}")
    return float(value)


def _shape(header: Mapping[str, Any]) -> tuple[int, ...]:
    shape = header.get("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"a tensor has the shape {str(shape)[:40]}")
    return tuple(shape)


def _pair(
    shapes: Mapping[str, tuple[int, ...]], pattern: re.Pattern[str], *, is_transposed: bool, scale: Scale
) -> dict[str, Factors]:
    names: dict[str, dict[str, str]] = {}
    for name in shapes:
        found = pattern.fullmatch(name)
        if found is None:
            raise ValueError(f"its tensor {name[:80]} is not a factor of a linear layer{_FUSE}")
        names.setdefault(found[1], {})[found[2].lower()] = name
    if not names:
        raise ValueError("its file has no tensors")
    factors = {}
    for path, pair in sorted(names.items()):
        if len(pair) < 2:
            raise ValueError(f"{path} has only one of its two factors")
        a, b = shapes[pair["a"]], shapes[pair["b"]]
        if is_transposed:
            a, b = a[::-1], b[::-1]
        if len(a) != 2 or len(b) != 2:
            raise ValueError(f"{path} is not a linear layer; only linear layers are supported")
        if a[1] != b[0] or not 1 <= a[1] <= _MOST_RANK:
            raise ValueError(f"the factors of {path} are {list(a)} and {list(b)}; the rank must be 1 to {_MOST_RANK}")
        factors[path] = Factors(pair["a"], pair["b"], a[0], b[1], a[1], scale(path, a[1]))
    return factors


def _digest(*paths: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        digest.update(b"\0")
    return digest.hexdigest()
