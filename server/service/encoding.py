"""Prompts to token ids: through the chat template, without the oldest turns where they would not fit.

Long texts are encoded on threads of their own, a few at a time: they take neither the event loop nor all of the memory.
Knows nothing of HTTP or of any dialect.
"""

from __future__ import annotations

import asyncio
import contextvars
from bisect import bisect_left
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from mlx_backend.api.errors import ContextLengthExceeded
from mlx_backend.api.interface import ModelInfo
from server.errors import InvalidRequest, UnsupportedParameter, to_api_error
from server.heap import give_back
from server.service.job import ChatPrompt, GenerationJob, InfillPrompt, Prompt, TextPrompt, TokenPrompt
from server.text.borders import Borders
from server.text.bounded_encoding import TooLong, count_tokens, encode_up_to
from server.text.chat_template import TemplateError
from server.text.infill import InfillUnsupported, encode_infill
from server.text.parsers.parts import Start
from server.text.prefill import Rendered, render_prompt
from server.text.tokenizer import Tokenizer
from server.text.truncation import count_droppable, without_oldest
from server.text.volatile import with_reminders

T = TypeVar("T")

LONG_TEXT_CHARS = 20_000
"""Encoding a longer text leaves the event loop to others meanwhile."""
_MOST_CHARS_PER_TOKEN = 8
"""What is beyond so many characters of a prediction is not encoded: few texts have so few tokens."""
_AT_ONCE = 2
"""Long texts that are encoded together. A tokenizer takes hundreds of bytes per token while it is at it."""

_threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="text")


async def run_in_text_thread(work: Callable[..., T], *arguments: Any) -> T:
    """The result of work that takes long, done on a thread of its own, a little later where many want that."""
    call = partial(contextvars.copy_context().run, work, *arguments)
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(_threads, call)
    finally:
        loop.run_in_executor(_threads, give_back)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt's tokens, and how many of the oldest were left out so that it fits."""

    ids: tuple[int, ...]
    num_truncated_tokens: int = 0
    end_ids: frozenset[int] = frozenset()
    """Tokens that end what follows this kind of prompt, beside the model's own."""
    begins: Start = "before"
    borders: Borders = field(default_factory=Borders)


FindBorders = Callable[..., Borders]
"""`BorderFinder.find`, told whether positions are wanted."""


async def encode_prompt(
    tokenizer: Tokenizer, prompt: Prompt, job: GenerationJob, context: int, limit: int | None, find: FindBorders | None
) -> Encoded:
    """Token ids of one prompt, of a chat at most `limit` where that can be had by leaving turns out.

    Raises APIError, naming the wire's parameter. What is much longer than `context` is refused before all is encoded.
    """
    if isinstance(prompt, TokenPrompt):
        encoded = Encoded(prompt.ids)
    elif _text_length(prompt) > LONG_TEXT_CHARS:
        encoded = await run_in_text_thread(_encode_text, tokenizer, prompt, job, context, limit, find)
    else:
        encoded = _encode_text(tokenizer, prompt, job, context, limit, find)
    if not encoded.ids:
        raise InvalidRequest(
            f"Invalid value for '{job.names.prompt}': the prompt is empty.",
            param=job.names.prompt,
            code="invalid_value",
        )
    return encoded


async def encode_prediction(tokenizer: Tokenizer, job: GenerationJob, info: ModelInfo) -> tuple[int, ...]:
    """Token ids of what a job's answers are expected to be, as far as they may be used; none where nothing is drafted.

    Raises InvalidRequest for what is not valid Unicode.
    """
    text = job.prediction
    if not text or not info.max_drafts or not job.speculates:
        return ()
    most = info.context_limit if job.max_tokens is None else min(job.max_tokens, info.context_limit)
    text = text[: most * _MOST_CHARS_PER_TOKEN]
    try:
        if len(text) > LONG_TEXT_CHARS:
            ids = await run_in_text_thread(partial(tokenizer.encode, text, add_special_tokens=False))
        else:
            ids = tokenizer.encode(text, add_special_tokens=False)
    except UnicodeError as error:
        name = job.names.prediction
        raise InvalidRequest(f"Invalid value for '{name}': it is not valid Unicode.", param=name) from error
    return tuple(ids[:most])


def _encode_text(
    tokenizer: Tokenizer,
    prompt: TextPrompt | ChatPrompt | InfillPrompt,
    job: GenerationJob,
    context: int,
    limit: int | None,
    find: FindBorders | None,
) -> Encoded:
    param = job.names.prompt
    try:
        if isinstance(prompt, ChatPrompt):
            _check_tools(tokenizer, prompt, job.names.tools)
            return _ChatEncoder(tokenizer, prompt, context, find).encode(limit)
        if isinstance(prompt, InfillPrompt):
            infill = encode_infill(tokenizer, prompt.prefix, prompt.suffix, context)
            return Encoded(infill.ids, end_ids=infill.end_ids)
        ids = encode_up_to(tokenizer, prompt.text, context, add_special_tokens=prompt.add_special_tokens)
        return Encoded(tuple(ids) if prompt.text else ())
    except TooLong as error:
        wanted = 1 if job.max_tokens is None else job.max_tokens
        raise to_api_error(ContextLengthExceeded(error.num_tokens, wanted, context, is_least=True), param) from error
    except InfillUnsupported as error:
        name = job.names.suffix
        raise UnsupportedParameter(name, f"The parameter '{name}' is not supported: {error}.") from error
    except TemplateError as error:
        raise InvalidRequest(str(error), param=param, code="invalid_value") from error
    except UnicodeError as error:
        raise InvalidRequest(f"Invalid value for '{param}': it is not valid Unicode.", param=param) from error


def _check_tools(tokenizer: Tokenizer, prompt: ChatPrompt, param: str) -> None:
    if prompt.tools and not tokenizer.chat_format.has_tools:
        raise UnsupportedParameter(param, f"The parameter '{param}' is not supported: the model cannot call any.")


@dataclass(frozen=True, slots=True)
class _ChatEncoder:
    """A chat's prompt to token ids, whole or without its oldest turns."""

    tokenizer: Tokenizer
    prompt: ChatPrompt
    context: int
    find: FindBorders | None

    def encode(self, limit: int | None) -> Encoded:
        """Without as few of the oldest turns as make it fit; whole where not even the last turn alone would.

        Raises TooLong where it is whole, and longer than the context.
        """
        rendered = self._render(0)
        whole = self._ids(rendered)
        if _fits(whole, limit) or limit is None:
            return self._encoded(rendered, whole)
        turns = range(1, count_droppable(self.prompt.messages) + 1)
        place = bisect_left(turns, True, key=lambda num_turns: _fits(self._ids(self._render(num_turns)), limit))
        if place == len(turns):
            return self._encoded(rendered, whole)
        shorter = self._render(turns[place])
        fitting = self._encoded(shorter, self._ids(shorter), turns[place])
        num_tokens = count_tokens(self.tokenizer, rendered.text) if isinstance(whole, TooLong) else len(whole)
        return replace(fitting, num_truncated_tokens=num_tokens - len(fitting.ids))

    def _render(self, num_turns: int) -> Rendered:
        """The prompt's text without so many turns."""
        prompt = self.prompt
        messages = with_reminders(without_oldest(prompt.messages, num_turns), prompt.reminders)
        return render_prompt(self.tokenizer, messages, prompt.template_kwargs, prompt.tools, prompt.ending)

    def _ids(self, rendered: Rendered) -> tuple[int, ...] | TooLong:
        """The text's tokens, no more than the context has; the template has written the special ones."""
        try:
            return tuple(encode_up_to(self.tokenizer, rendered.text, self.context, add_special_tokens=False))
        except TooLong as error:
            return error

    def _encoded(self, rendered: Rendered, ids: tuple[int, ...] | TooLong, num_turns: int = 0) -> Encoded:
        if isinstance(ids, TooLong):
            raise ids
        if self.find is None:
            return Encoded(ids, begins=rendered.begins)
        prompt = self.prompt
        # without reminders, so that the last border is before them: the next prompt has others
        messages = without_oldest(prompt.messages, num_turns)
        borders = self.find(ids, messages, prompt.template_kwargs, prompt.tools, prompt.ending)
        return Encoded(ids, begins=rendered.begins, borders=borders)


def _fits(ids: tuple[int, ...] | TooLong, limit: int | None) -> bool:
    return not isinstance(ids, TooLong) and (limit is None or len(ids) <= limit)


def _text_length(prompt: TextPrompt | ChatPrompt | InfillPrompt) -> int:
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, InfillPrompt):
        return len(prompt.prefix) + len(prompt.suffix)
    return _num_chars((prompt.messages, prompt.tools))


def _num_chars(value: object) -> int:
    """About as many as a template may write of it."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_num_chars, value.values()))
    return sum(map(_num_chars, value)) if isinstance(value, (list, tuple)) else 1
