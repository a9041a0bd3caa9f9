"""Encode scores as the bodies of answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from server.dialects.openai_written import dump
from server.service.scoring import Scores


def encode_rerank(id: str, scores: Scores, documents: Sequence[str] | None, top_n: int | None, *, raw: bool) -> str:
    """Return the JSON answer, most relevant first, ties in request order. `documents` None: they are left out."""
    values = scores.log_odds if raw else scores.probabilities
    order = sorted(range(len(values)), key=lambda index: -scores.log_odds[index])[: top_n or None]
    results: list[dict[str, Any]] = []
    for index in order:
        document = {} if documents is None else {"document": {"text": documents[index]}}
        results.append({"index": index, **document, "relevance_score": values[index]})
    return dump({"id": id, "model": scores.model_id, "usage": _usage(scores), "results": results})


def encode_score(id: str, scores: Scores, *, raw: bool) -> str:
    """Return the JSON answer, in the order of the pairs."""
    values = enumerate(scores.log_odds if raw else scores.probabilities)
    data = [{"index": index, "object": "score", "score": value} for index, value in values]
    head = {"id": id, "object": "list", "created": int(time.time()), "model": scores.model_id}
    return dump({**head, "data": data, "usage": _usage(scores)})


def _usage(scores: Scores) -> dict[str, int]:
    return {"prompt_tokens": scores.num_prompt_tokens, "total_tokens": scores.num_prompt_tokens}
