"""Sizes as people write them, and the bytes that a machine leaves for weights."""

from __future__ import annotations

import pytest

from mlx_backend.conversion.budget import read_bytes, read_tokens, weights_budget, write_bytes
from mlx_backend.conversion.errors import ConversionError
from mlx_backend.factory import read_shape
from mlx_backend.kv_cache.plan import plan_caches
from mlx_backend.planning.memory import largest_context
from server.pocket import folder


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("412GB", 412 * 10**9),
        ("380 GiB", 380 * 2**30),
        ("1.5gb", 15 * 10**8),
        ("7e9", 7 * 10**9),
        ("100", 100),
        ("2k", 2000),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "4 IB", "4XB", "1e999GB", "4 4GB", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConversionError):
        read_bytes(text)


def test_tokens_are_read_and_sizes_written() -> None:
    assert (read_tokens("32k"), read_tokens("128K"), read_tokens(" 4096 ")) == (32768, 131072, 4096)
    for text in ("0", "k", "-1", "1.5k", "9" * 20):
        with pytest.raises(ConversionError):
            read_tokens(text)
    assert (write_bytes(2_404_000), write_bytes(412_300_000_000)) == ("2.40 MB", "412.3 GB")


@pytest.mark.mlx
def test_weights_of_the_budget_leave_the_context_that_was_asked_for() -> None:
    from dataclasses import replace

    from mlx_backend.api.interface import KVCacheConfig

    shape, caches = read_shape(str(folder()))
    plans = plan_caches(caches, KVCacheConfig())
    limits = {"num_users": 3, "reserve_bytes": 10**6}
    left = weights_budget(shape, plans, limit_bytes=10**9, context=1000, **limits)
    fitting = replace(shape, weights_bytes=left, context_length=4096)
    steps = (512,)
    found = largest_context(fitting, plans, budget_bytes=10**9, prefill_steps=steps, **limits)
    assert found is not None and 1000 <= found.context < 1300
    assert weights_budget(shape, plans, limit_bytes=10**6, context=4096, **limits) < 0
