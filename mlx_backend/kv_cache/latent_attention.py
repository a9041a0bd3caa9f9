"""Attention over latents (DeepSeek's multi-head latent attention), some heads at a time or as rows of one product.

For a chunk, mlx-lm's models expand the latents of the whole context to keys and values of every head, and multiply the
rotary parts of all heads, before they call attention. This makes [heads, chunk, context] scores, whatever attention
does. For one token per row they broadcast the one latent over the heads, and with several rows MLX reads it once per
head.

`defer` changes neither the models' code nor their weights. A layer's cache returns stand-ins for the latents and their
rotary part, which record what to multiply with them; attention receives these records, and multiplies.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.kv_cache.groups import GroupedColumns, GroupedMask
from mlx_backend.kv_cache.latent_groups import Form, HeadGroups, LatentShape, divide


class _Checks(threading.local):
    """Settings and counts for checks; per thread, since another thread may compute with another model."""

    form: Form | None = None
    """Form to use instead of the cheapest, half of the heads at a time."""
    num_chunks = 0
    """Chunks with attention computed here, counted per layer."""


_checks = _Checks()


class Latents:
    """Content of a layer's cache: latents [rows, 1, tokens, dim] and the keys' rotary part, likewise."""

    def __init__(self, latent: mx.array, rope: mx.array) -> None:
        self.latent, self.rope = latent, rope
        self.queries: mx.array | None = None
        """Rotary part of the queries, scaled: [rows, heads, n, dim]. The model multiplies it with that of the keys."""


@dataclass(frozen=True, slots=True, eq=False)
class Expansion:
    """Keys or values of every head, as `module` would expand them from the latents."""

    module: Any
    latents: Latents
    transpose: bool

    def of(self, heads: slice) -> mx.array:
        """Expand those of some heads: [rows, heads, tokens, dim]."""
        made: mx.array = self.part(heads)(self.latents.latent, transpose=self.transpose)
        return made

    def part(self, heads: slice) -> Any:
        """Return the module of some heads. Its weights are slices, which share memory with the whole."""
        part = copy.copy(self.module)
        for name, value in self.module.items():
            if isinstance(value, mx.array):
                part[name] = value[heads]
        return part


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Latents that serve as both keys and values for one token per row: [rows, 1, tokens, dim]."""

    latent: mx.array


Deferred: TypeAlias = Expansion | Shared


def attend(queries: mx.array, keys: Deferred, values: Any, scale: float, mask: Any) -> mx.array:
    """Compute `attention.attend` for deferred keys and values."""
    if isinstance(keys, Expansion) and isinstance(values, Expansion):
        return attend_chunk(queries, keys, values, scale, mask)
    if isinstance(keys, Shared) and values is keys:
        return attend_token(queries, keys.latent, scale, mask)
    raise TypeError("keys and values are not deferred alike")


def attend_chunk(queries: mx.array, keys: Expansion, values: Expansion, scale: float, mask: mx.array) -> mx.array:
    """Attend with queries [rows, heads, n, dim] without their rotary part; return [rows, heads, n, value dim].

    mask: additive, [rows or 1, 1, n, tokens], or a single 0 if the model adds none.
    """
    _checks.num_chunks += 1
    num_heads = queries.shape[1]
    groups = _groups(queries, keys, values)
    added = None if mask.size == 1 else mask
    attend = {"fused": _attend_fused, "expanded": _attend_expanded, "absorbed": _attend_absorbed}[groups.form]
    outs = []
    shared = _shared_keys(keys.latents) if groups.form == "absorbed" else keys.latents.rope
    for start in range(0, num_heads, groups.num_heads):
        outs.append(attend(queries, keys, values, scale, added, shared, slice(start, start + groups.num_heads)))
        if groups.num_heads < num_heads:
            mx.eval(outs[-1])  # else the next heads' scores are made while these still exist
    return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=1)


def attend_token(queries: mx.array, latent: mx.array, scale: float, scores: mx.array) -> mx.array:
    """Attend a few tokens per row: queries [rows, heads, n, dim] in latent space to latents [rows, 1, tokens, dim].

    scores: those of the rotary parts, [rows, heads or 1, n, tokens]. The heads of a row are the rows of one product.
    """
    rows, heads, num_tokens, dim = queries.shape
    folded = (queries * scale).reshape(rows, 1, heads * num_tokens, dim)
    added = scores.swapaxes(1, 2) if num_tokens == 1 else scores.reshape(rows, 1, heads * num_tokens, -1)
    weights = mx.softmax(_scores(folded, latent, added), axis=-1, precise=True)
    return (weights @ latent).reshape(rows, heads, num_tokens, dim)


# ---- a chunk, some heads at a time ----


def _groups(queries: mx.array, keys: Expansion, values: Expansion) -> HeadGroups:
    rows, num_heads, num_tokens, key_dim = queries.shape
    context, latent_dim = keys.latents.latent.shape[2:]
    shape = LatentShape(
        num_heads=num_heads,
        key_dim=key_dim,
        value_dim=values.module["weight"].shape[1],
        rope_dim=keys.latents.rope.shape[3],
        latent_dim=latent_dim,
    )
    has_fused = bool(mx.default_device() != mx.Device(mx.cpu))
    if _checks.form is not None:
        return HeadGroups(_checks.form, max(1, num_heads // 2), 0)
    return divide(shape, num_tokens, context, queries.itemsize, num_rows=rows, has_fused=has_fused)


def _attend_fused(
    queries: mx.array,
    keys: Expansion,
    values: Expansion,
    scale: float,
    mask: mx.array | None,
    rope: mx.array,
    heads: slice,
) -> mx.array:
    """Attend with MLX's kernel, which takes the rotary scores as its mask and keeps no others."""
    scores = _scores(_rotary(keys)[:, heads], rope, mask)
    out: mx.array = mx.fast.scaled_dot_product_attention(
        queries[:, heads], keys.of(heads), values.of(heads), scale=scale, mask=scores
    )
    return out


def _attend_expanded(
    queries: mx.array,
    keys: Expansion,
    values: Expansion,
    scale: float,
    mask: mx.array | None,
    rope: mx.array,
    heads: slice,
) -> mx.array:
    """Append the rotary part to the keys: the scores are one product, and exist once."""
    expanded = keys.of(heads)
    whole = mx.concatenate([expanded, mx.broadcast_to(rope, (*expanded.shape[:3], rope.shape[3]))], axis=-1)
    asked = mx.concatenate([queries[:, heads] * scale, _rotary(keys)[:, heads]], axis=-1)
    del expanded
    return mx.softmax(_scores(asked, whole, mask), axis=-1, precise=True) @ values.of(heads)


def _attend_absorbed(
    queries: mx.array,
    keys: Expansion,
    values: Expansion,
    scale: float,
    mask: mx.array | None,
    shared: mx.array,
    heads: slice,
) -> mx.array:
    """Take queries into the latent space: nothing is expanded, and the heads are rows of one product."""
    in_latent = keys.part(heads)(queries[:, heads] * scale)
    asked = mx.concatenate([in_latent, _rotary(keys)[:, heads]], axis=-1)
    rows, num_heads, num_tokens, dim = asked.shape
    scores = asked.reshape(rows, 1, num_heads * num_tokens, dim) @ shared.swapaxes(-1, -2)
    scores = scores.reshape(rows, num_heads, num_tokens, -1)
    weights = mx.softmax(scores if mask is None else scores + mask, axis=-1, precise=True)
    del in_latent, asked, scores
    latent = keys.latents.latent
    out = weights.reshape(rows, 1, num_heads * num_tokens, -1) @ latent
    made: mx.array = values.part(heads)(out.reshape(rows, num_heads, num_tokens, -1))
    return made


def _shared_keys(latents: Latents) -> mx.array:
    return mx.concatenate([latents.latent, latents.rope], axis=-1)


def _rotary(keys: Expansion) -> mx.array:
    queries = keys.latents.queries
    if queries is None:
        raise ValueError("attention is called before the rotary parts are multiplied")
    return queries


def _scores(queries: mx.array, keys: mx.array, mask: mx.array | None) -> mx.array:
    product = keys.swapaxes(-1, -2)
    return queries @ product if mask is None else mx.addmm(mask, queries, product)


# ---- stand-ins. Python calls a right operand's `__rmatmul__` first only if its class derives from the left's ----


class _StandIn(mx.array):  # type: ignore[misc]
    """Array without numbers, so that any use but the intended one fails or gives an empty array."""

    def __init__(self, latents: Latents) -> None:
        super().__init__([])
        self.latents = latents


class _LatentStandIn(_StandIn):
    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.latents.latent.shape
        return shape


class _RopeStandIn(_StandIn):
    def swapaxes(self, first: int, second: int) -> _RopeStandIn:
        return self

    def __rmatmul__(self, queries: mx.array) -> mx.array:
        """Return a single 0, which the model masks: the result is a mask to add, the same for all heads."""
        self.latents.queries = queries
        return mx.zeros((1, 1, 1, 1), dtype=queries.dtype)


class _SharedRope(mx.array):  # type: ignore[misc]
    """The rotary part for a few tokens per row: heads are rows of one product."""

    def __init__(self, rope: mx.array) -> None:
        super().__init__([])
        self.rope = rope

    def swapaxes(self, first: int, second: int) -> _SharedRope:
        return self

    def __rmatmul__(self, queries: mx.array) -> mx.array:
        rows, heads, num_tokens, dim = queries.shape
        product = queries.reshape(rows, 1, heads * num_tokens, dim) @ self.rope.swapaxes(-1, -2)
        return product.reshape(rows, heads, num_tokens, -1)


class _GroupedRope(mx.array):  # type: ignore[misc]
    """The rotary part of rows in groups: the product gives the masked scores of each group."""

    def __init__(self, rope: GroupedColumns, masks: tuple[mx.array | None, ...]) -> None:
        super().__init__([])
        self.rope, self.masks = rope, masks

    def swapaxes(self, first: int, second: int) -> _GroupedRope:
        return self

    def __rmatmul__(self, queries: mx.array) -> GroupedMask:
        scores = []
        for group, part, mask in zip(self.rope.groups, self.rope.parts, self.masks, strict=True):
            product = group.fold(group.of(queries)) @ _SharedRope(part)
            least = mx.array(mx.finfo(product.dtype).min, product.dtype)
            scores.append(product if mask is None else mx.where(mask, product, least))
        return GroupedMask(tuple(scores))


class _View:
    """A layer's cache as its attention sees it while deferred."""

    def __init__(self, cache: Any, defers_chunks: bool, is_indexed: bool = False) -> None:
        """is_indexed: an index chooses a step's columns and takes them out of the arrays."""
        vars(self).update(_cache=cache, _defers_chunks=defers_chunks, _is_indexed=is_indexed)

    def update_and_fetch(self, latent: mx.array, rope: mx.array) -> tuple[Any, Any]:
        num_tokens = latent.shape[2]
        held, held_rope = self._cache.update_and_fetch(latent, rope)
        if isinstance(held, GroupedColumns) and not self._is_indexed:
            shared = tuple(Shared(part) if type(part) is mx.array else part for part in held.parts)
            return GroupedColumns(shared, held.groups), _GroupedRope(held_rope, self._cache.group_masks())
        if type(held_rope) is not mx.array or held_rope.shape[1] != 1:
            return held, held_rope
        if num_tokens > 1 and self._defers_chunks and type(held) is mx.array:
            latents = Latents(held, held_rope)
            return _LatentStandIn(latents), _RopeStandIn(latents)
        if num_tokens == 1 and not self._is_indexed:
            return (Shared(held) if type(held) is mx.array else held), _SharedRope(held_rope)
        return held, held_rope

    def __getitem__(self, index: int) -> Any:
        """In a layer with several caches, the first holds the latents, and the others the input of an index."""
        member = self._cache[index]
        return _View(member, self._defers_chunks, is_indexed=True) if index == 0 else member

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cache, name, value)


# ---- the modules that are deferred ----


def latent_modules(model: Any) -> list[Any]:
    """Return the attention modules over latents of an mlx-lm model."""
    return [module for module in model.modules() if "embed_q" in module and "unembed_out" in module]


def defer(model: Any, chunks: bool = True) -> None:
    """Compute a model's attention over latents here, that of chunks only if `chunks`.

    Its modules change their class, and nothing else.
    """
    restore(model)
    for module in latent_modules(model):
        own: Any = type(module)
        module.__class__ = _deferring(own, chunks)
        for part in (module.embed_q, module.unembed_out):
            own = type(part)
            part.__class__ = _expanding(own)


def restore(model: Any) -> None:
    """Undo `defer`."""
    for module in latent_modules(model):
        for each in (module, module.embed_q, module.unembed_out):
            each.__class__ = getattr(type(each), "_deferred_from", type(each))


def takes_groups(model: Any) -> bool:
    """Return whether a latent model's code leaves all computation to attention, so that chunks can be deferred.

    Nothing is evaluated, and nothing stays deferred. Call `attention.install` first.
    """
    modules = latent_modules(model)
    before = _checks.num_chunks
    defer(model)
    try:
        model(mx.zeros((1, 2), dtype=mx.int32), cache=make_prompt_cache(model))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False
    finally:
        restore(model)
    return bool(modules) and _checks.num_chunks - before == len(modules)


@contextmanager
def forced(form: Form) -> Iterator[None]:
    """Compute every chunk of this thread in this form, half of the heads at a time."""
    _checks.form = form
    try:
        yield
    finally:
        _checks.form = None


@cache
def _deferring(own: Any, chunks: bool) -> Any:
    """Return a subclass of an attention module that sees its cache through a `_View`."""
    place = list(inspect.signature(own.__call__).parameters).index("cache") - 1

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if named.get("cache") is not None:
            named["cache"] = _View(named["cache"], chunks)
        elif len(given) > place and given[place] is not None:
            given = (*given[:place], _View(given[place], chunks), *given[place + 1 :])
        return own.__call__(self, *given, **named)

    return type(own.__name__, (own,), {"__call__": call, "__module__": own.__module__, "_deferred_from": own})


@cache
def _expanding(own: Any) -> Any:
    """Return a subclass of a product per head that only records that it is to expand latents."""

    def call(self: Any, x: Any, transpose: bool = True) -> Any:
        if isinstance(x, _LatentStandIn):
            return Expansion(self, x.latents, transpose)
        return own.__call__(self, x, transpose)

    return type(own.__name__, (own,), {"__call__": call, "__module__": own.__module__, "_deferred_from": own})
