"""Which pieces the made model may answer with."""

from __future__ import annotations

from bench.checkpoint import SPECIAL_TOKENS, silent_ids


def test_only_plain_letters_are_answered() -> None:
    loud = ["file", "\u0120file", "X"]
    silent = [*SPECIAL_TOKENS, "\u0120", "\u00e3", "file\u010a", "7", "<", "a_b", "\u0120\u0120file"]
    assert silent_ids([*loud, *silent]) == list(range(len(loud), len(loud) + len(silent)))
