"""Errors of a device: which are of memory, by what MLX writes."""

from __future__ import annotations

import pytest

from mlx_backend.api.errors import OutOfMemory
from mlx_backend.runners.base import failed


@pytest.mark.parametrize(
    "text",
    [
        "[METAL] Command buffer execution failed: Insufficient Memory "
        "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "[metal::malloc] Attempting to allocate 2305843009213693952 bytes which is greater than the maximum allowed "
        "buffer size of 86586540032 bytes.",
        "[metal::malloc] Resource limit (499000) exceeded.",
        "[malloc] Unable to allocate 8192 bytes.",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
    ],
)
def test_errors_of_memory(text: str) -> None:
    found = failed("prefill", RuntimeError(text))
    assert isinstance(found, OutOfMemory)
    assert str(found) == f"the device ran out of memory in a prefill: {text}"


def test_python_can_run_out_of_memory_too() -> None:
    assert isinstance(failed("decode", MemoryError()), OutOfMemory)


@pytest.mark.parametrize(
    "text",
    [
        "[METAL] Command buffer execution failed: Caused GPU Timeout Error "
        "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
        "cudaStreamSynchronize(stream) failed: an illegal memory access was encountered",
        "[METAL] Command buffer execution failed: Invalid Resource, check the memory layout",
        "",
    ],
)
def test_other_errors_that_may_name_memory(text: str) -> None:
    found = failed("decode", RuntimeError(text))
    assert not isinstance(found, OutOfMemory)
    assert str(found) == f"a decode failed: {text or 'RuntimeError'}"
