"""NoPrefixCache: replaces a PrefixCache if nothing is cached."""

from __future__ import annotations

from mlx_backend.api.errors import SequenceFailed
from mlx_backend.api.interface import PrefixCacheStats
from mlx_backend.core.sequence import SequenceGroup, TokenSequence
from mlx_backend.core.step import Chunk, Restore
from mlx_backend.prefix_cache.prefix_match import PrefixMatch


class NoPrefixCache:
    """Prefix cache without content, which only counts computed tokens."""

    has_news = False

    def __init__(self) -> None:
        self._num_computed = 0

    def match(self, group: SequenceGroup) -> PrefixMatch:
        return PrefixMatch()

    def pieces(self, group: SequenceGroup, stop: int) -> Restore | None:
        return None

    def has_all(self, group: SequenceGroup, chunk: Chunk) -> bool:
        return False

    def restored(self, group: SequenceGroup, chunk: Chunk) -> None:
        raise AssertionError("nothing is known, so nothing can be restored")

    def give_up(self, group: SequenceGroup) -> bool:
        return False

    def refuse(self, group: SequenceGroup, error: SequenceFailed) -> None: ...

    def computed(self, group: SequenceGroup, chunk: Chunk) -> None:
        self._num_computed += group.num_new_tokens(chunk)

    def keep_given_up(self, sequence: TokenSequence) -> None: ...

    def leave(self, group: SequenceGroup) -> None: ...

    def change_rows(self, sequences: tuple[TokenSequence, ...]) -> None: ...

    def lose_rows(self) -> None: ...

    def fit(self, free_bytes: int | None) -> None: ...

    def poll(self) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...

    def stats(self) -> PrefixCacheStats:
        return PrefixCacheStats(num_computed_tokens=self._num_computed)
