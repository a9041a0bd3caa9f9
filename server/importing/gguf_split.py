"""Find the GGUF files of one model and join their tables of tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.importing.gguf_file import GGUFFile, Tensor, read_header
from server.importing.problems import CannotImport

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
_MOST_PARTS = 9999


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """All files of a model; the metadata is the first file's."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """Default name of the model: the file's name without its part number."""
        found = _PART.fullmatch(self.files[0].name)
        return found[1] if found else self.files[0].stem

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def read_model(path: Path) -> GGUFModel:
    """Return the model of which a file is any part. Raises CannotImport."""
    files = parts_of(path)
    headers = [read_header(file) for file in files]
    _check_set(headers)
    tensors: dict[str, Tensor] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise CannotImport(f"{header.path} has the tensor {tensor.name!r}, which another part has, too")
            tensors[tensor.name] = tensor
    if not tensors:
        raise CannotImport(f"{path} has no tensors")
    claimed = headers[0].metadata.get("split.tensors.count", len(tensors))
    if claimed != len(tensors):
        raise CannotImport(f"{path} and its other parts have {len(tensors)} tensors, not the {claimed} that it claims")
    return GGUFModel(tuple(files), headers[0].metadata, tensors)


def parts_of(path: Path) -> list[Path]:
    """Return the files of a file's set in order, by its name; only the file itself if its name has no part number."""
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found[3])
    if not 1 <= int(found[2]) <= count <= _MOST_PARTS:
        raise CannotImport(f"{path} is no part of a set, though its name says so; rename it")
    files = [path.with_name(f"{found[1]}-{place:05}-of-{count:05}{path.suffix}") for place in range(1, count + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CannotImport(f"{path.parent} lacks {missing[0]} ({len(missing)} of {count} parts)")
    return files


def _check_set(headers: list[GGUFFile]) -> None:
    first = headers[0]
    for place, header in enumerate(headers):
        count, number = header.metadata.get("split.count", 1), header.metadata.get("split.no", 0)
        if (count or 1) != len(headers):
            raise CannotImport(f"{header.path} is one of {count} files, and {len(headers)} are here")
        if number != place:
            raise CannotImport(f"{header.path} says that it is part {number + 1} of its set; its name says {place + 1}")
        names = ("general.architecture", "split.tensors.count")
        for key in names:
            if key in header.metadata and header.metadata[key] != first.metadata.get(key):
                raise CannotImport(f"{header.path} is of another model than {first.path.name}: {key} differs")
