"""Encoding of vectors to the body of an answer, as numbers or as their bytes."""

from __future__ import annotations

import base64
from typing import Any

from server.dialects.openai_written import dump
from server.service.embedding import Embeddings, numbers


def encode(embeddings: Embeddings, *, as_base64: bool) -> str:
    """Return the JSON answer."""
    data = [
        {"object": "embedding", "index": index, "embedding": _encode_vector(vector, as_base64)}
        for index, vector in enumerate(embeddings.vectors)
    ]
    usage = {"prompt_tokens": embeddings.num_prompt_tokens, "total_tokens": embeddings.num_prompt_tokens}
    return dump({"object": "list", "data": data, "model": embeddings.model_id, "usage": usage})


def _encode_vector(vector: bytes, as_base64: bool) -> Any:
    return base64.b64encode(vector).decode("ascii") if as_base64 else numbers(vector)
