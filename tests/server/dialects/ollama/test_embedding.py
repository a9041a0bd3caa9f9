"""Vectors of texts, by both of Ollama's routes, over the mock engine."""

from __future__ import annotations

import httpx
import ollama
import pytest

from server.app import create_app
from server.config import Config
from tests.serving import build_registry, mock_engine


async def test_vectors() -> None:
    registry = build_registry(mock_engine())
    transport = httpx.ASGITransport(create_app(Config(), registry))
    sdk = ollama.AsyncClient(host="http://localhost", transport=transport)
    try:
        one, two = await sdk.embed("mock", "hi"), await sdk.embed("mock:latest", ["hi", "ho"], truncate=True)
        short = await sdk.embed("mock", "hi", dimensions=2)
        old = await sdk.embeddings("mock", "hi")
        for fields in ({"input": 5}, {"input": [""]}, {"input": "x", "dimensions": 0}, {"input": ["x"] * 2049}):
            with pytest.raises(ollama.ResponseError, match=r"input|dimensions") as raised:
                await sdk._request(dict, "POST", "/api/embed", json={"model": "mock", **fields})
            assert raised.value.status_code == 400
        with pytest.raises(ollama.ResponseError, match="4096"):
            await sdk.embed("mock", "x" * 5000)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            odd = await client.post("/api/embed", json={"input": "hi", "odd": 1, "keep_alive": "1m"})
    finally:
        await registry.close()
    assert (one.model, len(one.embeddings), len(two.embeddings), len(short.embeddings[0])) == ("mock", 1, 2, 2)
    assert list(one.embeddings[0]) == list(two.embeddings[0]) == list(old.embedding) != list(two.embeddings[1])
    assert (one.prompt_eval_count, two.prompt_eval_count) == (3, 6)
    assert one.total_duration is not None and one.load_duration is not None
    assert one.total_duration >= one.load_duration >= 1
    assert odd.headers["x-pippin-ignored-fields"] == "keep_alive, odd"
