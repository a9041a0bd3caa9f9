"""Compilation of a job's grammar for its model: off the event loop, and applied after the reasoning.

Checks what a grammar cannot be combined with. Independent of the wire.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace

from server.errors import InvalidRequest, Unavailable, UnsupportedParameter
from server.grammars.compiler import GrammarCompiler, GrammarsBusy
from server.grammars.process import Grammar
from server.service.job import ChatPrompt, GenerationJob, Prompt
from server.text.calls.grammar import grammar_of_calls, grammar_of_text, harmony_grammar
from server.text.calls.lark import Spell
from server.text.chat_template import TemplateError, render_text
from server.text.grammar import GrammarError, GrammarSource
from server.text.parsers import harmony
from server.text.parsers.parts import ChatFormat, Start
from server.text.reasoning import Reasoning
from server.text.tokenizer import Tokenizer


async def compile_grammar(
    compiler: GrammarCompiler, tokenizer: Tokenizer, job: GenerationJob, prompt: Prompt, *, begins: Start
) -> Grammar | None:
    """Return the grammar for the continuations of a prompt; None if unconstrained. The caller must release it.

    Raises InvalidRequest and Unavailable.
    """
    wish = job.grammar
    reasoning = _reasoning(tokenizer, job, prompt, begins) if isinstance(prompt, ChatPrompt) else None
    try:
        if isinstance(prompt, ChatPrompt) and _needs_grammar(tokenizer, prompt, job):
            source = await asyncio.to_thread(_built, _of_calls, tokenizer, prompt, job, begins)
            if source is not None:
                _check(job, job.names.tools, forbids_min_tokens=prompt.must_call or wish is not None)
                reasoning = None if tokenizer.chat_format.is_harmony else reasoning  # part of the grammar
                return await compiler.compile(source, reasoning, job.tenant.name)
        if wish is None:
            return None if reasoning is None or reasoning.budget is None else Grammar(None, reasoning)
        _check(job, wish.param, forbids_min_tokens=True)
        return await compiler.compile(wish.source, reasoning, job.tenant.name)
    except GrammarsBusy as error:
        raise Unavailable(str(error), code="grammars_busy") from error
    except GrammarError as error:
        param = job.names.tools if wish is None else wish.param
        raise InvalidRequest(
            f"'{param}' cannot be honoured: {error}", param=param, code="unsupported_grammar"
        ) from error


def is_held(prompt: ChatPrompt, job: GenerationJob) -> bool:
    """Return whether the answer's calls must be valid by construction: forced or strict calls, or a grammar."""
    if not prompt.tools:
        return False
    has_strict = any(tool["function"].get("strict") for tool in prompt.tools)
    return prompt.must_call or job.grammar is not None or has_strict


def _needs_grammar(tokenizer: Tokenizer, prompt: ChatPrompt, job: GenerationJob) -> bool:
    """Return whether to build a grammar of calls: also for a model taught their form only by the prompt."""
    calls = tokenizer.chat_format.calls
    is_taught = bool(prompt.tools) and calls is not None and calls.own_words
    return is_held(prompt, job) or (is_taught and not job.sampling.allowed_token_ids)


def _built(build: Callable[..., GrammarSource | None], *arguments: object) -> GrammarSource | None:
    """Return the result of `build`. Raises GrammarError also for schemas with too deep recursion."""
    try:
        return build(*arguments)
    except RecursionError:
        raise GrammarError("the schemas reference one another too deeply") from None


def _reasoning(tokenizer: Tokenizer, job: GenerationJob, prompt: ChatPrompt, begins: Start) -> Reasoning | None:
    """Return the reasoning that may come, with its budget. Raises InvalidRequest."""
    reasoning = reasoning_of(tokenizer, is_open=begins in ("opened", "reasoning"))
    if job.thinking_budget is None:
        return None if begins == "content" else reasoning
    if not job.needs_reasoning and (reasoning is None or job.sampling.allowed_token_ids):
        return None if begins == "content" else reasoning
    if reasoning is None:
        name = job.names.thinking_budget
        raise UnsupportedParameter(
            name, f"The parameter '{name}' is not supported: the model does not mark its reasoning."
        )
    _check(job, job.names.thinking_budget, forbids_min_tokens=False)
    if begins == "content":
        return None
    if tokenizer.chat_format.is_harmony:
        return _harmony_budget(tokenizer, reasoning, job.thinking_budget, has_grammar=job.grammar is not None)
    form = tokenizer.chat_format.calls
    call = form.opening if form and prompt.tools else ""
    return replace(
        reasoning,
        budget=job.thinking_budget,
        closing_ids=_closing_ids(tokenizer, reasoning),
        call_ids=tuple(tokenizer.encode(call, add_special_tokens=False)) if call else (),
    )


def _harmony_budget(tokenizer: Tokenizer, before_final: Reasoning, budget: int, *, has_grammar: bool) -> Reasoning:
    """Return a budget for the first analysis; with a grammar, for everything before the final message."""
    header, end, closing, call = (
        tuple(tokenizer.encode(text, add_special_tokens=False))
        for text in (harmony.ANALYSIS, harmony.END, harmony.CLOSING, harmony.COMMENTARY)
    )
    if has_grammar:
        return replace(before_final, budget=len(header) + budget, closing_ids=closing, call_ids=call)
    return Reasoning(header, end, budget=budget, closing_ids=closing)


def _closing_ids(tokenizer: Tokenizer, reasoning: Reasoning) -> tuple[int, ...]:
    """Return the tokens that end reasoning: the closing tag with the chat template's white space around it."""
    tag = tokenizer.chat_format.think_end or ""
    said = {"role": "assistant", "content": "said", "reasoning_content": "thought"}
    try:
        text = render_text(tokenizer, [{"role": "user", "content": "asked"}, said], {}, add_generation_prompt=False)
    except TemplateError:
        text = ""
    between = text.rpartition("said")[0].rpartition("thought")[2]
    before, _, after = between.partition(tag) if between.strip() == tag else ("", tag, "")
    around = [tuple(tokenizer.encode(space, add_special_tokens=False)) if space else () for space in (before, after)]
    return (*around[0], *reasoning.end_ids, *around[1])


def _of_calls(tokenizer: Tokenizer, prompt: ChatPrompt, job: GenerationJob, begins: Start) -> GrammarSource | None:
    """Return a grammar of tool calls in the model's form, or of an answer with valid calls of strict tools.

    None if the second is impossible. Raises InvalidRequest if the first is, and GrammarError. Takes milliseconds with
    many tools.
    """
    marks, spell, must_call = tokenizer.chat_format, _speller(tokenizer), prompt.must_call
    answer = None if must_call or job.grammar is None else job.grammar.source
    if marks.is_harmony and begins == "content":
        if must_call:
            raise InvalidRequest("A continued final message cannot become a tool call.", param=job.names.must_call)
        return None
    if marks.is_harmony:
        in_reasoning, budget = begins in ("opened", "reasoning"), job.thinking_budget
        return harmony_grammar(
            prompt.tools, spell, must_call=must_call, in_reasoning=in_reasoning, budget=budget, answer=answer
        )
    assert marks.calls is not None, "a model that cannot call was refused its tools"
    if not must_call and answer is None:
        return grammar_of_text(prompt.tools, marks.calls, spell)
    only_one = not prompt.parallel_tool_calls
    return grammar_of_calls(prompt.tools, marks.calls, spell, only_one=only_one, answer=answer)


def _speller(tokenizer: Tokenizer) -> Spell:
    """Return a function that spells texts for a grammar: special tokens by ids, all else as is."""
    marks = tokenizer.chat_format
    markup = harmony.TAGS if marks.is_harmony else marks.calls.markup if marks.calls else ()
    names = {tokenizer.token_text(token_id): token_id for token_id in tokenizer.special_ids}
    tokens = {name: f"<[{token_id}]>" for name, token_id in names.items() if any(name in text for text in markup)}
    known = re.compile(f"({'|'.join(map(re.escape, tokens))})" if tokens else "(?!)")
    return lambda text: [tokens.get(piece) or json.dumps(piece) for piece in known.split(text) if piece]


def reasoning_of(tokenizer: Tokenizer, *, is_open: bool) -> Reasoning | None:
    """Return the model's reasoning marks as tokens; None if it has none.

    For a model that writes message headers, everything before the final message counts as reasoning.
    """
    marks: ChatFormat = tokenizer.chat_format
    if marks.is_harmony:
        return Reasoning((), tuple(tokenizer.encode(harmony.FINAL, add_special_tokens=False)), is_open=True)
    if not marks.think_start or not marks.think_end:
        return None
    start = tokenizer.encode(marks.think_start, add_special_tokens=False)
    end = tokenizer.encode(marks.think_end, add_special_tokens=False)
    return Reasoning(tuple(start), tuple(end), is_open)


def _check(job: GenerationJob, wish: str, *, forbids_min_tokens: bool) -> None:
    """Raise InvalidRequest for options that could leave the grammar (wire name `wish`) without a token to sample."""
    others = {
        job.names.min_tokens: forbids_min_tokens and job.min_tokens > 0,
        job.names.allowed_token_ids: bool(job.sampling.allowed_token_ids),
    }
    for param, is_given in others.items():
        if is_given:
            raise InvalidRequest(f"'{param}' and '{wish}' cannot be combined.", param=param, code="invalid_value")
