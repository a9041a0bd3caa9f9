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
from dataclasses import dataclass, field
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
        raise InvalidRequest("Invalid value for 'prediction': it is not valid Unicode.", param="prediction") from error
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
            return _encode_chat(tokenizer, prompt, job.names.tools, context, limit, find)
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


def _encode_chat(
    tokenizer: Tokenizer,
    prompt: ChatPrompt,
    tools_name: str,
    context: int,
    limit: int | None,
    find: FindBorders | None,
) -> Encoded:
    """Without as few of the oldest turns as make it fit; whole where not even the last turn alone would."""

    def render(num_turns: int) -> Rendered:
        messages = with_reminders(without_oldest(prompt.messages, num_turns), prompt.reminders)
        return render_prompt(tokenizer, messages, prompt.template_kwargs, prompt.tools, prompt.ending)

    def encode(text: str) -> tuple[int, ...]:  # the template has written the special tokens
        return tuple(encode_up_to(tokenizer, text, context, add_special_tokens=False))

    def encoded(ids: tuple[int, ...], num_turns: int = 0, num_left_out: int = 0) -> Encoded:
        # without reminders, so that the last border is before them: the next prompt has others
        messages = without_oldest(prompt.messages, num_turns)
        found = find(ids, messages, prompt.template_kwargs, prompt.tools, prompt.ending) if find else Borders()
        return Encoded(ids, num_left_out, begins=rendered.begins, borders=found)

    def tried(num_turns: int) -> tuple[int, ...] | TooLong:
        try:
            return encode(render(num_turns).text)
        except TooLong as error:
            return error

    def fits(found: tuple[int, ...] | TooLong) -> bool:
        return not isinstance(found, TooLong) and (limit is None or len(found) <= limit)

    if prompt.tools and not tokenizer.chat_format.has_tools:
        message = f"The parameter '{tools_name}' is not supported: the model cannot call any."
        raise UnsupportedParameter(tools_name, message)
    rendered = render(0)
    whole = tried(0)
    most = 0 if limit is None or fits(whole) else count_droppable(prompt.messages)
    found = bisect_left(range(most + 1), True, lo=1, key=lambda num_turns: fits(tried(num_turns)))
    if found > most:
        if isinstance(whole, TooLong):
            raise whole
        return encoded(whole)
    fitting = encode(render(found).text)
    num_tokens = count_tokens(tokenizer, rendered.text) if isinstance(whole, TooLong) else len(whole)
    return encoded(fitting, found, num_tokens - len(fitting))


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
