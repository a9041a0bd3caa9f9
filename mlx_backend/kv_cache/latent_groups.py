"""Form of a chunk's attention over latents, and the number of heads computed at a time. Pure; no MLX.

The same figures bound what attention builds and what planning counts for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FUSED_HEAD_DIMS = frozenset({64, 72, 80, 96, 128})
"""Head sizes for which Metal's attention keeps no score matrix (mlx 0.32, scaled_dot_product_attention.cpp)."""
MOST_GROUP_BYTES = 1 << 30
"""Most bytes built for some heads at once, unless one head takes more. Large enough to keep a GPU busy for about 20 ms
per group, beside which waiting for it does not count."""
_LEAST_FUSED_TOKENS = 9
"""Chunks of fewer tokens run in another kernel, which supports other head sizes."""

Form = Literal["fused", "expanded", "absorbed"]
FORMS: tuple[Form, ...] = ("fused", "expanded", "absorbed")
"""fused: keys and values of each head, the rotary scores as the mask of the fused kernel. expanded: keys and values of
each head, scores in one product. absorbed: queries taken to the latent space, as in a decode step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """One layer's attention: numbers of a head's key and value, of the rotary key, and of the latent."""

    num_heads: int
    key_dim: int
    value_dim: int
    rope_dim: int
    latent_dim: int

    @property
    def most_absorbed_tokens(self) -> int:
        """Tokens up to which a chunk takes fewer multiplications with queries in the latent space.

        Expanding the context costs the same for any chunk; a product in the latent space costs more for every token.
        """
        expanding = self.latent_dim * (self.key_dim + self.value_dim)
        wider = 2 * self.latent_dim - self.key_dim - self.value_dim
        return expanding // wider if wider > 0 else 1 << 30

    @property
    def is_fused(self) -> bool:
        return self.key_dim == self.value_dim and self.key_dim in FUSED_HEAD_DIMS


@dataclass(frozen=True, slots=True)
class HeadGroups:
    """The form, the heads at a time, and the peak bytes of one group."""

    form: Form
    num_heads: int
    num_bytes: int
    """Never less for more tokens of the same form or for a longer context, so that a search may rely on it; a group
    takes up to one head less."""


def divide(
    shape: LatentShape, num_tokens: int, context: int, itemsize: int, *, has_fused: bool, num_rows: int = 1
) -> HeadGroups:
    """Divide the heads for a chunk of `num_tokens` per row, the last of `context`."""
    form = cheapest_form(shape, num_tokens, has_fused=has_fused)
    whole = num_rows * itemsize * _shared_numbers(shape, form, context)
    head = num_rows * itemsize * _head_numbers(shape, form, num_tokens, context)
    num_heads = max(1, min(shape.num_heads, (MOST_GROUP_BYTES - whole) // head))
    most = max(whole + head, min(whole + shape.num_heads * head, MOST_GROUP_BYTES))
    return HeadGroups(form, num_heads, most)


def cheapest_form(shape: LatentShape, num_tokens: int, *, has_fused: bool) -> Form:
    """Return the form with the fewest multiplications, and of those the one that keeps the fewest scores."""
    if num_tokens <= shape.most_absorbed_tokens:
        return "absorbed"
    return "fused" if has_fused and shape.is_fused and num_tokens >= _LEAST_FUSED_TOKENS else "expanded"


def chunk_bytes(shape: LatentShape, num_tokens: int, context: int, itemsize: int, *, has_fused: bool) -> int:
    """Return the most bytes built at once for chunks of up to `num_tokens`: a prompt's last one is shorter."""
    shorter = min(num_tokens, shape.most_absorbed_tokens)
    groups = [divide(shape, each, context, itemsize, has_fused=has_fused) for each in {shorter, num_tokens}]
    masks = num_tokens * context * (1 + itemsize)  # the model's bool mask, and the addend to the scores
    return masks + max(group.num_bytes for group in groups)


def _shared_numbers(shape: LatentShape, form: Form, context: int) -> int:
    """Return the numbers that exist once for all heads of a group."""
    return context * (shape.latent_dim + shape.rope_dim) if form == "absorbed" else 0


def _head_numbers(shape: LatentShape, form: Form, num_tokens: int, context: int) -> int:
    """Return the numbers of one head: its scores, and their operands."""
    scores = num_tokens * context
    if form == "absorbed":
        return scores + num_tokens * (3 * shape.latent_dim + shape.rope_dim)
    expanded = context * (shape.key_dim + shape.value_dim)
    if form == "fused":
        return scores + expanded
    return scores + expanded + context * (shape.key_dim + shape.rope_dim)
