"""What the command line refuses, before anything is started."""

from __future__ import annotations

import pytest
import typer

from bench.__main__ import _chosen


def test_workloads_run_in_their_own_order() -> None:
    assert _chosen("prefix, single") == ["single", "prefix"]


def test_an_unknown_workload_is_named() -> None:
    with pytest.raises(typer.BadParameter, match="no workload fast; there are single, "):
        _chosen("single,fast")
