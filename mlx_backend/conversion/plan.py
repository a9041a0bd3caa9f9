"""A plan: how each tensor of a source is stored, the output's size to the byte, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_backend.conversion.kinds import KINDS, kind_of
from mlx_backend.conversion.recipes import Chooser
from mlx_backend.conversion.shards import Shard, Unit, lay_out
from mlx_backend.conversion.source import DTYPES, Module, Source
from mlx_backend.conversion.spec import Spec, config_section

_OTHER_SECTIONS = ("quantization", "quantization_config")


@dataclass(frozen=True, slots=True)
class Item:
    """A parameter that is written as it is, or a module's weight with its quantized tensors."""

    path: str
    kind: str
    num_weights: int
    unit: Unit
    spec: Spec | None = None
    source_spec: Spec | None = None
    """Format of the weight in the source."""
    is_kept: bool = False
    """Whether it is already quantized, and copied as it is."""

    @property
    def is_quantized_anew(self) -> bool:
        return self.spec is not None and not self.is_kept


@dataclass(frozen=True, slots=True)
class Sizes:
    """Weights and bytes of one kind of tensor, and the number of weights by format."""

    num_weights: int
    num_bytes: int
    formats: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """The output of a conversion."""

    items: tuple[Item, ...]
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    notes: tuple[str, ...]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors in memory."""
        return sum(item.unit.num_bytes for item in self.items)

    @property
    def weight_file_bytes(self) -> int:
        """Bytes of all weight files, headers included."""
        return sum(shard.size for shard in self.shards)

    @property
    def num_weights(self) -> int:
        return sum(item.num_weights for item in self.items)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / max(1, self.num_weights)

    def sizes(self) -> dict[str, Sizes]:
        """Return the sizes of each kind of tensor that the model has, in a fixed order."""
        found = {}
        for kind in KINDS:
            items = [item for item in self.items if item.kind == kind]
            formats: dict[str, int] = {}
            for item in items:
                name = "as it is" if item.spec is None else str(item.spec)
                formats[name] = formats.get(name, 0) + item.num_weights
            if items:
                numbers = (sum(item.num_weights for item in items), sum(item.unit.num_bytes for item in items))
                found[kind] = Sizes(*numbers, formats)
        return found


def build_plan(source: Source, choose: Chooser, default: Spec | None = None) -> Plan:
    """Plan the conversion of a source, each weight as `choose` decides; `default`: the format named in config.json."""
    items = tuple(_items(source, choose))
    widths = {path: module.width for path, module in source.modules.items()}
    modules = [(item.path, item.spec, widths[item.path], item.num_weights) for item in items if item.path in widths]
    return Plan(
        items=items,
        config=_config(source, config_section(modules, default)),
        shards=lay_out(item.unit for item in items),
        notes=tuple(_notes(source, items)),
    )


def _items(source: Source, choose: Chooser) -> Iterator[Item]:
    for path in source.weights:
        parent, _, name = path.rpartition(".")
        module = source.modules.get(parent)
        if module is None or name == "bias":
            yield _plain(source, path, kind_of(parent) if name == "weight" else "norms and others")
        elif name == "weight":
            yield _item(source, module, choose(module.candidate))


def _plain(source: Source, path: str, kind: str) -> Item:
    weight = source.weights[path]
    unit = Unit(path, ((path, DTYPES[weight.dtype], weight.shape),))
    return Item(path, kind, weight.num_weights, unit)


def _item(source: Source, module: Module, chosen: Spec | None) -> Item:
    weight, path = source.weights[f"{module.path}.weight"], module.path
    kept = module.spec is not None and _is_no_gain(module.spec, chosen)
    spec = module.spec if kept else chosen
    number = 1
    for size in module.shape:
        number *= size
    if spec is None or kept:
        names = [f"{path}.{name}" for name in ("weight", "scales", "biases", "global_scale")]
        tensors = [(name, source.weights[name]) for name in names if name in source.weights]
        unit = Unit(path, tuple((name, DTYPES[each.dtype], each.shape) for name, each in tensors))
    else:
        like = source.weights[f"{path}.scales"] if module.spec is not None else weight
        dtype = DTYPES[like.dtype] if like.dtype.size > 1 else "BF16"
        made = spec.tensors(module.shape, dtype, 4 if dtype == "F32" else 2)
        unit = Unit(path, tuple((f"{path}.{name}", kind, shape) for name, (kind, shape, _) in made.items()))
    return Item(path, kind_of(path), number, unit, spec, module.spec, kept)


def _is_no_gain(have: Spec, chosen: Spec | None) -> bool:
    """Return whether quantizing an already quantized weight again would only make it larger, or lose more."""
    return chosen is None or chosen == have or chosen.bits_per_weight >= have.bits_per_weight


def _config(source: Source, section: dict[str, Any] | None) -> dict[str, Any]:
    """Return the source's config.json with the output's quantization in place of the source's."""
    config = {key: value for key, value in source.config.items() if key not in _OTHER_SECTIONS}
    if isinstance(text := config.get("text_config"), dict):
        config["text_config"] = {key: value for key, value in text.items() if key not in _OTHER_SECTIONS}
    if section is not None:
        config |= {"quantization": section, "quantization_config": section}
    return config


def _notes(source: Source, items: tuple[Item, ...]) -> Iterator[str]:
    again = [item for item in items if item.source_spec is not None and item.is_quantized_anew]
    kept = [item for item in items if item.is_kept]
    if again:
        formats = ", ".join(sorted({str(item.source_spec) for item in again}))
        yield (
            f"{len(again)} weights of the source are quantized already ({formats}) and are quantized again: both "
            "losses add up; convert the original model if you can"
        )
    if kept:
        yield (
            f"{len(kept)} weights are quantized already, and copied: the format asked for has no fewer bits, or its "
            "groups do not divide them"
        )
    if source.checkpoint is not None:
        yield from source.checkpoint.notes
