"""Token ids that a job's sampling needs beside its prompts: stop tokens, tokens kept by XTC, DRY breakers,
bad words.

Covers the tokenizer and the bounds of the vocabulary; the engine uses the ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mlx_backend.api.errors import UnknownToken
from mlx_backend.api.interface import SamplingParams
from server.errors import InvalidRequest, to_api_error
from server.service.job import GenerationJob
from server.service.names import FieldNames
from server.text.tokenizer import Tokenizer

_LINE_END = "\n"
DRY_BREAKERS = ("\n", ":", '"', "*")
"""Breakers of the method's author."""


def resolve_sampling(job: GenerationJob, tokenizer: Tokenizer, vocab_size: int) -> SamplingParams:
    """Return the job's parameters with token ids for texts. Raises APIError for ids outside the vocabulary."""
    params = job.sampling
    check_known(params.allowed_token_ids, vocab_size, job.names.allowed_token_ids)
    if params.xtc_probability > 0:
        params = replace(params, xtc_kept_ids=_last_tokens(tokenizer, ("\n",)))
    if params.dry_multiplier > 0:
        breakers = DRY_BREAKERS if job.dry_sequence_breakers is None else job.dry_sequence_breakers
        params = replace(params, dry_breaker_ids=_last_tokens(tokenizer, breakers))
    if job.bad_words:
        words = (word for word in _spellings(tokenizer, job.bad_words) if max(word) < vocab_size)
        params = replace(params, bad_words=tuple(words))
    return params


def resolve_stop_ids(job: GenerationJob, tokenizer: Tokenizer, vocab_size: int) -> frozenset[int]:
    """Return the tokens that end a sequence. Raises APIError for unknown ids, or if none could be sampled."""
    check_known(job.stop_token_ids, vocab_size, job.names.stop_token_ids)
    ignores_end = job.ignore_eos and job.grammar is None  # a grammar ends with one of them
    stop_ids = frozenset(job.stop_token_ids) | (frozenset() if ignores_end else frozenset(tokenizer.eos_ids))
    allowed, names = job.sampling.allowed_token_ids, job.names
    if job.min_tokens and allowed and stop_ids.issuperset(allowed):
        raise InvalidRequest(
            f"Every token of '{names.allowed_token_ids}' ends the output, which '{names.min_tokens}' forbids.",
            param=names.min_tokens,
            code="invalid_value",
        )
    return stop_ids


def check_min_tokens(min_tokens: int, max_tokens: int, names: FieldNames) -> None:
    """Raise InvalidRequest if `min_tokens` exceeds `max_tokens`."""
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"'{names.min_tokens}' ({min_tokens}) exceeds the maximum output ({max_tokens}).",
            param=names.min_tokens,
            code="invalid_value",
        )


def check_known(ids: Iterable[int], vocab_size: int, param: str) -> None:
    """Raise APIError, naming `param`, for the first id outside the vocabulary."""
    unknown = next((token_id for token_id in ids if not 0 <= token_id < vocab_size), None)
    if unknown is not None:
        raise to_api_error(UnknownToken(unknown, vocab_size), param)


def _last_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, ...]:
    """Return the last token of each text when it follows a letter; texts that the tokenizer drops have none."""
    letter = tokenizer.encode("a", add_special_tokens=False)
    encoded = [tokenizer.encode(f"a{text}", add_special_tokens=False) for text in texts]
    return tuple(sorted({ids[-1] for ids in encoded if ids and ids != letter}))


def _spellings(tokenizer: Tokenizer, words: Iterable[str]) -> list[tuple[int, ...]]:
    """Return the tokens of each word: with and without a leading space, at the beginning of a text and within it."""
    before = tokenizer.encode(_LINE_END, add_special_tokens=False)
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip(" ")
        if bare and not tokenizer.encode(bare, add_special_tokens=False):
            continue  # the tokenizer drops it and keeps only the space
        for text in (bare or word, " " + bare):
            within = tokenizer.encode(_LINE_END + text, add_special_tokens=False)
            found[tuple(tokenizer.encode(text, add_special_tokens=False))] = None
            if within[: len(before)] == before:
                found[tuple(within[len(before) :])] = None
    return [ids for ids in found if ids]
