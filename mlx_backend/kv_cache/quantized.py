"""Quantized KV caches of one sequence, replacing mlx-lm's KVCache during prefill.

QuantizedKV holds every column alike; StartKV holds its first columns in full precision.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from mlx_backend.kv_cache.allocation import allocated
from mlx_backend.kv_cache.codec import FULL, Codec, Part, with_head


class QuantizedKV:
    """Keys and values [1, heads, tokens, …], each in the arrays of its codec. `limit`: the most columns possible."""

    def __init__(self, keys: Codec, values: Codec, limit: int | None = None) -> None:
        self.codecs = (keys, values)
        self._limit = limit
        self.offset = 0
        self.arrays: list[mx.array] = []

    # ---- called by the model ----

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Part, Part]:
        """Append columns [1, heads, new, dim]; return those that the new ones attend to."""
        return self.fetch(self.append(keys, values), keys.shape[2])

    def append(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """Write columns; return the arrays of those that they attend to."""
        new = [array for codec, part in zip(self.codecs, (keys, values), strict=True) for array in codec.encode(part)]
        columns = self._extend(new, keys.shape[2])
        self.offset += keys.shape[2]
        return columns

    def fetch(self, columns: list[mx.array], num_new: int) -> tuple[Part, Part]:
        """Return (keys, values) as a model gets them in a pass over `num_new` tokens."""
        num_keys = self.codecs[0].num_arrays
        return self.codecs[0].fetch(columns[:num_keys], num_new), self.codecs[1].fetch(columns[num_keys:], num_new)

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Make the mask that mlx-lm's caches of the same kind make."""
        return mlx_lm_cache.create_attention_mask(num_tokens, self.offset, return_array, window_size)

    def _extend(self, new: list[mx.array], num_new: int) -> list[mx.array]:
        end = self.offset + num_new
        if not self.arrays or self.arrays[0].shape[2] < end:
            self._grow(new, allocated(end) if self._limit is None else min(allocated(end), self._limit))
        for array, columns in zip(self.arrays, new, strict=True):
            array[:, :, self.offset : end] = columns
        return [array[:, :, :end] for array in self.arrays]

    def _grow(self, like: list[mx.array], num_columns: int) -> None:
        grown = []
        for place, columns in enumerate(like):
            array = mx.zeros((*columns.shape[:2], num_columns, columns.shape[3]), dtype=columns.dtype)
            if self.arrays:
                array[:, :, : self.offset] = self.arrays[place][:, :, : self.offset]
            grown.append(array)
        self.arrays = grown

    @property
    def keys(self) -> mx.array:
        """One of the evaluated arrays: an mlx-lm pipeline makes it depend on the states that it has sent."""
        return self.arrays[0]

    @keys.setter
    def keys(self, value: mx.array) -> None:
        self.arrays[0] = value

    # ---- called by the runner ----

    def content(self, length: int) -> list[mx.array]:
        """Return the arrays of the columns of `length` tokens, in the order of their positions."""
        return [array[:, :, :length] for array in self.arrays]

    @property
    def state(self) -> list[mx.array]:
        return self.arrays

    def empty(self) -> bool:
        return not self.arrays

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def fork(self) -> QuantizedKV:
        """Return a second cache with the same content; both share the arrays until one of them is written to."""
        other = self._empty()
        other.offset, other.arrays = self.offset, [mx.array(array) for array in self.arrays]
        return other

    def _empty(self) -> QuantizedKV:
        return QuantizedKV(*self.codecs, self._limit)


class StartKV:
    """The first `start` columns in full precision, the others quantized."""

    def __init__(self, start: int, keys: Codec, values: Codec) -> None:
        self.start = start
        self.codecs = (keys, values)
        self.head = QuantizedKV(FULL, FULL, limit=start)
        self.rest = QuantizedKV(keys, values)

    @property
    def offset(self) -> int:
        return self.head.offset + self.rest.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Part, Part]:
        """Append columns as QuantizedKV does."""
        num_new = keys.shape[2]
        in_head = min(self.start - self.head.offset, num_new)
        if in_head:
            head = self.head.append(keys[:, :, :in_head], values[:, :, :in_head])
        else:
            head = self.head.content(self.start)
        if in_head == num_new:
            return head[0], head[1]
        rest = self.rest.append(keys[:, :, in_head:], values[:, :, in_head:])
        rest_keys, rest_values = self.rest.fetch(rest, num_new)
        return with_head(head[0], rest_keys), with_head(head[1], rest_values)

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> Any:
        return mlx_lm_cache.create_attention_mask(num_tokens, self.offset, return_array, window_size)

    @property
    def keys(self) -> mx.array:
        """One of the evaluated arrays, as in QuantizedKV."""
        return self.head.keys

    @keys.setter
    def keys(self, value: mx.array) -> None:
        self.head.keys = value

    @property
    def state(self) -> list[mx.array]:
        return [*self.head.state, *self.rest.state]

    def empty(self) -> bool:
        return self.head.empty()

    @property
    def nbytes(self) -> int:
        return self.head.nbytes + self.rest.nbytes

    def fork(self) -> StartKV:
        other = StartKV(self.start, *self.codecs)
        other.head, other.rest = self.head.fork(), self.rest.fork()
        return other
