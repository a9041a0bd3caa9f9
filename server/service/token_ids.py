"""The token ids that a job's sampling needs beside its prompts: what ends it, what XTC keeps, what breaks DRY,
what bad words are.

Knows the tokenizer's side and the bounds of the vocabulary; how the engine uses the ids, it does not.
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
"""Those of the method's author."""


def resolve_sampling(job: GenerationJob, tokenizer: Tokenizer, vocab_size: int) -> SamplingParams:
    """The job's parameters with the ids of texts filled in. Raises APIError for ids that the model has not."""
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
    """What ends a sequence. Raises APIError for ids that the model has not, and where nothing could be drawn."""
    check_known(job.stop_token_ids, vocab_size, job.names.stop_token_ids)
    ignores_end = job.ignore_eos and job.grammar is None  # a grammar's own end is one of them
    stop_ids = frozenset(job.stop_token_ids) | (frozenset() if ignores_end else frozenset(tokenizer.eos_ids))
    allowed, names = job.sampling.allowed_token_ids, job.names
    if job.min_tokens and allowed and stop_ids.issuperset(allowed):
        raise InvalidRequest(
            f"Every one of '{names.allowed_token_ids}' ends the output, which '{names.min_tokens}' does not let it do.",
            param=names.min_tokens,
            code="invalid_value",
        )
    return stop_ids


def check_min_tokens(min_tokens: int, max_tokens: int, names: FieldNames) -> None:
    """Raises InvalidRequest where there is no room for them."""
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"'{names.min_tokens}' ({min_tokens}) is more than the output may have ({max_tokens}).",
            param=names.min_tokens,
            code="invalid_value",
        )


def check_known(ids: Iterable[int], vocab_size: int, param: str) -> None:
    """Raises APIError, naming `param`, for the first id that the model has not."""
    unknown = next((token_id for token_id in ids if not 0 <= token_id < vocab_size), None)
    if unknown is not None:
        raise to_api_error(UnknownToken(unknown, vocab_size), param)


def _last_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, ...]:
    """The token in which each text ends where it follows a letter; texts that the tokenizer drops have none."""
    letter = tokenizer.encode("a", add_special_tokens=False)
    encoded = [tokenizer.encode(f"a{text}", add_special_tokens=False) for text in texts]
    return tuple(sorted({ids[-1] for ids in encoded if ids and ids != letter}))


def _spellings(tokenizer: Tokenizer, words: Iterable[str]) -> list[tuple[int, ...]]:
    """The tokens of each word: with a space before it and without, at a text's beginning and within it."""
    before = tokenizer.encode(_LINE_END, add_special_tokens=False)
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip(" ")
        if bare and not tokenizer.encode(bare, add_special_tokens=False):
            continue  # the tokenizer drops it, and would leave the space
        for text in (bare or word, " " + bare):
            within = tokenizer.encode(_LINE_END + text, add_special_tokens=False)
            found[tuple(tokenizer.encode(text, add_special_tokens=False))] = None
            if within[: len(before)] == before:
                found[tuple(within[len(before) :])] = None
    return [ids for ids in found if ids]
