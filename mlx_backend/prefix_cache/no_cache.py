"""NoPrefixCache: stands in for a PrefixCache where nothing is kept."""

from __future__ import annotations

from mlx_backend.api.errors import SequenceFailed
from mlx_backend.api.interface import PrefixCacheStats
from mlx_backend.core.sequence import Prefill, Sequence
from mlx_backend.core.step import Chunk, Restore
from mlx_backend.prefix_cache.cursor import num_of_prompt
from mlx_backend.prefix_cache.outlook import Outlook


class NoPrefixCache:
    """Keeps nothing and knows nothing; counts what was computed."""

    has_news = False

    def __init__(self) -> None:
        self._num_computed = 0

    def outlook(self, prefill: Prefill) -> Outlook:
        return Outlook()

    def pieces(self, prefill: Prefill, stop: int) -> Restore | None:
        return None

    def has_all(self, prefill: Prefill, chunk: Chunk) -> bool:
        return False

    def restored(self, prefill: Prefill, chunk: Chunk) -> None:
        raise AssertionError("nothing is known, so nothing can be restored")

    def give_up(self, prefill: Prefill) -> bool:
        return False

    def refuse(self, prefill: Prefill, error: SequenceFailed) -> None: ...

    def computed(self, prefill: Prefill, chunk: Chunk) -> None:
        self._num_computed += num_of_prompt(prefill, chunk)

    def keep_given_up(self, sequence: Sequence) -> None: ...

    def change_rows(self, sequences: tuple[Sequence, ...]) -> None: ...

    def lose_rows(self) -> None: ...

    def fit(self, free_bytes: int | None) -> None: ...

    def poll(self) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...

    def stats(self) -> PrefixCacheStats:
        return PrefixCacheStats(num_computed_tokens=self._num_computed)
