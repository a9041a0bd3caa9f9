"""What ranks say to each other survives the way there, and nothing else is taken for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_backend.api.interface import EngineConfig, KVCacheConfig, RanksConfig, SamplingParams
from mlx_backend.core.step import Chunk, NewRow, Piece, Restore, Span, StepPlan
from mlx_backend.ranks import messages

IDS = st.lists(st.integers(0, 300_000), min_size=1, max_size=20).map(tuple)
ROWS = st.builds(
    NewRow,
    id=st.integers(0, 10**9),
    prompt=st.integers(0, 10**9),
    ordinal=st.integers(0, 5),
    prompt_ids=IDS,
    output_ids=IDS,
    max_num_tokens=st.integers(1, 10**6),
    sampling=st.builds(SamplingParams, temperature=st.floats(0, 2), top_k=st.integers(0, 9)),
    key=st.integers(0, 2**64 - 1),
    stop_ids=st.frozensets(st.integers(0, 99)),
)
PIECES = st.builds(Piece, *[st.integers(0, 999)] * 4)
RESTORES = st.builds(Restore, st.lists(PIECES, max_size=4).map(tuple), st.booleans())
CHUNKS = st.builds(
    Chunk,
    prompt=st.integers(0, 99),
    start=st.integers(0, 99),
    token_ids=IDS,
    num_prompt_tokens=st.integers(0, 999),
    next_id=st.none() | st.integers(0, 99),
    num_top_logprobs=st.none() | st.integers(0, 5),
    embeds=st.booleans(),
    restore=st.none() | RESTORES,
)
PLANS = st.builds(
    StepPlan,
    ended=IDS,
    new_rows=st.lists(ROWS, max_size=3).map(tuple),
    decodes=IDS,
    masked=IDS,
    dropped=IDS,
    chunks=st.lists(CHUNKS, max_size=2).map(tuple),
    spare_bytes=st.integers(0, 10**12),
)


@settings(max_examples=25)
@given(PLANS, CHUNKS)
def test_a_call_arrives_as_it_was_made(plan: StepPlan, chunk: Chunk) -> None:
    for given_ in ({"plan": plan}, {"chunk": chunk}, {"source": 3, "spans": (Span(0, 4, True),), "ids": (1, 2)}):
        message: dict[str, Any] = {"call": "any", **given_}
        assert messages.read(messages.write(message)) == message


@settings(max_examples=25)
@given(PLANS)
def test_other_ranks_get_the_same_rows_and_nothing_of_how_they_are_drawn(plan: StepPlan) -> None:
    sent = messages.mirrored(plan)
    for name in ("ended", "decodes", "dropped", "spare_bytes"):
        assert getattr(sent, name) == getattr(plan, name)
    assert (sent.masked, sent.chunks) == ((), ())
    for row, own in zip(sent.new_rows, plan.new_rows, strict=True):
        assert (row.id, row.prompt, row.prompt_ids, row.output_ids) == (
            own.id,
            own.prompt,
            own.prompt_ids,
            own.output_ids,
        )
        assert (row.sampling, row.key, row.stop_ids) == (SamplingParams(), 0, frozenset())


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[1]", b'"start"', b"{", b"\xff", b'{"type": "Popen"}', b'{"call": {"type": "Span"}}']
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        messages.read(payload)


def test_a_configuration_arrives_as_it_is() -> None:
    config = EngineConfig(
        model_path="folder", kv_cache=KVCacheConfig(bits=8), ranks=RanksConfig(count=3, parallel="pipeline")
    )
    message = {"call": "begin", "config": messages.config_fields(config)}
    assert messages.read_config(messages.read(messages.write(message))["config"]) == config


def test_a_configuration_of_another_version_is_refused() -> None:
    fields = {**messages.config_fields(EngineConfig(model_path="folder")), "new": 1}
    with pytest.raises(ValueError, match="version"):
        messages.read_config(fields)
