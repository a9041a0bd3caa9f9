"""Generation jobs: resolve the model, encode the prompts, fit them into the limits, admit, generate.

`open` covers everything that can still fail with a status code; the OutputStream it returns does the rest.
Independent of HTTP and of dialects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from math import inf

from mlx_backend.api.errors import ContextLengthExceeded, EngineDead, TooManyPrompts, UnknownToken
from mlx_backend.api.interface import (
    GenerationRequest,
    MockText,
    ModelInfo,
    PrefillProgress,
    PromptEvent,
    StreamEvent,
    TokenEvent,
    TokenStream,
)
from server.errors import InvalidRequest, to_api_error
from server.security.refusals import KeyRevoked
from server.service.defaults import with_defaults
from server.service.encoding import Encoded, FindBorders, encode_prediction, encode_prompt
from server.service.grammars import compile_grammar, is_held
from server.service.job import ChatPrompt, GenerationJob, Prompt
from server.service.live import LiveRequest
from server.service.next_turn import NextTurn, next_turn_of
from server.service.record import JobRecord, log_prompts
from server.service.registry import ModelRegistry, ServedModel
from server.service.residency import Lease
from server.service.timings import JobTimings
from server.service.token_ids import check_min_tokens, resolve_sampling, resolve_stop_ids
from server.service.transcript import Transcript
from server.text.events import Finished, OutputEvent
from server.text.parsers.chat import build_parser
from server.text.parsers.parts import OutputParser
from server.text.pipeline import ChoicePipeline
from server.text.tokenizer import Tokenizer

_USUAL_OUTPUT_TOKENS = 1024
"""Assumed length of an answer without a limit, if its key has a token limit; further tokens are counted as they
come."""
MOST_LOGPROBS = 1_000_000
"""Limit for the tokens of an unstreamed answer and for all prompts; about 60 bytes each."""
_LEAST_ROOM = 1024
"""Tokens reserved for an answer of unknown length if oldest turns may be dropped; at most a quarter of the limit."""


async def open(
    registry: ModelRegistry, job: GenerationJob, *, truncates: bool = False, is_whole: bool = False
) -> OutputStream:
    """Admit a job. `truncates`: drop the oldest turns of a chat that is too long.

    `is_whole`: the output is collected until its end.

    Raises APIError and EngineError, with everything released.
    """
    started_at = time.perf_counter()
    log_prompts(job.request_id, job.prompts)
    lease = await registry.acquire(job.model)
    load_s = time.perf_counter() - started_at
    try:
        stream = await _open(lease, registry.adapter_of(job.model), job, started_at, truncates, is_whole)
    except BaseException:
        lease.release()
        raise
    stream.lease, stream.load_s = lease, load_s
    return stream


async def _open(
    lease: Lease, adapter: str, job: GenerationJob, started_at: float, truncates: bool, is_whole: bool
) -> OutputStream:
    model = lease.model
    tokenizer, info = model.ready()
    _check_writes(model, info)
    job = with_defaults(job, model.defaults)
    limit = _prompt_limit(job, info.context_limit) if truncates else None
    find = _border_finding(model, info, job)
    encoded = [await encode_prompt(tokenizer, prompt, job, info.context_limit, limit, find) for prompt in job.prompts]
    prompts = [each.ids for each in encoded]
    sampling = resolve_sampling(job, tokenizer, info.vocab_size)
    stop_ids = resolve_stop_ids(job, tokenizer, info.vocab_size)
    prediction_ids = await encode_prediction(tokenizer, job, info)
    grammars = []
    for prompt, each in zip(job.prompts, encoded, strict=True):
        grammar = await compile_grammar(model.grammars, tokenizer, job, prompt, begins=each.begins)
        if grammar is not None:
            lease.on_release(grammar.release)
        grammars.append(grammar)
    texts: list[MockText | None] = [None] * len(prompts)
    if model.author is not None:
        has_grammar = [grammar is not None for grammar in grammars]
        texts = await asyncio.to_thread(model.author.write, tokenizer, job, prompts, has_grammar)
    requests = [
        GenerationRequest(
            request_id=f"{job.request_id}-{position}",
            prompt_ids=ids,
            max_tokens=_choose_max_tokens(job, len(ids), info.context_limit),
            n=job.n,
            sampling=sampling,
            stop_ids=stop_ids if job.ignore_eos else stop_ids | encoded[position].end_ids,
            min_tokens=job.min_tokens,
            num_prompt_logprobs=job.num_prompt_logprobs,
            grammar=grammars[position],
            uses_prefix_cache=job.uses_prefix_cache,
            cache_salt=job.tenant.salt(job.cache_salt),
            tenant=job.tenant.name,
            priority=job.tenant.allow(job.priority),
            adapter=adapter,
            system_border=encoded[position].borders.system,
            cache_breakpoints=encoded[position].borders.positions,
            prediction_ids=prediction_ids,
            speculates=job.speculates,
            mock=texts[position],
        )
        for position, ids in enumerate(prompts)
    ]
    _check_logprobs(job, requests, is_whole)
    job.tenant.revocation.check()
    rate_grant = job.tenant.reserve(_num_needed(job, requests))
    model.ahead.stop()
    try:
        tokens = model.engine.submit(requests)
    except UnknownToken as error:
        rate_grant.settle(0)
        raise to_api_error(error, job.names.logit_bias if error.is_bias else job.names.prompt) from error
    except TooManyPrompts as error:
        rate_grant.settle(0)
        raise to_api_error(error, job.names.prompt) from error
    except BaseException:
        rate_grant.settle(0)
        raise
    num_truncated = sum(each.num_truncated_tokens for each in encoded)
    record = JobRecord(
        *(job.request_id, model.name_with(adapter), sum(map(len, prompts)), started_at, num_truncated),
        measures=model.measures,
        num_choices=len(prompts) * job.n,
        has_prediction=job.prediction is not None,
        tenant=job.tenant,
        rate_grant=rate_grant,
        priority=job.tenant.allow(job.priority),
    )
    transcript = Transcript(tokenizer, job.prompts, prompts, job.n) if job.keeps_transcript else None
    pairs = list(zip(job.prompts, encoded, strict=True))
    parsers = [_parser(tokenizer, job, prompt, each) for prompt, each in pairs for _ in range(job.n)]
    stream = OutputStream(job, tokens, tokenizer, record, parsers, transcript)
    stream.next_turn = next_turn_of(model, job, requests, is_cut=num_truncated > 0)
    least = min(request.max_tokens for request in requests)
    stream.shortened_to = least if job.max_tokens is not None and least < job.max_tokens else None
    return stream


class OutputStream:
    """Output of one job: batches of OutputEvent, each with all available events; Usage is the last.

    Raises EngineError when the engine fails. Owned and closed by one reader.
    """

    def __init__(
        self,
        job: GenerationJob,
        tokens: TokenStream,
        tokenizer: Tokenizer,
        record: JobRecord,
        parsers: Sequence[OutputParser | None],
        transcript: Transcript | None = None,
    ) -> None:
        wants_logprobs = job.sampling.num_logprobs is not None
        self.shortened_to: int | None = None
        """The `max_tokens` of the shortest answer, if less than requested."""
        self._tokens = tokens
        self._batches = aiter(tokens)
        self._choices = [
            ChoicePipeline(index, tokenizer, job.stop, wants_logprobs, parser, job.min_tokens)
            for index, parser in enumerate(parsers)
        ]
        self._num_open = len(parsers)
        self._record = record
        self.transcript = transcript
        """Transcript, if the job keeps one; ahead of the events by at most their batch."""
        self.lease: Lease | None = None
        """Lease of the model, released with the stream."""
        self.load_s = 0.0
        """Seconds until the model was loaded."""
        self.next_turn: NextTurn | None = None
        """The answer's content, kept to compute the beginning of the next prompt."""
        self._is_done = False
        self._is_closed = False
        self._max_output_tokens = None if job.max_tokens is None else job.max_tokens * len(parsers)
        self._leave = record.measures.live.add(self._describe)
        self._unwatch = job.tenant.revocation.watch(self._revoke)

    @property
    def model_id(self) -> str:
        return self._record.model_id

    @property
    def num_prompt_tokens(self) -> int:
        return self._record.num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens from the prefix cache; final after the first event."""
        return self._tokens.num_cached_tokens

    @property
    def num_truncated_tokens(self) -> int:
        """Prompt tokens dropped to fit the context."""
        return self._record.num_truncated_tokens

    @property
    def progress(self) -> PrefillProgress:
        return self._tokens.progress

    @property
    def timings(self) -> JobTimings:
        """Durations up to now; of the whole job once it has ended."""
        return self._record.timings(self.load_s, self._tokens.queue_time_s)

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> list[OutputEvent]:
        if self._is_done or self._is_closed:
            raise StopAsyncIteration
        events: list[OutputEvent] = []
        try:
            while not events:
                self._take(await anext(self._batches), events)
        except StopAsyncIteration:
            if self._record.error is None:
                self._record.error = EngineDead("the engine ended the stream before all choices finished")
            raise self._record.error from None
        except Exception as error:
            self._record.error = error
            raise
        if self._num_open == 0:
            self._is_done = True
            self._record.drafted = self._tokens.drafted
            events.append(self._record.usage(self._tokens.num_cached_tokens))
        return events

    async def aclose(self) -> None:
        """Abort unfinished choices and write the job's log line. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._leave()
        self._unwatch()
        try:
            await self._tokens.aclose()
        finally:
            if self.lease is not None:
                self.lease.release()
            self._record.add_to_measures(self._is_done)
            self._record.write(self._tokens.num_cached_tokens, self._is_done)
        if self._is_done and self.next_turn is not None:
            self.next_turn.begin()

    def _revoke(self) -> None:
        """Abort the output because the key was revoked. The next read raises the error."""
        if not self._is_done:
            self._record.error = KeyRevoked()
            for index in range(len(self._choices)):
                self._tokens.abort(index)

    def _describe(self) -> LiveRequest:
        """Return a snapshot for monitoring."""
        progress, record = self._tokens.progress, self._record
        return LiveRequest(
            request_id=record.request_id,
            kind="generation",
            state="writing" if record.is_begun else "waiting" if self._tokens.queue_time_s is None else "reading",
            started_at=record.started_at,
            num_prompt_tokens=record.num_prompt_tokens,
            num_computed_tokens=progress.num_computed_tokens,
            num_cached_tokens=self._tokens.num_cached_tokens,
            num_output_tokens=record.num_output_tokens,
            max_output_tokens=self._max_output_tokens,
        )

    def _take(self, batch: Sequence[StreamEvent], events: list[OutputEvent]) -> None:
        if not self._record.is_begun:
            self._record.begin(self._tokens.queue_time_s)
        if any(isinstance(event, TokenEvent) for event in batch):
            self._record.tick()
        for token in batch:
            choice = self._choices[token.index]
            if choice.done:
                continue  # the token arrived before the engine processed the end
            if self.transcript is not None:
                self.transcript.take(token)
            if isinstance(token, PromptEvent):
                self._take_prompt(token, events)
                continue
            self._record.num_output_tokens += 1
            new = choice.feed(token)
            events += new
            if self.next_turn is not None:
                self.next_turn.take(token, new)
            if choice.done:
                self._num_open -= 1
                self._record.finished += [event for event in new if isinstance(event, Finished)]
                if token.finish_reason is None:  # a stop string ended it; the engine does not check those
                    self._tokens.finish(token.index)

    def _take_prompt(self, event: PromptEvent, events: list[OutputEvent]) -> None:
        if event.finish_reason is not None:
            self._num_open -= 1
            self._record.finished.append(Finished(event.index, event.finish_reason, 0))
            events.append(self._record.finished[-1])


def _check_writes(model: ServedModel, info: ModelInfo) -> None:
    """Refuse what a sequence classifier cannot do. Raises InvalidRequest."""
    if info.scoring is not None and info.scoring.kind == "head":
        message = f"The model '{model.id}' is a classifier and writes no text: ask it for scores, at /v1/rerank."
        raise InvalidRequest(message, param="model", code="unsupported_model")


def _check_logprobs(job: GenerationJob, requests: Sequence[GenerationRequest], is_whole: bool) -> None:
    """Raise InvalidRequest for more log-probabilities than an answer may have."""
    num_prompt, num_output = job.num_prompt_logprobs, job.sampling.num_logprobs if is_whole else None
    number = 0
    for request in requests:
        if num_prompt is not None:
            number += job.n * len(request.prompt_ids) * (1 + num_prompt)
        if num_output is not None and job.max_tokens is not None:
            number += job.n * request.max_tokens * (1 + num_output)
    if number > MOST_LOGPROBS:
        raise InvalidRequest(
            f"The answer would have up to {number} log-probabilities; the limit without streaming is {MOST_LOGPROBS}. "
            f"Set '{job.names.stream}', or request fewer tokens, choices or log-probabilities.",
            param=job.names.num_logprobs,
            code="answer_too_large",
        )


def _num_needed(job: GenerationJob, requests: Sequence[GenerationRequest]) -> int:
    """Return the tokens to reserve from the key's account; for an answer of unknown length, a usual length."""
    unknown = job.max_tokens is None and job.default_max_tokens is None
    most = _USUAL_OUTPUT_TOKENS if unknown else inf
    return sum(len(request.prompt_ids) + job.n * int(min(request.max_tokens, most)) for request in requests)


def _border_finding(model: ServedModel, info: ModelInfo, job: GenerationJob) -> FindBorders | None:
    """Return the border finder; None without a prefix cache, which needs no borders."""
    kept = info.prefix_cache
    if kept.reason is not None or not job.uses_prefix_cache:
        return None
    return partial(model.borders.find, with_positions=kept.needs_snapshots)


def _parser(tokenizer: Tokenizer, job: GenerationJob, prompt: Prompt, encoded: Encoded) -> OutputParser | None:
    """Return the parser for one choice; None for a plain prompt, whose answer is not parsed."""
    if not isinstance(prompt, ChatPrompt):
        return None
    only_one = not prompt.parallel_tool_calls
    return build_parser(
        tokenizer.chat_format,
        prompt.tools,
        begins=encoded.begins,
        only_one=only_one,
        is_held=is_held(prompt, job),
    )


def _prompt_limit(job: GenerationJob, limit: int) -> int:
    """Return the tokens available for a prompt beside the answer."""
    least = min(_LEAST_ROOM, limit // 4)
    wanted = job.max_tokens or least
    return limit - (min(wanted, least) if job.fits_max_tokens else wanted)


def _choose_max_tokens(job: GenerationJob, num_prompt_tokens: int, limit: int) -> int:
    """Return the job's `max_tokens`, or its default limited to the room. Raises APIError with the three numbers."""
    room = limit - num_prompt_tokens
    if job.max_tokens is not None:
        wanted = min(job.max_tokens, room) if job.fits_max_tokens and room > 0 else job.max_tokens
    elif job.default_max_tokens is not None:
        wanted = max(1, min(job.default_max_tokens, room))
    else:
        wanted = max(1, room)
    if wanted > room:
        raise to_api_error(ContextLengthExceeded(num_prompt_tokens, wanted, limit), job.names.prompt)
    check_min_tokens(job.min_tokens, wanted, job.names)
    return wanted
