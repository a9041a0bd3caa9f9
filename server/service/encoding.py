"""Conversion of prompts to token ids, through the chat template and without the oldest turns if they do not fit.

Long texts are encoded on separate threads, a few at a time, to spare the event loop and the memory.
Independent of HTTP and of dialects.
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
"""A longer text is encoded on another thread."""
_MOST_CHARS_PER_TOKEN = 8
"""Characters of a prediction encoded per usable token: few texts have fewer tokens."""
_AT_ONCE = 2
"""Long texts that are encoded at once. A tokenizer uses hundreds of bytes per token while encoding."""

_threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="text")


async def run_in_text_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run long work on a text thread and return its result; it queues while all text threads are busy."""
    call = partial(contextvars.copy_context().run, work, *arguments)
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(_threads, call)
    finally:
        loop.run_in_executor(_threads, give_back)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of one prompt, and the number of oldest ones dropped to fit it."""

    ids: tuple[int, ...]
    num_truncated_tokens: int = 0
    end_ids: frozenset[int] = frozenset()
    """Tokens that end the output for this kind of prompt, beside the model's own."""
    begins: Start = "before"
    borders: Borders = field(default_factory=Borders)


FindBorders = Callable[..., Borders]
"""`BorderFinder.find` with its choice of positions bound."""


async def encode_prompt(
    tokenizer: Tokenizer, prompt: Prompt, job: GenerationJob, context: int, limit: int | None, find: FindBorders | None
) -> Encoded:
    """Return the token ids of one prompt; for a chat at most `limit` if dropping turns can achieve that.

    Raises APIError with the parameter's wire name. A prompt much longer than `context` is refused early.
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
    """Return the token ids of a job's prediction that drafting may use; empty without drafting.

    Raises InvalidRequest for invalid Unicode.
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
        raise UnsupportedParameter(param, f"The parameter '{param}' is not supported: the model cannot call tools.")


@dataclass(frozen=True, slots=True)
class _ChatEncoder:
    """Encoder of a chat's prompt, whole or without its oldest turns."""

    tokenizer: Tokenizer
    prompt: ChatPrompt
    context: int
    find: FindBorders | None

    def encode(self, limit: int | None) -> Encoded:
        """Encode without the fewest oldest turns that make it fit; whole if not even the last turn alone fits.

        Raises TooLong if the whole prompt is returned and exceeds the context.
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
        """Return the prompt's text without its `num_turns` oldest turns."""
        prompt = self.prompt
        messages = with_reminders(without_oldest(prompt.messages, num_turns), prompt.reminders)
        return render_prompt(self.tokenizer, messages, prompt.template_kwargs, prompt.tools, prompt.ending)

    def _ids(self, rendered: Rendered) -> tuple[int, ...] | TooLong:
        """Return the text's tokens, at most the context's length; the template has written the special ones."""
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
        # without reminders: the next prompt has others, so the last border must precede them
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
    """Return about the number of characters that a template writes for it."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_num_chars, value.values()))
    return sum(map(_num_chars, value)) if isinstance(value, (list, tuple)) else 1
