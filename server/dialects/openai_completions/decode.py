"""Decode the body of `/v1/completions` into a job: defaults and refusals. Independent of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.dialects.openai_completions.schema import CompletionRequest
from server.dialects.openai_grammar import decode_grammar
from server.dialects.openai_names import COMPLETION_NAMES
from server.dialects.openai_prompts import is_one
from server.dialects.openai_shared import (
    NO_EFFECT,
    UNSUPPORTED,
    check_extra,
    check_stream_options,
    decode_breakers,
    decode_prediction,
    decode_sampling,
    given_fields,
)
from server.dialects.priorities import decode_priority
from server.errors import InvalidRequest
from server.service.job import GenerationJob, InfillPrompt, Prompt, TextPrompt, TokenPrompt

DEFAULT_MAX_TOKENS = 16

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **UNSUPPORTED,
    "prompt_embeds": (),
}


def decode(body: CompletionRequest, request_id: str) -> tuple[GenerationJob, list[str]]:
    """Return the job and the names of the ignored fields. Raises InvalidRequest."""
    ignored = check_extra(body.model_extra or {}, _UNSUPPORTED, NO_EFFECT)
    ignored += check_stream_options(body)
    best_of = _decode_best_of(body)
    ranks = best_of > (body.n or 1)
    job = GenerationJob(
        request_id=f"cmpl-{request_id}",
        model=body.model or "",
        prompts=_decode_prompts(body),
        names=COMPLETION_NAMES,
        n=best_of,
        max_tokens=body.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        sampling=decode_sampling(body, (body.logprobs or 0) if ranks else body.logprobs),
        stop=tuple(body.stop or ()),
        grammar=decode_grammar(body),
        given=given_fields(body, body.max_tokens),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        dry_sequence_breakers=decode_breakers(body),
        bad_words=tuple(body.bad_words or ()),
        cache_salt=body.cache_salt or "",
        uses_prefix_cache=body.prefix_cache is not False,
        prediction=decode_prediction(body),
        speculates=body.speculation is not False,
        priority=decode_priority(body.priority, body.service_tier),
        num_prompt_logprobs=body.logprobs if body.echo else None,
        keeps_transcript=bool(body.echo or ranks or body.return_token_ids),
    )
    return job, ignored


def _decode_best_of(body: CompletionRequest) -> int:
    """Return the number of continuations per prompt; the answer shows `n` of them."""
    n = body.n or 1
    best_of = body.best_of or n
    if best_of < n:
        raise _invalid("best_of", f"'best_of' ({best_of}) must not be less than 'n' ({n}).")
    if best_of > n and body.stream:
        raise _invalid("best_of", "'best_of' cannot be streamed when it is more than 'n'.")
    return best_of


def _decode_prompts(body: CompletionRequest) -> tuple[Prompt, ...]:
    prompts = [body.prompt] if is_one(body.prompt) else body.prompt
    return tuple(_decode_prompt(item, body) for item in prompts)


def _decode_prompt(item: Any, body: CompletionRequest) -> Prompt:
    if body.suffix:
        return _decode_infill(item, body.suffix, bool(body.echo))
    if not isinstance(item, str):
        return TokenPrompt(tuple(item))
    return TextPrompt(item, add_special_tokens=body.add_special_tokens is not False)


def _decode_infill(prefix: Any, suffix: str, echo: bool) -> InfillPrompt:
    if not isinstance(prefix, str):
        raise _invalid("suffix", "'suffix' needs a prompt that is text.")
    if echo:
        raise _invalid("echo", "'echo' and 'suffix' cannot be combined.")
    return InfillPrompt(prefix, suffix)


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
