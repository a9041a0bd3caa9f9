"""Rank 0's runner and another rank's, with the mock on both sides: messages, what is held, and what a loss comes to."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.errors import EngineDead, SequenceFailed
from mlx_backend.api.interface import RankStats, SamplingParams
from mlx_backend.core.step import Chunk, NewRow, StepPlan
from mlx_backend.ranks import holdings
from mlx_backend.ranks.runner import RanksRunner
from mlx_backend.runners.mock import MockRunner
from tests.mlx_backend.ranks.test_gathering import WAIT_S, Joining, config_of, ignore

CHUNK = Chunk(prompt=1, start=0, token_ids=(1, 2, 3), num_prompt_tokens=3)
ROW = NewRow(id=2, prompt=1, ordinal=0, prompt_ids=(1, 2, 3, 4), max_num_tokens=9, sampling=SamplingParams(), key=0)
STEP = StepPlan(decodes=(2,))


class Pair:
    """Two ranks that have loaded."""

    def __init__(self, folder: Path) -> None:
        file = folder / "key"
        file.write_text("k" * 64)
        file.chmod(0o600)
        self.config = config_of(f"@{file}")
        self.runner = RanksRunner(self.config, lambda membership: MockRunner(self.config))
        self.losses: queue.Queue[EngineDead] = queue.Queue()
        self.runner.on_loss(self.losses.put)
        self.joining = Joining(self.config)
        self.runner.load(ignore)

    @property
    def num_sent(self) -> int:
        """Messages to the other rank that it has to act upon."""
        return self.runner._peers[0].num_sent

    def begin(self) -> None:
        """A row has its first token."""
        self.runner.prefill(CHUNK)
        self.runner.start(StepPlan(new_rows=(ROW,), decodes=(2,), dropped=(1,)), lambda newest: ())
        self.runner.collect()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path)
    yield found
    found.runner.close()


def until(read: Callable[[], tuple[RankStats, ...]], condition: Callable[[tuple[RankStats, ...]], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition(read()):
        assert time.monotonic() < end, read()
        time.sleep(0.001)


def test_a_step_takes_one_message_and_all_ranks_end_with_the_same_rows(pair: Pair) -> None:
    pair.begin()
    pair.runner.start(STEP, lambda newest: ())
    before = pair.num_sent
    for _ in range(3):
        pair.runner.start(STEP, lambda newest: ())
        pair.runner.collect()
    assert pair.num_sent - before == 3
    pair.runner.collect()
    pair.runner.idle()
    assert pair.num_sent - before == 5
    pair.runner.start(StepPlan(new_rows=(ROW,), decodes=(2,)), lambda newest: ())
    pair.runner.start(STEP, lambda newest: ())
    pair.runner.idle()
    before = pair.num_sent
    pair.runner.start(StepPlan(new_rows=(ROW,), decodes=(2,)), lambda newest: ())
    pair.runner.collect()
    assert pair.num_sent - before == 2, "steps that were given up count no more"
    pair.runner.close()
    assert pair.joining.code() == 0, "the other rank has made every call"


def test_ranks_are_shown_as_they_were_after_the_same_call(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "EVERY_S", 1e9)
    read = pair.runner.rank_stats
    assert pair.runner.kv_bytes() == 0
    until(read, lambda ranks: all(rank.active_bytes for rank in ranks))
    pair.begin()
    held, before = pair.runner.kv_bytes(), pair.num_sent
    assert held > 0 and all(rank.kv_bytes == 0 for rank in read()), "neither is shown before both are counted"
    monkeypatch.setattr(holdings, "EVERY_S", 0.0)
    assert pair.runner.kv_bytes() == held and pair.num_sent == before + 1
    until(read, lambda ranks: ranks[1].kv_bytes > 0)
    assert [rank.kv_bytes for rank in read()] == [held, held]
    monkeypatch.setattr(holdings, "EVERY_S", 1e9)
    pair.runner.idle()
    assert pair.runner.kv_bytes() == 0
    until(read, lambda ranks: ranks[1].kv_bytes == 0)
    assert [rank.kv_bytes for rank in read()] == [0, 0]


def test_a_rank_that_is_lost_is_said_once_and_no_call_is_made_any_more(pair: Pair) -> None:
    pair.runner._peers[0]._channel._socket.shutdown(2)
    assert "rank 1 is lost" in str(pair.losses.get(timeout=WAIT_S))
    for call in (pair.runner.idle, pair.begin):
        with pytest.raises(EngineDead, match="rank 1 is lost"):
            call()
    pair.runner.kv_bytes()
    assert pair.losses.empty()


def test_a_failure_of_rank_0_alone_ends_the_group(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(chunk: Any) -> None:
        raise SequenceFailed("a prefill failed: broken")

    monkeypatch.setattr(pair.runner._own, "prefill", failing)
    with pytest.raises(EngineDead, match="rank 0 failed, and the group with it: a prefill failed: broken"):
        pair.runner.prefill(CHUNK)
