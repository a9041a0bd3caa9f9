"""`/v1/models`, also while the model loads."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from openai.types import Model

from mlx_backend.api.interface import (
    DraftModelInfo,
    EmbeddingInfo,
    KVCachePart,
    KVCacheReport,
    MemoryReport,
    ModelInfo,
    PrefixCacheReport,
)
from server.text.calls.forms import FORMS, GENERIC
from server.text.parsers.parts import ChatFormat
from server.text.tokenizer import ByteTokenizer
from tests.fake_engine import FakeEngine
from tests.serving import client_of

INFO = ModelInfo(
    context_limit=512,
    vocab_size=260,
    num_parameters=7,
    weights_bytes=99,
    is_batched=False,
    unbatched_reason="its cache cannot be batched",
    kv_caches=(
        KVCacheReport(
            kind="plain",
            num_layers=3,
            parts=(
                KVCachePart(name="keys", num_heads=2, dim=64, requested_bits=8, bits=8, group_size=64),
                KVCachePart(
                    name="values", num_heads=2, dim=32, requested_bits=8, bits=None, group_size=None, note="no"
                ),
            ),
            start=5,
            bytes_per_token=400,
            full_bytes_per_token=768,
        ),
        KVCacheReport(kind="recurrent", num_layers=2, state_bytes=99, note="stays"),
    ),
    dequantized_reason="its code is in the way",
    context_limited_by="memory",
    memory=MemoryReport(limit_bytes=1000, limit_basis="memory.limit_gb", weights_bytes=99, reserve_bytes=1),
    prefix_cache=PrefixCacheReport(
        kinds=(("plain", "by the token"), ("recurrent", "as snapshots")),
        needs_snapshots=True,
        chunk_tokens=64,
        ram_bytes=1000,
        folder="/home/me/kept",
        max_bytes=2000,
        num_disk_blocks=3,
    ),
)


async def test_list() -> None:
    async with client_of(FakeEngine(info=INFO)) as client:
        answer = (await client.get("/v1/models")).json()
    assert answer["object"] == "list"
    (model,) = answer["data"]
    Model.model_validate(model)
    assert (model["id"], model["object"], model["owned_by"], model["max_model_len"]) == ("mock", "model", "pippin", 512)
    assert model["pippin"] == {
        "context_limit": 512,
        "vocab_size": 260,
        "num_parameters": 7,
        "weights_bytes": 99,
        "is_batched": False,
        "unbatched_reason": "its cache cannot be batched",
        "ungrouped_reason": None,
        "whole_heads_reason": None,
        "max_draft_tokens": 0,
        "no_drafts_reason": "speculation.kind is off",
        "kv_caches": [json.loads(json.dumps(asdict(cache))) for cache in INFO.kv_caches],
        "dequantized_reason": "its code is in the way",
        "embedding": None,
        "no_embedding_reason": "it was not made for them",
        "scoring": None,
        "no_scoring_reason": "it was not made for them",
        "draft_model": None,
        "adapters": [],
        "tool_calls": {"form": "generic", "told_by": "prompt"},
        "has_reasoning": False,
        "context_limited_by": "memory",
        "memory": {
            "limit_bytes": 1000,
            "limit_basis": "memory.limit_gb",
            "weights_bytes": 99,
            "reserve_bytes": 1,
            "free_bytes": 900,
            "cache_bytes": 0,
            "wired_bytes": 0,
            "wired_reason": "",
            "raise_command": None,
        },
        "prefix_cache": {
            "reason": None,
            "kinds": [{"kind": "plain", "kept": "by the token"}, {"kind": "recurrent", "kept": "as snapshots"}],
            "needs_snapshots": True,
            "chunk_tokens": 64,
            "ram_bytes": 1000,
            "is_on_disk": True,
            "max_disk_bytes": 2000,
        },
        "ranks": None,
        "stall_s": 0.0,
    }
    assert "/home/me" not in json.dumps(answer)


async def test_no_prefix_cache() -> None:
    info = replace(INFO, prefix_cache=PrefixCacheReport(reason="it is off"))
    async with client_of(FakeEngine(info=info)) as client:
        kept = (await client.get("/v1/models/mock")).json()["pippin"]["prefix_cache"]
    assert (kept["reason"], kept["is_on_disk"], kept["max_disk_bytes"]) == ("it is off", False, None)


async def test_draft_model() -> None:
    draft = DraftModelInfo(name="small", context_limit=99, num_parameters=7, weights_bytes=3, kv_bytes_per_token=2)
    async with client_of(FakeEngine(info=replace(INFO, draft_model=draft))) as client:
        details = (await client.get("/v1/models/mock")).json()["pippin"]
    assert details["draft_model"] == asdict(draft)


async def test_embeddings() -> None:
    info = replace(INFO, embedding=EmbeddingInfo(dim=9, pooling="mean", is_normalized=False), no_embedding_reason="")
    async with client_of(FakeEngine(info=info)) as client:
        details = (await client.get("/v1/models/mock")).json()["pippin"]
    assert details["embedding"] == {"dim": 9, "pooling": "mean", "is_normalized": False}
    assert details["no_embedding_reason"] is None


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (ChatFormat(is_harmony=True), {"form": "harmony", "told_by": "template"}),
        (ChatFormat(calls=FORMS["glm47"]), {"form": "glm47", "told_by": "template"}),
        (ChatFormat(calls=GENERIC, tells_tools="prompt"), {"form": "generic", "told_by": "prompt"}),
    ],
)
async def test_the_form_of_calls(format: ChatFormat, expected: dict[str, str]) -> None:
    class Calling(ByteTokenizer):
        chat_format = format

    async with client_of(FakeEngine(), tokenizer=Calling) as client:
        details = (await client.get("/v1/models/mock")).json()["pippin"]
    assert details["tool_calls"] == expected
    assert details["has_reasoning"] == format.is_harmony


async def test_one() -> None:
    async with client_of(FakeEngine()) as client:
        assert (await client.get("/v1/models/mock")).json()["id"] == "mock"


async def test_while_loading() -> None:
    async with client_of(FakeEngine(is_loaded=False)) as client:
        model = (await client.get("/v1/models/mock")).json()
    assert model["max_model_len"] is None
    assert model["pippin"] is None


async def test_the_list_under_its_other_names() -> None:
    async with client_of(FakeEngine()) as client:
        expected = (await client.get("/v1/models")).json()
        for path in ("/v1/models/", "/models", "/models/"):
            assert (await client.get(path)).json() == expected, path


async def test_an_unknown_model() -> None:
    async with client_of(FakeEngine()) as client:
        for path in ("/v1/models/other", "/v1/models/org/name", "/models/other"):
            answer = await client.get(path)
            assert answer.status_code == 404, path
            assert answer.json()["error"]["code"] == "model_not_found"
            assert answer.json()["error"]["param"] == "model"
