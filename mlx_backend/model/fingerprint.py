"""Fingerprints of a model's files, to compare the models of two machines within a second. No MLX.

The fingerprint of a weight file covers its size, its header, and samples of its data. A file that was cut, converted
otherwise or fetched from another revision differs; `pippin verify` finds damage to single bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from mlx_backend.model.checkpoint import Checkpoint

_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096
CONFIG = "config.json"


def fingerprints(checkpoint: Checkpoint) -> dict[str, str]:
    """Return a digest for config.json and for each weight file, by name. Raises OSError."""
    config = json.dumps(checkpoint.config, sort_keys=True).encode()
    found = {CONFIG: hashlib.sha256(config).hexdigest()}
    return found | {file.name: _sampled(file) for file in checkpoint.weight_files}


def difference(own: Mapping[str, str], expected: Mapping[str, str]) -> str | None:
    """Return the first file, by name, that differs from the expected ones, in words; None if all are equal."""
    for name in sorted(own.keys() | expected.keys()):
        if name not in own:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not among rank 0's files"
        if own[name] != expected[name]:
            return f"{name} differs from rank 0's"
    return None


def _sampled(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(b"%d\0" % size)
    with file.open("rb") as stream:
        length = stream.read(8)
        digest.update(length)
        digest.update(stream.read(int.from_bytes(length, "little")))  # the header, which `open_checkpoint` has checked
        start = stream.tell()
        for place in range(_NUM_SAMPLES):
            stream.seek(start + (max(0, size - start - _SAMPLE_BYTES) * place) // (_NUM_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
