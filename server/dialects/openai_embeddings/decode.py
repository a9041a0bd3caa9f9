"""Decoding of the body of `/v1/embeddings` to a job. Decides refusals; independent of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.dialects.openai_embeddings.schema import EmbeddingRequest
from server.dialects.openai_prompts import is_one
from server.dialects.openai_refusals import NO_EFFECT, check_extra
from server.dialects.priorities import decode_priority
from server.service.embedding import EmbeddingJob
from server.service.job import TextPrompt, TokenPrompt

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "embed_dtype": ("float32",),
    "embedding_types": (["float"],),
    "input_type": (),
    "instruction": ("",),
    "messages": (),
    "normalize": (),
    "output_dtype": ("float",),
    "prompt_name": (),
    "truncate": ("NONE", False),
    "truncate_prompt_tokens": (),
}
"""Fields of other servers' embeddings APIs; as in `openai_refusals`."""


def decode(body: EmbeddingRequest, request_id: str) -> tuple[EmbeddingJob, list[str]]:
    """Return the job, and the names of ignored fields. Raises InvalidRequest."""
    ignored = check_extra(body.model_extra or {}, _UNSUPPORTED, NO_EFFECT)
    inputs: list[Any] = [body.input] if is_one(body.input) else list(body.input)
    job = EmbeddingJob(
        request_id=f"embd-{request_id}",
        model=body.model or "",
        inputs=tuple(TextPrompt(item) if isinstance(item, str) else TokenPrompt(tuple(item)) for item in inputs),
        params=("input",) if is_one(body.input) else tuple(f"input.{place}" for place in range(len(inputs))),
        dimensions=body.dimensions,
        dimensions_param="dimensions",
        priority=decode_priority(body.priority),
    )
    return job, ignored
