"""The files of a converted folder beside its weights: copied files, a card, checksums, a summary. No MLX."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.journal import SUMMARY
from mlx_backend.conversion.shards import write_file
from mlx_backend.model.checkpoint import INDEX, is_small

CARD = "README.md"
SUMS = "SHA256SUMS"
_NOT_COPIED = frozenset(("config.json", "hf_quant_config.json", "adapter_config.json", INDEX, SUMMARY, CARD, SUMS))
_TERMS = ("license", "licence", "notice", "use_policy", "usage_policy")
_MOST_BYTES = 1 << 30
"""Largest size of a file beside the weights."""
_WORST = 5
"""Number of tensors named in the card, those with the largest errors."""
_CARD_KEYS = ("license", "license_name", "license_link", "language")


def files_beside(folder: Path) -> dict[str, Path]:
    """Return the files that are copied byte for byte, by name: tokenizer, templates, generation config, terms of use.

    Raises ConversionError for a file that is too large to be one of these.
    """
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _is_copied(path.name)}
    for name, path in _modules(folder):
        found[name] = path
    for name, path in found.items():
        if path.stat().st_size > _MOST_BYTES:
            raise ConversionError(f"{path} has more than {_MOST_BYTES >> 30} GiB; {name} is copied and held in memory")
    return found


def _is_copied(name: str) -> bool:
    return name not in _NOT_COPIED and (is_small(name) or name.lower().startswith(_TERMS))


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of sentence-transformers' modules, each in a folder of its own."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        names = [str(module["path"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError):
        return
    for name in names:
        path = folder / name / "config.json"
        if name and Path(name).name == name and name != ".." and path.is_file():
            yield f"{name}/config.json", path


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a finished conversion."""

    name: str
    source: str
    """Hub id, or the name of the source's folder."""
    source_folder: Path
    plan: Mapping[str, Any]
    """Everything that the output's bytes depend on."""
    recipe: str
    bits_per_weight: float
    tensor_bytes: int
    sizes: Mapping[str, Any]
    """Weights, bytes and formats by kind of tensor."""
    errors: Mapping[str, float]
    formats: Mapping[str, str]
    notes: Sequence[str]
    quality: Mapping[str, Any] | None = None


def summary(facts: Facts) -> bytes:
    """Return conversion.json: nothing in it depends on the time, the speed or the number of runs of a conversion."""
    document = {
        "source": facts.source,
        "recipe": facts.recipe,
        "bits_per_weight": round(facts.bits_per_weight, 4),
        "tensor_bytes": facts.tensor_bytes,
        "sizes": facts.sizes,
        "notes": list(facts.notes),
        "relative_errors": {path: round(error, 6) for path, error in sorted(facts.errors.items())},
        "relative_errors_are": "root mean square of the change over that of the weights, on a sample of rows",
        "quality": facts.quality,
        "plan": facts.plan,
    }
    return to_summary(document)


def to_summary(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


def card(facts: Facts) -> bytes:
    """Return README.md: the model's origin, how it is stored, and its measurements."""
    head = {**_terms(facts.source_folder), "library_name": "mlx", "tags": ["mlx"]}
    if "/" in facts.source:
        head["base_model"] = facts.source
    front = yaml.safe_dump(head, sort_keys=True, allow_unicode=True).rstrip()
    lines = ["---", front, "---", "", f"# {facts.name}", ""]
    lines += [
        f"Converted from {facts.source} by `pippin convert` with {facts.recipe}: "
        f"{facts.bits_per_weight:.2f} bits a weight, {facts.tensor_bytes / 1e9:,.3f} GB of weights.",
        "",
        "| tensors | weights | bytes | stored as |",
        "| --- | --- | --- | --- |",
    ]
    for kind, size in facts.sizes.items():
        formats = ", ".join(size["formats"])
        lines.append(f"| {kind} | {size['num_weights']:,} | {size['num_bytes']:,} | {formats} |")
    lines += ["", *(f"Note: {note}." for note in facts.notes)]
    if facts.errors:
        lines += [
            "",
            "Largest relative errors (root mean square, on a sample of rows):",
            "",
            "| tensor | stored as | error |",
        ]
        lines.append("| --- | --- | --- |")
        worst = sorted(facts.errors.items(), key=lambda each: (-each[1], each[0]))[:_WORST]
        lines += [f"| `{path}` | {facts.formats.get(path, '')} | {error:.4f} |" for path, error in worst]
    lines += ["", *_quality(facts.quality), ""]
    lines += [
        f"`{SUMMARY}` has the recipe and the error of every tensor, `{SUMS}` the checksums (`pippin verify FOLDER`).",
        "",
    ]
    return "\n".join(lines).encode()


def _quality(quality: Mapping[str, Any] | None) -> Iterator[str]:
    if quality is None:
        yield "The model's answers were not compared with the source's."
        return
    yield (
        f"Against the source, on {quality['num_tokens']:,} tokens of {quality['text']}: "
        f"KL divergence {quality['kl']:.5f}, "
        f"the same next token in {quality['agreement']:.1%}, perplexity {quality['perplexity']:.4f} "
        f"(source {quality['source_perplexity']:.4f})."
    )


def add_quality(out: Path, quality: Mapping[str, Any]) -> None:
    """Write measurements into the card and the summary of a folder. Raises OSError, ValueError, KeyError.

    Their checksums are removed first, so that a kill leaves no wrong one.
    """
    document = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    text = (out / CARD).read_text(encoding="utf-8")
    before = "\n".join(_quality(document["quality"]))
    texts = {
        SUMMARY: to_summary({**document, "quality": dict(quality)}),
        CARD: text.replace(before, "\n".join(_quality(quality))).encode(),
    }
    lines = (out / SUMS).read_text(encoding="utf-8").splitlines()
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name not in texts}
    write_file(out / SUMS, sums(digests))
    for name, data in texts.items():
        write_file(out / name, data)
        digests[name] = digest_of(data)
    write_file(out / SUMS, sums(digests))


def _terms(folder: Path) -> dict[str, Any]:
    """Return the terms of use that the source's card names."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")[:_MOST_BYTES]
        head = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
    except (OSError, UnicodeError, yaml.YAMLError, IndexError, ValueError, RecursionError):
        return {}
    return {key: head[key] for key in _CARD_KEYS if key in head} if isinstance(head, dict) else {}


def sums(digests: Mapping[str, str]) -> bytes:
    """Return SHA256SUMS."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def to_json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def index(weight_map: Mapping[str, str], total_bytes: int, num_weights: int) -> bytes:
    """Return model.safetensors.index.json."""
    metadata = {"total_size": total_bytes, "total_parameters": num_weights}
    return to_json({"metadata": metadata, "weight_map": dict(weight_map)})
