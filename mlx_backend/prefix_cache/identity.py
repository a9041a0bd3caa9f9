"""Identity of a piece of KV cache: chained hashes over blocks of tokens.

A block's id covers its tokens, all tokens before it and everything else that its values depend on. Two conversations
with the same beginning therefore have the same ids, and any difference in the model gives others. No MLX.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_backend.model.weight_files import IncompleteWeights, find_weights

_ID_BYTES = 16
_SAMPLES, _SAMPLE_BYTES = 16, 4096
"""Samples read of every file of weights: two trainings of one shape differ in nearly every number."""


def fingerprint(facts: Mapping[str, Any]) -> bytes:
    """Return the digest of everything that changes the values, given as JSON values."""
    return _digest(json.dumps(facts, sort_keys=True, default=str).encode())


def root_id(of_model: bytes, salt: str, adapter: str = "") -> bytes:
    """Return the id from which chains start; it differs per salt, so that tenants share nothing, and per adapter."""
    if adapter:
        of_model = _digest(of_model + adapter.encode())
    return _digest(of_model + salt.encode("utf-8", "surrogatepass"))


def chain_id(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the id of the tokens that follow `parent`."""
    return _digest(parent + array("I", token_ids).tobytes())


def weights_digest(folder: Path) -> str:
    """Return a quick digest of the configuration and of samples of the weights; it differs for other weights."""
    digest = hashlib.blake2b(digest_size=_ID_BYTES)
    for name in ("config.json", "model.safetensors.index.json"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    try:
        paths = [folder / name for name in find_weights(folder).names]
    except (IncompleteWeights, OSError, UnicodeError):  # of a mock, for example
        paths = []
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


class Chain:
    """The ids of the full blocks of a sequence of tokens, each of `size` tokens."""

    def __init__(self, root: bytes, token_ids: Sequence[int], size: int) -> None:
        self.root, self.token_ids, self.size = root, token_ids, size

    @cached_property
    def ids(self) -> tuple[bytes, ...]:
        """Ids of the full blocks, in order."""
        ids: list[bytes] = []
        last = self.root
        for start in range(0, len(self.token_ids) - self.size + 1, self.size):
            last = chain_id(last, self.token_ids[start : start + self.size])
            ids.append(last)
        return tuple(ids)

    def before(self, block: int) -> bytes:
        """Return the id that block number `block` follows."""
        return self.ids[block - 1] if block else self.root

    def end_id(self, position: int) -> bytes:
        """Return the id of the block that ends at `position`: a full one, or a shorter one."""
        block, rest = divmod(position, self.size)
        parent = self.before(block)
        return chain_id(parent, self.token_ids[position - rest : position]) if rest else parent


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_ID_BYTES).digest()
