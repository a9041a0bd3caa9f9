"""Fetch a hub model for conversion: small files and headers first, then one weight file at a time."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.conversion.entry import ConversionError, Remote, make_hollow
from server.commands.pull import Wanted, ask, explain, fetch_large

_FIRST_BYTES = 1 << 20
_MOST_HEADER_BYTES = 100_000_000
_PIECE_BYTES = 8 << 20
_TERMS = ("README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")


def fetch_config(model: str) -> Path:
    """Return the config.json of a model, fetched alone. Raises ModelLoadError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json"))
    except Exception as error:  # noqa: BLE001 - the hub's client raises whatever its HTTP library does
        raise ModelLoadError(explain(model, error)) from None


def open_remote(model: str, folder: Path) -> Remote:
    """Create a model's folder with weight files of headers only. Raises ModelLoadError, ConversionError."""
    wanted = ask(model, None)
    weights = [name for name in wanted.large if name.endswith(".safetensors")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _copy_small(model, wanted, folder, weights)
        for name in weights:
            make_hollow(folder / name, _read_head(model, name, wanted), wanted.sizes[name])
    except OSError as error:
        raise ConversionError(f"{error.filename or folder} cannot be written ({error.strerror or error})") from None
    download = folder / "download"

    def fetch(name: str) -> Path:
        return _fetch(model, name, wanted, download)

    return Remote(fetch, {"commit": wanted.commit, **wanted.digests})


def _copy_small(model: str, wanted: Wanted, folder: Path, weights: Sequence[str]) -> None:
    """Copy all files except the weights."""
    from huggingface_hub import snapshot_download

    patterns = [name for name in wanted.sizes if name not in weights]
    try:
        found = Path(snapshot_download(model, revision=wanted.commit, allow_patterns=[*patterns, *_TERMS]))
    except Exception as error:  # noqa: BLE001 - as above
        raise ModelLoadError(explain(model, error)) from None
    for path in found.rglob("*"):
        name = path.relative_to(found).as_posix()
        if path.is_dir() or name in weights:
            continue
        if name in wanted.large and _sha256(path) != wanted.digests[name]:
            raise ConversionError(f"{name} of {model} is damaged in the download cache; mend it: pippin pull {model}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def _read_head(model: str, name: str, wanted: Wanted) -> bytes:
    """Return the first bytes of a weight file, up to its tensors."""
    try:
        head = _read_first(model, name, wanted, _FIRST_BYTES)
        length = int.from_bytes(head[:8], "little")
        if length > _MOST_HEADER_BYTES:
            raise ConversionError(f"{name} of {model} is no safetensors file")
        if len(head) < 8 + length:
            head = _read_first(model, name, wanted, 8 + length)
    except (ConversionError, ModelLoadError):
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise ModelLoadError(explain(model, error)) from None
    return head[: 8 + length]


def _read_first(model: str, name: str, wanted: Wanted, number: int) -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    number = min(number, wanted.sizes[name])
    headers = {**build_hf_headers(), "Range": f"bytes=0-{number - 1}", "Accept-Encoding": "identity"}
    url = hf_hub_url(model, name, revision=wanted.commit)
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as answer:
        answer.raise_for_status()
        return b"".join(_up_to(answer, number))


def _up_to(answer: Any, number: int) -> Iterator[bytes]:
    """Yield an answer's first `number` bytes: not every server supports ranges."""
    for piece in answer.iter_bytes():
        yield piece[:number]
        number -= len(piece)
        if number <= 0:
            return


def _fetch(model: str, name: str, wanted: Wanted, folder: Path) -> Path:
    """Fetch a whole weight file, resuming an earlier download, and check its SHA-256."""
    try:
        fetch_large(model, name, wanted, folder)
    except Exception as error:  # noqa: BLE001 - as above
        raise ConversionError(f"{explain(model, error)}; the same command goes on from there") from None
    file = folder / wanted.digests[name]
    if _sha256(file) != wanted.digests[name]:
        file.unlink()
        raise ConversionError(
            f"{name} of {model} is not as its repository says, though it was just downloaded; try again"
        )
    return file


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
