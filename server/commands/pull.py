"""`pippin pull`: download a hub model into the download cache and compare it with the hub's record.

Interrupted downloads resume. Only weights, configuration, tokenizer and template files are fetched: no pickles, no
code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import LoadProgress
from mlx_backend.model.checkpoint import HUB_ID, INDEX, belonging
from server import model_files
from server.commands.progress import shown
from server.config import ConfigError
from server.model_files import Record

_POLL_S = 0.2
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """Files to fetch from a repository: size and digest of each, by name."""

    commit: str
    sizes: Mapping[str, int]
    digests: Mapping[str, str]

    @property
    def large(self) -> list[str]:
        """Files with a SHA-256 at the hub."""
        return [name for name, digest in self.digests.items() if len(digest) == 64]


def pull(
    model: str = typer.Argument(..., metavar="OWNER/MODEL", help="Hub id."),
    revision: str | None = typer.Option(None, help="Branch, tag or commit. Default: the newest."),
) -> None:
    """Download a model from the hub, or resume a download, and verify its files."""
    if not HUB_ID.fullmatch(model):
        raise ConfigError(f"{model!r} is not a hub id; use owner/model")
    try:
        folder = fetch(model, revision)
    except ModelLoadError as error:
        raise ConfigError(str(error)) from None
    print(f"{model} is in {folder}\nto serve it: pippin serve {model}")


def fetch(model: str, revision: str | None = None) -> Path:
    """Return the model's folder, complete and verified. Raises ModelLoadError."""
    wanted = ask(model, revision)
    record = Record("the hub's record", wanted.digests)
    folder = _download(model, revision, wanted)
    damaged = _compare(folder, record)
    if damaged:  # by an earlier download: the hub's client checks that a file exists, not its contents
        for each in damaged:
            each.file.resolve().unlink(missing_ok=True)
            each.file.unlink(missing_ok=True)
        damaged = _compare(_download(model, revision, wanted), record)
    if damaged:
        raise ModelLoadError(f"{damaged[0]}, by {record.basis}, although it was just downloaded; try again")
    found = model_files.find_record(folder)
    if found is not None:
        model_files.remember(folder, found)
    return folder


def ask(model: str, revision: str | None) -> Wanted:
    """Return the hub's record of the repository's files."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
        files = {each.rfilename: each for each in info.siblings or ()}
        index = Path(hf_hub_download(model, INDEX, revision=info.sha)).read_text("utf-8") if INDEX in files else None
    except Exception as error:  # the hub's client raises whatever its HTTP library does
        raise ModelLoadError(explain(model, error)) from error
    try:
        wanted = [files[name] for name in belonging(files, index)]
    except ModelLoadError as error:
        raise ModelLoadError(f"{model} {error}") from error
    return Wanted(
        str(info.sha),
        {each.rfilename: each.size or 0 for each in wanted},
        {each.rfilename: digest for each in wanted if (digest := _digest(each))},
    )


def _digest(file: Any) -> str | None:
    digest = file.blob_id if file.lfs is None else file.lfs.sha256
    return None if digest is None else str(digest)


def _download(model: str, revision: str | None, wanted: Wanted) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    def work() -> str:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda name: fetch_large(model, name, wanted, blobs), wanted.large))
        # The other files, and links to those already present.
        return str(snapshot_download(model, revision=revision, allow_patterns=list(wanted.sizes)))

    disable_progress_bars()
    blobs = Path(HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "blobs"
    total = sum(wanted.sizes.values())
    with ThreadPoolExecutor(1) as thread, shown(f"downloading {model}") as report:
        running = thread.submit(work)
        try:
            while not wait([running], _POLL_S).done:
                report(LoadProgress(done_bytes=min(total, _bytes_in(blobs)), total_bytes=total))
        except KeyboardInterrupt:
            os._exit(_interrupted(model))  # else its threads finish their files first
        try:
            folder = Path(running.result())
        except Exception as error:  # as above
            raise ModelLoadError(explain(model, error)) from error
        report(LoadProgress(done_bytes=total, total_bytes=total))
    return folder


def fetch_large(model: str, name: str, wanted: Wanted, blobs: Path) -> None:
    """Download a file into the cache, by its digest. Resumes across processes, unlike the hub's own client."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    blob, size = blobs / wanted.digests[name], wanted.sizes[name]
    if blob.exists():
        return
    blobs.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.part")
    url = hf_hub_url(model, name, revision=wanted.commit)
    with part.open("ab", buffering=0) as stream:
        if stream.tell() > size:
            stream.truncate(0)
        try:
            http_get(url, stream, resume_size=stream.tell(), headers=build_hf_headers(), expected_size=size)
        except OSError:
            if stream.tell() > size:  # not this file
                stream.truncate(0)
            raise
    part.replace(blob)


def _interrupted(model: str) -> int:
    print(f"stopped; to resume: pippin pull {model}", flush=True)
    return 130


def _bytes_in(blobs: Path) -> int:
    """Return the bytes on disk of complete and partial files."""
    found = 0
    for path in blobs.glob("*"):
        try:
            facts = path.stat()
        except OSError:  # renamed meanwhile
            continue
        found += min(facts.st_size, 512 * facts.st_blocks)
    return found


def _compare(folder: Path, record: Record) -> list[model_files.Damage]:
    with shown("comparing with the hub's record") as report:
        return model_files.compare(folder, record, report)


def explain(model: str, error: BaseException) -> str:
    """Return one line on why the model cannot be downloaded."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f"{model} is gated: request access on its page, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{model} does not exist on the hub, or is private: check the name, or run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model} has no such revision"
    if constants.HF_HUB_OFFLINE:
        return f"{model} cannot be downloaded: HF_HUB_OFFLINE is set"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{model} cannot be downloaded: {error.strerror or error} ({error.filename or 'the download cache'})"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{model} cannot be downloaded: {reason}"
