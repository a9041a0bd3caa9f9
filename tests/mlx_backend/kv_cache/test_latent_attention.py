"""Attention over latents in groups of heads, against each model's own: the same logits and tokens, a bounded peak."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_backend.api.interface import KVCacheConfig, SamplingParams
from mlx_backend.core.row import Row
from mlx_backend.core.step import NewRow
from mlx_backend.kv_cache import attention, latent_attention, latent_groups
from mlx_backend.kv_cache.batch import RowBatch
from mlx_backend.kv_cache.build import quantized, read_shapes
from mlx_backend.kv_cache.latent_groups import FORMS
from mlx_backend.kv_cache.plan import plan_caches
from mlx_backend.planning.memory import AttentionShape, ModelShape, prefill_bytes
from tests.latent_models import CONFIGS, GROUPED, build_latent_model

pytestmark = pytest.mark.mlx

TOKENS = [(7 * i) % 311 for i in range(60)]
CUTS = (0, 40, 47, 58)
"""A long chunk, a short one, and a longer: with more tokens than the latent form is for, and with fewer."""
NUM_OUTPUT = 3


@pytest.fixture(autouse=True)
def installed() -> None:
    attention.install()


def chunks(model: Any, caches: list[Any] | None = None) -> mx.array:
    """The logits of the last token of each chunk: [chunks, vocabulary]."""
    caches = make_prompt_cache(model) if caches is None else caches
    pieces = (mx.array([TOKENS[start:end]]) for start, end in pairwise(CUTS))
    return mx.concatenate([model(piece, cache=caches)[:, -1] for piece in pieces]).astype(mx.float32)


def outputs(model: Any) -> tuple[mx.array, list[int]]:
    """The logits of the last token of each chunk and of every step, and the tokens that are chosen."""
    caches = make_prompt_cache(model)
    logits, chosen = [chunks(model, caches)], []
    token = TOKENS[-1]
    for _ in range(NUM_OUTPUT):
        logits.append(model(mx.array([[token]]), cache=caches)[:, -1])
        token = int(mx.argmax(logits[-1]).item())
        chosen.append(token)
    return mx.concatenate(logits), chosen


def distance(expected: mx.array, got: mx.array) -> float:
    return float(mx.linalg.norm(expected - got) / mx.linalg.norm(expected))


@pytest.mark.parametrize("name", GROUPED)
def test_every_form_gives_what_the_model_gives(name: str) -> None:
    model = build_latent_model(name)
    logits, tokens = outputs(model)
    assert latent_attention.takes_groups(model)
    latent_attention.defer(model)
    assert distance(logits, outputs(model)[0]) < 1e-4
    for form in FORMS:
        with latent_attention.forced(form):
            got, chosen = outputs(model)
        assert distance(logits, got) < 1e-4
        assert chosen == tokens
    latent_attention.restore(model)
    assert mx.array_equal(outputs(model)[0], logits)


def test_a_model_that_computes_with_latents_keeps_its_own_chunks() -> None:
    model = build_latent_model("mistral4")
    logits, tokens = outputs(model)
    assert not latent_attention.takes_groups(model)
    assert mx.array_equal(outputs(model)[0], logits)  # nothing stays deferred
    latent_attention.defer(model, chunks=False)
    got, chosen = outputs(model)
    assert distance(logits, got) < 1e-4 and chosen == tokens


@pytest.mark.parametrize("bits", [None, 4])
def test_half_precision_and_quantized_weights(bits: int | None) -> None:
    """As near to what float32 gives as the model's own."""
    dims = {"qk_nope_head_dim": 32, "v_head_dim": 32, "kv_lora_rank": 64, "first_k_dense_replace": 2}
    model = build_latent_model("deepseek_v3", **dims)
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
        assert "scales" in model.layers[0].self_attn.embed_q
    model.set_dtype(mx.bfloat16)
    own = chunks(model)
    latent_attention.defer(model)
    got = {}
    for form in FORMS:
        with latent_attention.forced(form):
            got[form] = chunks(model)
    latent_attention.restore(model)
    model.set_dtype(mx.float32)
    exact = chunks(model)
    for form in FORMS:
        assert distance(exact, got[form]) < 1.5 * distance(exact, own)


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe_lite", "longcat_flash"])
def test_quantized_latents(name: str) -> None:
    model = build_latent_model(name)
    caches = make_prompt_cache(model)
    model(mx.array([[1]]), cache=caches)
    plans = plan_caches(read_shapes(caches, CONFIGS[name]), KVCacheConfig(bits=8, group_size=32))
    assert all(plan.shape.kind == "latent" and plan.is_quantized for plan in plans)

    def logits() -> mx.array:
        caches = quantized(make_prompt_cache(model), plans)
        steps = [chunks(model, caches), *(model(mx.array([[token]]), cache=caches)[:, -1] for token in (3, 4))]
        return mx.concatenate(steps)

    expected = logits()
    latent_attention.defer(model)
    assert distance(expected, logits()) < 1e-4


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "deepseek_v32"])
def test_rows_of_different_lengths_give_what_each_gives_alone(name: str) -> None:
    """Expected is the model's own, one row at a time. deepseek_v32 is served one sequence at a time."""
    model = build_latent_model(name)
    lengths, token = (9, 40, 23), mx.array([[5]])

    def prefilled() -> list[list[Any]]:
        made = [make_prompt_cache(model) for _ in lengths]
        for caches, length in zip(made, lengths, strict=True):
            mx.eval(model(mx.array([TOKENS[:length]]), cache=caches))
        return made

    expected = [mx.concatenate([model(token, cache=caches)[:, -1] for _ in range(2)]) for caches in prefilled()]
    latent_attention.defer(model, chunks=name in GROUPED)
    batch = RowBatch(make_prompt_cache(model))
    rows = [
        Row.of(
            NewRow(
                id=place,
                prompt=place,
                ordinal=0,
                prompt_ids=tuple(TOKENS[: length + 1]),
                max_num_tokens=length + 4,
                sampling=SamplingParams(),
                key=0,
            ),
            caches,
        )
        for place, (length, caches) in enumerate(zip(lengths, prefilled(), strict=True))
    ]
    batch.set_rows(rows)
    steps = []
    for _ in range(2):
        steps.append(model(mx.broadcast_to(token, (len(rows), 1)), cache=batch.caches)[:, -1])
        batch.advance()
    for row, alone in zip(rows, expected, strict=True):
        place = batch.rows.index(row)
        assert distance(alone, mx.stack([step[place] for step in steps])) < 1e-4


def test_one_product_reads_the_latents_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    product = latent_attention._scores

    def counted(queries: mx.array, keys: mx.array, mask: mx.array | None) -> mx.array:
        seen.append(queries.shape)
        return product(queries, keys, mask)

    monkeypatch.setattr(latent_attention, "_scores", counted)
    model = build_latent_model("deepseek_v3")
    latent_attention.defer(model)
    model(mx.array([[1], [2], [3]]), cache=make_prompt_cache(model))
    assert seen == [(3, 1, 4, 32)] * 2


# ---- memory ----

HEADS, DIM, LATENT = 40, 16, 32


def prefill_peak(num_tokens: int, context: int, num_heads: int, is_deferred: bool = True) -> tuple[int, int]:
    """(peak of a chunk that is the last of context, what is planned for it), bytes. In float32, on a CPU."""
    dims = {
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "qk_nope_head_dim": DIM,
        "v_head_dim": DIM,
        "qk_rope_head_dim": DIM,
        "kv_lora_rank": LATENT,
        "first_k_dense_replace": 2,
        "max_position_embeddings": context,
    }
    model = build_latent_model("deepseek_v3", **dims)
    if is_deferred:
        latent_attention.defer(model)
    caches = make_prompt_cache(model)
    for cache in caches:  # as if so many tokens were computed, with room for all
        cache.update_and_fetch(mx.ones((1, 1, context, LATENT)), mx.ones((1, 1, context, DIM)))
        cache.offset = context - num_tokens
    mx.eval([cache.state for cache in caches], model.parameters())
    gc.collect()  # what other tests left
    mx.clear_cache()
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    model(mx.array([TOKENS * 4])[:, :num_tokens], cache=caches)
    mx.eval([cache.state for cache in caches])
    shape = ModelShape(
        model_type="deepseek_v3",
        num_parameters=1,
        weights_bytes=0,
        active_parameters=1,
        active_bytes=1,
        num_layers=2,
        hidden_size=64,
        widest=num_heads * 2 * DIM,
        vocab_size=320,
        context_length=context,
        itemsize=4,
        attention=AttentionShape(
            num_heads=num_heads,
            key_dim=DIM,
            value_dim=DIM,
            rope_dim=DIM,
            latent_dim=LATENT,
            is_latent=True,
            is_grouped=is_deferred,
        ),
    )
    return mx.get_peak_memory() - base, prefill_bytes(shape, [], num_tokens, context, has_fused=False)


@pytest.mark.parametrize(("num_tokens", "context", "form"), [(96, 2048, "expanded"), (24, 4096, "absorbed")])
def test_the_peak_of_a_chunk_is_what_is_planned(
    num_tokens: int, context: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of half the heads, as full as they can be."""
    shape = latent_groups.LatentShape(num_heads=HEADS, key_dim=DIM, value_dim=DIM, rope_dim=DIM, latent_dim=LATENT)
    whole = latent_groups.divide(shape, num_tokens, context, 4, has_fused=False)
    assert (whole.form, whole.num_heads) == (form, HEADS)
    monkeypatch.setattr(latent_groups, "MOST_GROUP_BYTES", whole.num_bytes // 2)
    assert HEADS // 2 - 2 <= latent_groups.divide(shape, num_tokens, context, 4, has_fused=False).num_heads < HEADS
    peak, planned = prefill_peak(num_tokens, context, HEADS)
    assert 0.95 < peak / planned < 1.05
    own, _ = prefill_peak(num_tokens, context, HEADS, is_deferred=False)
    assert own > 1.5 * peak


def test_the_peak_does_not_grow_with_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_groups, "MOST_GROUP_BYTES", 8 << 20)
    few, many = (prefill_peak(64, 2048, heads)[0] for heads in (16, 64))
    assert many < 1.25 * few
