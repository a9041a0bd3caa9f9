"""Fixture that checks a model once per module, however many engines start; the checks have their own tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlx_backend.runners import mlx as runner_module
from mlx_backend.runners.mlx import MLXRunner

_CHECKS = ("check_batching", "check_columns", "check_groups")


@pytest.fixture(scope="module")
def probed_once() -> Iterator[None]:
    """Cache each check's result per checkpoint and KV cache."""
    known: dict[tuple[str, ...], str | None] = {}
    loading = threading.local()
    load = MLXRunner.load

    def load_and_name(runner: MLXRunner, report: Any) -> Any:
        loading.key = (runner._config.model_path, repr(runner._config.kv_cache))
        return load(runner, report)

    def once(name: str, check: Callable[..., str | None]) -> Callable[..., str | None]:
        def checked(*arguments: Any) -> str | None:
            key = (name, *loading.key)
            if key not in known:
                known[key] = check(*arguments)
            return known[key]

        return checked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MLXRunner, "load", load_and_name)
        for name in _CHECKS:
            patch.setattr(runner_module, name, once(name, getattr(runner_module, name)))
        yield
