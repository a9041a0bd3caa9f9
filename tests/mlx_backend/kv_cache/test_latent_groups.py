"""Heads at a time: within the bound, monotone, and the cheapest form. No MLX."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.kv_cache.latent_groups import MOST_GROUP_BYTES, LatentShape, cheapest_form, chunk_bytes, divide

R1 = LatentShape(num_heads=128, key_dim=128, value_dim=128, rope_dim=64, latent_dim=512)
shapes = st.builds(
    LatentShape,
    num_heads=st.integers(1, 128),
    key_dim=st.sampled_from([16, 64, 128, 192]),
    value_dim=st.sampled_from([16, 64, 128, 256]),
    rope_dim=st.sampled_from([0, 16, 64]),
    latent_dim=st.sampled_from([32, 128, 512]),
)
tokens, contexts = st.integers(1, 4096), st.integers(1, 1 << 20)


@given(shapes, tokens, contexts, st.sampled_from([2, 4]), st.booleans())
def test_a_group_is_within_the_bound_or_one_head(
    shape: LatentShape, num_tokens: int, context: int, itemsize: int, has_fused: bool
) -> None:
    groups = divide(shape, num_tokens, context, itemsize, has_fused=has_fused)
    assert 1 <= groups.num_heads <= shape.num_heads
    assert groups.num_bytes <= MOST_GROUP_BYTES or groups.num_heads == 1
    alone = divide(replace(shape, num_heads=1), num_tokens, context, itemsize, has_fused=has_fused)
    if 1 < groups.num_heads < shape.num_heads:  # no room for one more
        assert groups.num_bytes == MOST_GROUP_BYTES
        assert (groups.num_heads + 1) * alone.num_bytes > MOST_GROUP_BYTES
    if groups.num_heads == shape.num_heads:
        assert groups.num_bytes >= alone.num_bytes


@given(shapes, tokens, contexts, st.integers(0, 2048), st.integers(0, 100_000), st.booleans())
def test_more_tokens_and_a_longer_context_take_no_less(
    shape: LatentShape, num_tokens: int, context: int, more: int, longer: int, has_fused: bool
) -> None:
    least = chunk_bytes(shape, num_tokens, context, 2, has_fused=has_fused)
    assert least <= chunk_bytes(shape, num_tokens + more, context, 2, has_fused=has_fused)
    assert least <= chunk_bytes(shape, num_tokens, context + longer, 2, has_fused=has_fused)


@given(shapes, st.integers(1, 4096), contexts)
def test_the_form_takes_the_fewest_multiplications(shape: LatentShape, num_tokens: int, context: int) -> None:
    """Per head; queries taken to the latent space, and results from it, cost the same whatever the context."""
    per_pair = shape.key_dim + shape.rope_dim + shape.value_dim
    expanding = shape.latent_dim * (shape.key_dim + shape.value_dim)
    expanded = context * (num_tokens * per_pair + expanding)
    latent = context * num_tokens * (2 * shape.latent_dim + shape.rope_dim)
    form = cheapest_form(shape, num_tokens, has_fused=False)
    assert form == ("absorbed" if latent <= expanded else "expanded")


def test_deepseek_r1() -> None:
    assert R1.most_absorbed_tokens == 170
    assert divide(R1, 512, 163_840, 2, has_fused=True).form == "fused"
    assert divide(R1, 512, 163_840, 2, has_fused=False).form == "expanded"
    assert divide(replace(R1, key_dim=192, value_dim=256), 512, 163_840, 2, has_fused=True).form == "expanded"
    for step in (512, 1024, 2048):
        masks = 3 * step * 163_840  # of bools, and what is added to scores
        assert chunk_bytes(R1, step, 163_840, 2, has_fused=True) == masks + MOST_GROUP_BYTES < 2.5e9
    assert divide(R1, 512, 2048, 2, has_fused=True).num_heads == 128  # not divided: nothing waits
