"""A conversion: from an opened source and its plan to a model folder. Streams, and resumes where a kill ended it.

Weight files come first, each named once it is whole; config.json, which makes a folder a model, comes last.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_backend.api.interface import LoadProgress
from mlx_backend.conversion import folder as files
from mlx_backend.conversion.budget import write_bytes
from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.journal import (
    FOLDER,
    SUMMARY,
    Done,
    Journal,
    check_free,
    finished_plan,
    is_begun,
    remove_parts,
)
from mlx_backend.conversion.plan import Item, Plan
from mlx_backend.conversion.quantizing import Quantizer, alone, nearest, write_item
from mlx_backend.conversion.shards import PartFile, Shard, write_file
from mlx_backend.conversion.source import DTYPES, Source
from mlx_backend.model.checkpoint import INDEX
from mlx_backend.model.fingerprint import fingerprints

Report = Callable[[LoadProgress], None]
_CACHE_BYTES = 256 << 20
"""Freed buffers that MLX keeps during a conversion."""
_SPARE_BYTES = 64 << 20
"""Most bytes of the folder's other files beside the weight files, except those that are copied."""


@dataclass(frozen=True, slots=True)
class Job:
    """A source to convert, and the folder that it becomes."""

    source: Source
    plan: Plan
    out: Path
    origin: str
    """The source as users name it: a hub id, or its folder's name."""
    recipe: str
    """Description of how the formats were chosen."""
    quantize: Quantizer = field(default_factory=lambda: alone(nearest))
    method: str = "range"
    """Description of how codes and scales are chosen; it differs between methods."""


@dataclass(frozen=True, slots=True)
class Converted:
    """Outcome: whether there was anything left to do, and the bytes of the weight files."""

    is_new: bool
    weight_file_bytes: int
    resumed_files: int = 0


def convert(job: Job, report: Report = lambda _: None) -> Converted:
    """Write the folder of a job. Raises ConversionError.

    Uses up the source. A folder that already holds this conversion is left as it is.
    """
    identity = _identity(job)
    try:
        beside = files.files_beside(job.source.folder)
        if finished_plan(job.out) == identity and not is_begun(job.out):
            shutil.rmtree(job.out / FOLDER, ignore_errors=True)
            return Converted(False, job.plan.weight_file_bytes)
        check_free(job.out)
        _check_room(job, beside)
        job.out.mkdir(parents=True, exist_ok=True)
        journal = Journal(job.out, identity)
    except OSError as error:
        raise _failed(job.out, error) from None
    try:
        before = len(journal.done)
        remove_parts(job.out)
        _write_weights(job, journal, report)
        _write_rest(job, journal, beside, identity)
        journal.remove()
    except OSError as error:
        raise _failed(job.out, error) from None
    finally:
        journal.close()
    return Converted(True, job.plan.weight_file_bytes, before)


def _identity(job: Job) -> dict[str, Any]:
    """Return everything that the bytes of the output depend on."""
    modules = job.source.modules
    folder = job.source.folder.resolve()
    return {
        "source": job.origin,
        "commit": folder.name if folder.parent.name == "snapshots" else None,  # of the hub's download cache
        "files": fingerprints(job.source.files) if job.source.digests is None else dict(job.source.digests),
        "recipe": job.recipe,
        "scales": job.method,
        "dtype": None if job.source.dtype is None else DTYPES[job.source.dtype],
        "formats": {
            item.path: {**item.spec.to_config(), **({"copied": True} if item.is_kept else {})}
            for item in job.plan.items
            if item.spec is not None and item.path in modules
        },
        "weight_files": {shard.name: shard.size for shard in job.plan.shards},
        "device": str(mx.default_device()),
        "versions": {name: _version(name) for name in ("pippin", "mlx", "mlx-lm")},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _check_room(job: Job, beside: Mapping[str, Path]) -> None:
    """Raise ConversionError if the disk has no room for what is still to be written."""
    there = sum(_size(job.out / shard.name) for shard in job.plan.shards)
    wanted = job.plan.weight_file_bytes - there + sum(_size(path) for path in beside.values()) + _SPARE_BYTES
    parent = next(path for path in (job.out, *job.out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(parent).free
    if free < wanted:
        raise ConversionError(
            f"{job.out} needs {write_bytes(wanted)} and its disk has {write_bytes(free)} free; make room, or choose "
            "another --out or fewer bits"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _failed(out: Path, error: OSError) -> ConversionError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConversionError(
            f"the disk of {out} is full; make room and run the same command again: it goes on from there"
        )
    return ConversionError(
        f"{error.filename or out} cannot be written ({error.strerror or error}); run the same command again"
    )


def _write_weights(job: Job, journal: Journal, report: Report) -> None:
    total = job.plan.tensor_bytes
    items = {item.unit.key: item for item in job.plan.items}
    done = 0
    before = mx.set_cache_limit(_CACHE_BYTES)
    try:
        for shard in job.plan.shards:
            report(LoadProgress(done_bytes=done, total_bytes=total))
            if shard.name in journal.done:
                for key in shard.units:
                    _skip(job.source, items[key])
            else:

                def tell(more: int, at: int = done) -> None:
                    report(LoadProgress(done_bytes=at + more, total_bytes=total))

                journal.add(shard.name, _write_shard(job, shard, tell))
            done += sum(items[key].unit.num_bytes for key in shard.units)
    finally:
        mx.set_cache_limit(before)
    report(LoadProgress(done_bytes=total, total_bytes=total))


def _skip(source: Source, item: Item) -> None:
    for name in _read_by(source, item):
        source.take(name)
    source.release(_read_by(source, item))


def _read_by(source: Source, item: Item) -> list[str]:
    """Return the source's weights that an item is made of."""
    names = (item.path, *(f"{item.path}.{part}" for part in ("weight", "scales", "biases", "global_scale")))
    return [name for name in names if name in source.weights]


def _write_shard(job: Job, shard: Shard, report: Callable[[int], None]) -> Done:
    items = {item.unit.key: item for item in job.plan.items}
    file, errors, done = PartFile(job.out, shard), {}, 0
    try:
        for key in shard.units:
            read = _read_by(job.source, items[key])
            job.source.require(read)
            error = write_item(job.source, items[key], file, job.quantize)
            if error is not None:
                errors[key] = error
            job.source.release(read)
            done += items[key].unit.num_bytes
            report(done)
        digest = file.finish()
    finally:
        file.close()
    return Done(shard.size, digest, errors)


def _write_rest(job: Job, journal: Journal, beside: Mapping[str, Path], identity: Mapping[str, Any]) -> None:
    digests = {name: done.sha256 for name, done in journal.done.items()}
    errors = {path: error for done in journal.done.values() for path, error in done.errors.items()}
    for name, path in beside.items():
        data = path.read_bytes()
        (job.out / name).parent.mkdir(exist_ok=True)
        write_file(job.out / name, data)
        digests[name] = files.digest_of(data)
    facts = _facts(job, identity, errors)
    weight_map = {name: shard.name for shard in job.plan.shards for name in shard.tensors}
    texts = {
        SUMMARY: files.summary(facts),
        files.CARD: files.card(facts),
        INDEX: files.index(weight_map, job.plan.tensor_bytes, job.plan.num_weights),
        "config.json": files.to_json(job.plan.config),
    }
    digests |= {name: files.digest_of(data) for name, data in texts.items()}
    config = texts.pop("config.json")
    for name, data in {**texts, files.SUMS: files.sums(digests)}.items():
        write_file(job.out / name, data)
    write_file(job.out / "config.json", config)


def _facts(job: Job, identity: Mapping[str, Any], errors: Mapping[str, float]) -> files.Facts:
    sizes = {
        kind: {"num_weights": size.num_weights, "num_bytes": size.num_bytes, "formats": dict(size.formats)}
        for kind, size in job.plan.sizes().items()
    }
    return files.Facts(
        name=job.out.resolve().name,
        source=job.origin,
        source_folder=job.source.folder,
        plan=identity,
        recipe=job.recipe,
        bits_per_weight=job.plan.bits_per_weight,
        tensor_bytes=job.plan.tensor_bytes,
        sizes=sizes,
        errors=errors,
        formats={item.path: str(item.spec) for item in job.plan.items if item.spec is not None},
        notes=job.plan.notes,
    )
