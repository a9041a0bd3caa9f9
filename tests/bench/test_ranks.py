"""What the measurements of ranks say of trials: hangs, orphans and growth are not overlooked. No server."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import pytest

from bench import ranks_ends, ranks_soak


def trial(told_s: float | None = 0.1, ended_s: float | None = 0.2, left: int = 0) -> dict[str, Any]:
    is_over = told_s is not None and ended_s is not None
    return {"told_s": told_s, "ended_s": ended_s, "errors": Counter(), "code": 1, "left": left, "is_over": is_over}


def test_a_hang_is_told_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trials = iter([trial(), trial(0.3), trial(None, None, left=3)])
    monkeypatch.setattr(ranks_ends, "_try", lambda name, model, joins: next(trials))
    _, is_good = ranks_ends.run(argparse.Namespace(events="cut", times=3, joins=False, model=None))
    assert not is_good
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == ("| the connection is cut | 3 | 0.20, at most 0.30; 1 HANG | 0.20, at most 0.20; 1 HANG | 1 | 3 |")


def test_trials_that_end_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_ends, "_try", lambda name, model, joins: trial())
    found, is_good = ranks_ends.run(argparse.Namespace(events="cut,kill-leader", times=2, joins=True, model=None))
    assert is_good
    assert {name: len(trials) for name, trials in found.items()} == {"cut": 2, "kill-leader": 2}


@pytest.mark.parametrize(("last", "is_flat"), [(101.0, True), (90.0, True), (120.0, False)])
def test_memory_that_grows_after_it_was_warm_is_no_flat_one(last: float, is_flat: bool) -> None:
    cold = [{"rank 1 RSS": 10.0}] * 10
    warm = [{"rank 1 RSS": 100.0}] * 20 + [{"rank 1 RSS": last}] * 20
    assert ranks_soak._print_growth(cold + warm) == is_flat
