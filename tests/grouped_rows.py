"""Batches split into groups of rows that would form one: a tiny model's padding is never worth a group."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlx_backend.kv_cache.batch import RowBatch, SingleBatch
from mlx_backend.runners.mlx import MLXRunner

in_groups = pytest.mark.parametrize("grouping", ["one group", "groups"], indirect=True)
"""Runs a test twice: with the natural number of groups, and with the maximum."""


def costly(num_tokens: int) -> int:
    """Return bytes of a row that make every token of padding significant."""
    return num_tokens << 34


@pytest.fixture
def grouping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yield the group count after each change of rows; at the end, require several if the model supports them."""
    counts: list[int] = []
    if request.param == "groups":
        settle = RowBatch._settle

        def counted(batch: RowBatch, *arguments: object) -> None:
            settle(batch, *arguments)  # type: ignore[arg-type]
            counts.append(batch.num_groups)

        def make_batch(runner: MLXRunner) -> RowBatch | SingleBatch:
            if not runner._is_batched:
                return SingleBatch(runner._make_caches)
            drafts = runner._config.speculation.max_drafts
            batch = RowBatch(runner._make_caches(), costly, runner._max_groups, runner._kinds, drafts)
            counts.append(min(runner._max_groups, 2) - 2)  # -1: this model has one group
            return batch

        monkeypatch.setattr(RowBatch, "_settle", counted)
        monkeypatch.setattr(MLXRunner, "_make_batch", make_batch)
    yield counts
    if counts and min(counts) >= 0:
        assert max(counts) > 1, "no rows were in groups of their own"
