"""`/api/embed` and the older `/api/embeddings`: bodies to a job, and vectors to answers."""

from __future__ import annotations

import time

from server.dialects.ollama.encode import nanoseconds
from server.dialects.ollama.schema import EmbeddingsRequest, EmbedRequest
from server.dialects.openai_prompts import MAX_PROMPTS
from server.dialects.openai_written import dump
from server.errors import InvalidRequest
from server.service.embedding import EmbeddingJob, Embeddings, numbers
from server.service.job import TextPrompt


def decode_embed(body: EmbedRequest, model: str, request_id: str) -> EmbeddingJob:
    """Decode a request. Raises InvalidRequest."""
    is_one = isinstance(body.input, str)
    inputs = [body.input] if isinstance(body.input, str) else body.input
    if len(inputs) > MAX_PROMPTS:
        message = f"'input': there may be at most {MAX_PROMPTS} texts, not {len(inputs)}."
        raise InvalidRequest(message, param="input", code="invalid_value")
    return EmbeddingJob(
        request_id=f"embed-{request_id}",
        model=model,
        inputs=tuple(map(TextPrompt, inputs)),
        params=("input",) if is_one else tuple(f"input.{place}" for place in range(len(inputs))),
        dimensions=body.dimensions,
        dimensions_param="dimensions",
    )


def decode_embeddings(body: EmbeddingsRequest, model: str, request_id: str) -> EmbeddingJob:
    return EmbeddingJob(
        request_id=f"embed-{request_id}",
        model=model,
        inputs=(TextPrompt(body.prompt),),
        params=("prompt",),
        dimensions_param="dimensions",
    )


def encode_embed(embeddings: Embeddings, began: float, loaded: float) -> str:
    """`began`, `loaded`: `time.perf_counter` at the request's arrival and once the model was loaded."""
    return dump(
        {
            "model": embeddings.model_id,
            "embeddings": list(map(numbers, embeddings.vectors)),
            "total_duration": nanoseconds(time.perf_counter() - began),
            "load_duration": nanoseconds(loaded - began),
            "prompt_eval_count": embeddings.num_prompt_tokens,
        }
    )


def encode_embeddings(embeddings: Embeddings) -> str:
    return dump({"embedding": numbers(embeddings.vectors[0])})
