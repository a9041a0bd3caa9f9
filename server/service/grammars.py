"""A job's grammar, compiled for its model: off the event loop, and behind the thought where the model has one.

Knows what a grammar cannot be combined with; knows no wire.
"""

from __future__ import annotations

import asyncio
import json

from mlx_backend.interface import Grammar
from server.errors import InvalidRequest, UnsupportedParameter
from server.service.job import ChatPrompt, GenerationJob, GrammarWish, Prompt
from server.text.grammar import GrammarCompiler, GrammarError, GrammarSource, Thought
from server.text.parsers.parts import ChatFormat
from server.text.tokenizer import Tokenizer


async def compile_grammar(
    compiler: GrammarCompiler, tokenizer: Tokenizer, job: GenerationJob, prompt: Prompt, *, opens_thought: bool
) -> Grammar | None:
    """What each continuation of one of the job's prompts must follow; None for anything. Raises InvalidRequest."""
    wish = job.grammar
    try:
        if isinstance(prompt, ChatPrompt) and prompt.must_call:
            wish = _of_calls(tokenizer, prompt, wish)
        if wish is None:
            return None
        _check(job, wish)
        thought = thought_of(tokenizer, is_open=opens_thought) if isinstance(prompt, ChatPrompt) else None
        return await asyncio.to_thread(compiler.compile, wish.source, thought)
    except GrammarError as error:
        param = "tools" if wish is None else wish.param
        raise InvalidRequest(
            f"'{param}' cannot be honoured: {error}", param=param, code="unsupported_grammar"
        ) from error


def _of_calls(tokenizer: Tokenizer, prompt: ChatPrompt, other: GrammarWish | None) -> GrammarWish:
    """Calls of the prompt's tools in the model's own form. Raises InvalidRequest where that form is not known."""
    marks = tokenizer.chat_format
    if other is not None:
        message = f"'{other.param}' cannot be combined with a 'tool_choice' that requires a call."
        raise InvalidRequest(message, param=other.param, code="invalid_value")
    if not marks.is_json or not marks.tool_start or not marks.tool_end:
        raise UnsupportedParameter("tool_choice", "This model's calls cannot be required: use 'auto' or 'none'.")
    tags = _tag(tokenizer, marks.tool_start), _tag(tokenizer, marks.tool_end)
    source = GrammarSource.of_calls(prompt.tools, tags, only_one=not prompt.parallel_tool_calls)
    return GrammarWish(source, "tools")


def _tag(tokenizer: Tokenizer, text: str) -> str:
    """As a grammar names it: a special token by its id, else a text."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return f"<[{ids[0]}]>" if len(ids) == 1 and ids[0] in tokenizer.special_ids else json.dumps(text)


def thought_of(tokenizer: Tokenizer, *, is_open: bool) -> Thought | None:
    """The marks of the model's thoughts as tokens; None where it marks none."""
    marks: ChatFormat = tokenizer.chat_format
    if not marks.think_start or not marks.think_end:
        return None
    start = tokenizer.encode(marks.think_start, add_special_tokens=False)
    end = tokenizer.encode(marks.think_end, add_special_tokens=False)
    return Thought(start[0] if len(start) == 1 else None, tuple(end), is_open)


def _check(job: GenerationJob, wish: GrammarWish) -> None:
    """Refuse what would leave a grammar without a token to draw. Raises InvalidRequest."""
    for param, is_given in (
        ("min_tokens", job.min_tokens > 0),
        ("allowed_token_ids", bool(job.sampling.allowed_token_ids)),
    ):
        if is_given:
            message = f"'{param}' and '{wish.param}' cannot be combined."
            raise InvalidRequest(message, param=param, code="invalid_value")
