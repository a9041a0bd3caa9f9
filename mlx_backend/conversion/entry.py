"""Entry point of conversions, for commands. MLX is imported late, so that a command's help needs none of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import KVCacheConfig, LoadProgress
from mlx_backend.conversion import budget, journal, notes, recipes
from mlx_backend.conversion.allocation import allocate
from mlx_backend.conversion.errors import ConversionError as ConversionError
from mlx_backend.conversion.losses import LossFile
from mlx_backend.conversion.measured import Quality as Quality
from mlx_backend.conversion.measured import Sample as Sample
from mlx_backend.conversion.measured import cut as cut
from mlx_backend.conversion.recipe_writing import to_document
from mlx_backend.conversion.remote import Fetch, RemoteFiles
from mlx_backend.conversion.remote import make_hollow as make_hollow
from mlx_backend.conversion.spec import Spec, read_spec
from mlx_backend.kv_cache.plan import CacheShape, plan_caches
from mlx_backend.model.fingerprint import fingerprints
from mlx_backend.planning.machines import this_machine
from mlx_backend.planning.memory import ModelShape

if TYPE_CHECKING:
    from mlx_backend.conversion.calibrated import Calibrated
    from mlx_backend.conversion.convert import Converted
    from mlx_backend.conversion.plan import Plan, Sizes
    from mlx_backend.conversion.source import Source

Scales = Literal["range", "search", "calibration"]
Report = Callable[[LoadProgress], None]
_TRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Choice of formats: the same for all weights, by a recipe, or to fit a number of bytes."""

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    recipe: str | None = None
    fit_bytes: int | None = None
    """Bytes for the weights."""
    scales: Scales | None = None
    """None: by calibration if there are samples; by range if all weights are stored alike, as mlx-lm does it; otherwise
    by search."""
    dtype: str | None = None
    calibration: tuple[Sample, ...] = ()
    """Samples on which a format's loss is measured; codes are chosen by the inputs that weights have on them."""
    losses: Path | None = None
    """File to keep measured losses in, for other sizes."""


@dataclass(slots=True)
class Prepared:
    """A conversion that is planned to the byte, and that has not begun."""

    origin: str
    recipe: str
    scales: Scales
    plan: Plan
    _source: Source
    _calibrated: Calibrated | None = None

    @property
    def sizes(self) -> Mapping[str, Sizes]:
        return self.plan.sizes()

    def read_shape(self) -> tuple[ModelShape, tuple[CacheShape, ...]]:
        """Return the sizes that memory and speed of the converted model depend on. Raises ConversionError."""
        shape, caches = _read_shape(self.plan.config)
        return replace(shape, weights_bytes=self.plan.tensor_bytes), caches

    def formats(self) -> dict[str, str]:
        """Return the format of each weight that is quantized or can be, by path."""
        modules = self._source.modules
        return {item.path: str(item.spec or "as it is") for item in self.plan.items if item.path in modules}

    def to_recipe(self) -> dict[str, Any]:
        """Return a recipe that chooses the same formats, as a document."""
        specs = {item.path: item.spec for item in self.plan.items if item.path in self._source.modules}
        return to_document(specs, f"{self.origin}, {self.recipe}: {self.plan.bits_per_weight:.2f} bits a weight.")

    def run(self, out: Path, report: Report) -> Converted:
        """Write the model into a folder, resuming where an earlier try stopped. Uses up the source.

        Raises ConversionError.
        """
        from mlx_backend.conversion.convert import Job, convert
        from mlx_backend.conversion.quantizing import Quantizer, alone, nearest
        from mlx_backend.conversion.search import searched

        quantize: Quantizer
        if self._calibrated is not None:
            quantize, method = self._calibrated.quantize, f"calibration {self._calibrated.digest}"
        else:
            quantize, method = alone(searched if self.scales == "search" else nearest), self.scales
        return convert(Job(self._source, self.plan, out, self.origin, self.recipe, quantize, method), report)


@dataclass(frozen=True, slots=True)
class Remote:
    """Weight files of which the source's folder has only the headers (`make_hollow`), and how to fetch one."""

    fetch: Fetch
    digests: Mapping[str, str]
    """Identity of the source's files."""


def prepare(
    folder: Path, origin: str, choice: Choice, report: Report = lambda _: None, remote: Remote | None = None
) -> Prepared:
    """Plan the conversion of the model in a folder, or of a config.json alone; reads no weights except samples.

    Raises ConversionError.
    """
    source_of = _opener(folder, choice.dtype, remote)
    calibrated = _calibrate(folder, choice)
    if choice.recipe is not None:
        recipe = recipes.find_recipe(choice.recipe)
        source = source_of()
        chooser, default = recipe.chooser(source.num_layers), None
        name = f"the recipe {recipe.name}"
    elif choice.fit_bytes is not None:
        source, default = source_of(), None
        chooser = _fitting(source, source_of, choice, calibrated, report)
        measured = _basis(source, choice)
        name = f"formats that fit {choice.fit_bytes:,} bytes, by {measured}"
    else:
        default = read_spec(choice.bits, choice.group_size, choice.mode)
        source, chooser = source_of(), recipes.plain(default)
        name = "weights as they are" if default is None else str(default)
    is_plain = choice.recipe is None and choice.fit_bytes is None
    plan = _build_plan(source, chooser, default)
    plan = replace(plan, notes=(*plan.notes, *_notes(source, plan, choice, default)))
    scales = "calibration" if calibrated else choice.scales or ("range" if is_plain else "search")
    return Prepared(origin, name, scales, plan, source, calibrated)


def _notes(source: Source, plan: Plan, choice: Choice, default: Spec | None) -> Iterator[str]:
    """Yield notes on the formats that were chosen."""
    modules = source.modules
    if default is not None:
        whole = (module.candidate for module in modules.values() if module.spec is None)
        yield from notes.kept_by_plain(whole, default)
    if choice.fit_bytes is not None and not choice.calibration:
        yield from notes.few_bits({item.path: item.spec for item in plan.items if item.is_quantized_anew})


def _calibrate(folder: Path, choice: Choice) -> Calibrated | None:
    if not choice.calibration or folder.is_file():
        return None
    from mlx_backend.conversion.calibrated import Calibrated

    return Calibrated(folder, choice.calibration)


def compare(source: Path, other: Path, samples: Sequence[Sample], report: Report) -> Quality:
    """Compare the model in `other` with that in `source` on samples. Raises ConversionError."""
    try:
        from mlx_backend.conversion import quality
    except ImportError as error:
        raise ConversionError(f"a comparison needs mlx and mlx-lm ({error}); install them") from None
    machine = this_machine()
    return quality.compare(source, other, samples, machine.memory_bytes if machine else 1 << 33, report)


def add_quality(source: Path, out: Path, samples: Sequence[Sample], text: str, report: Report) -> Quality:
    """Compare a converted folder with its source, and write the result into its card. Raises ConversionError."""
    from mlx_backend.conversion import folder

    quality = compare(source, out, samples, report)
    try:
        folder.add_quality(out, {**quality.to_document(), "text": text})
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(f"{out}: its card cannot be written ({error})") from None
    return quality


def machine_budget(folder: Path, *, limit_bytes: int, context: int | None, num_users: int, reserve_bytes: int) -> int:
    """Return the bytes that a machine leaves for weights, beside `num_users` contexts of `context` tokens.

    `context`: None for the whole context of the model. Raises ConversionError if nothing is left.
    """
    from mlx_backend.conversion.source import read_config

    file = folder if folder.is_file() else folder / "config.json"
    config = {key: value for key, value in read_config(file).items() if "quantization" not in key}
    shape, caches = _read_shape(config)
    longest = min(context or shape.context_length, shape.context_length)
    left = budget.weights_budget(
        shape,
        plan_caches(caches, KVCacheConfig()),
        limit_bytes=limit_bytes,
        context=longest,
        num_users=num_users,
        reserve_bytes=reserve_bytes,
    )
    if left <= 0:
        users = "1 user" if num_users == 1 else f"{num_users} users"
        raise ConversionError(
            f"{longest:,} tokens for {users} take {budget.write_bytes(limit_bytes - left)} without any weights, and "
            f"{budget.write_bytes(limit_bytes)} are there; choose less --context or fewer --users"
        )
    return left


def find_recipes() -> list[recipes.Recipe]:
    """Return the recipes that come with Pippin."""
    return [recipes.find_recipe(name) for name in recipes.shipped()]


check_free = journal.check_free
read_bytes = budget.read_bytes
read_tokens = budget.read_tokens
write_bytes = budget.write_bytes


def _opener(folder: Path, dtype: str | None, remote: Remote | None) -> Callable[[], Source]:
    try:
        from mlx_backend.conversion.source import from_config, open_source, read_config
    except ImportError as error:
        raise ConversionError(f"a conversion needs mlx and mlx-lm ({error}); install them") from None
    if folder.is_file():
        return lambda: from_config(read_config(folder), dtype)
    if remote is None:
        return lambda: open_source(folder, dtype)

    def opened() -> Source:
        source = open_source(folder, dtype, RemoteFiles(folder, remote.fetch))
        source.digests = remote.digests
        return source

    return opened


def _basis(source: Source, choice: Choice) -> str:
    if _is_elsewhere(source):
        return "errors of typical weights, since these are not here"
    return "KL divergence, measured one weight at a time" if choice.calibration else "errors of the weights"


def _build_plan(source: Source, chooser: recipes.Chooser, default: Spec | None) -> Plan:
    from mlx_backend.conversion.plan import build_plan

    return build_plan(source, chooser, default)


def _is_elsewhere(source: Source) -> bool:
    """Return whether there are no weights to measure."""
    return source.checkpoint is None or source.remote is not None


def _fitting(
    source: Source,
    source_of: Callable[[], Source],
    choice: Choice,
    calibrated: Calibrated | None,
    report: Report,
) -> recipes.Chooser:
    """Choose the formats with the least loss that fit. Raises ConversionError."""
    from mlx_backend.conversion.sensitivity import measured_options, read_sizes, sampled_options, typical_options

    fit_bytes = choice.fit_bytes or 0
    whole = _build_plan(source, recipes.plain(None), None)
    if whole.weight_file_bytes <= fit_bytes:
        return recipes.plain(None)
    sizes = read_sizes(source, is_measured=bool(choice.calibration))
    headers = whole.weight_file_bytes - whole.tensor_bytes
    if sizes.least_bytes + headers > fit_bytes:
        least, given = budget.write_bytes(sizes.least_bytes + headers), budget.write_bytes(fit_bytes)
        raise ConversionError(f"{given} is below the smallest sensible size of this model, {least}")
    if _is_elsewhere(source):
        options = typical_options(source, sizes)
    elif calibrated is not None:
        identity = {"files": fingerprints(source.files), "calibration": calibrated.digest}
        options = measured_options(source, calibrated, sizes, report, LossFile(choice.losses, identity))
    else:
        options = sampled_options(source_of(), sizes, report)

    def chosen(headers: int) -> recipes.Chooser:
        found = allocate(options, max(fit_bytes - headers, sizes.least_bytes) - sizes.fixed_bytes)
        return recipes.assigned({path: option.spec for path, option in found.items()})

    chooser = chosen(headers)
    for _ in range(_TRIES):  # headers hardly depend on the formats; the exact size is known once there is a plan
        plan = _build_plan(source, chooser, None)
        if plan.weight_file_bytes <= fit_bytes:
            break
        headers += plan.weight_file_bytes - fit_bytes
        chooser = chosen(headers)
    return chooser


def _read_shape(config: Mapping[str, Any]) -> tuple[ModelShape, tuple[CacheShape, ...]]:
    from mlx_backend.model import skeleton

    try:
        found = skeleton.from_config(config)
    except ModelLoadError as error:
        raise ConversionError(str(error)) from None
    return found.shape, found.caches
