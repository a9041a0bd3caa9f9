"""Bodies to jobs: what is asked of a template, of the sampling and of a tool's schema."""

from __future__ import annotations

from typing import Any

import pytest

from server.dialects.ollama.decode import decode_chat, decode_generate
from server.dialects.ollama.schema import ChatRequest, GenerateRequest, validate
from server.errors import UnsupportedParameter
from server.service.job import ChatPrompt, GenerationJob, InfillPrompt, TextPrompt

HI = [{"role": "user", "content": "hi"}]


def job_of(**fields: Any) -> GenerationJob:
    return decode_chat(validate(ChatRequest, {"messages": HI, **fields}), "mock", "1")[0]


def prompt_of(**fields: Any) -> ChatPrompt:
    (prompt,) = job_of(**fields).prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


@pytest.mark.parametrize(
    ("think", "kwargs", "budget"),
    [
        (None, {}, None),
        (True, {"enable_thinking": True, "thinking": True}, None),
        (False, {"enable_thinking": False, "thinking": False}, 0),
        ("high", {"reasoning_effort": "high", "enable_thinking": True, "thinking": True}, None),
        ("none", {"reasoning_effort": "none", "enable_thinking": False, "thinking": False}, 0),
    ],
)
def test_thinking(think: Any, kwargs: dict[str, Any], budget: int | None) -> None:
    job = job_of(think=think)
    assert (prompt_of(think=think).template_kwargs, job.thinking_budget, job.needs_reasoning) == (kwargs, budget, False)


def test_tools_are_shown_in_the_order_of_openais_reference() -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    tools = [
        {"function": {"parameters": parameters, "name": "f", "description": "adds"}},
        {"type": "function", "function": {"name": "g", "parameters": {"properties": None}}},
        {"type": "function", "function": {"name": "h"}},
    ]
    nothing = {"type": "object", "properties": {}}
    shown = [list(tool["function"].items()) for tool in prompt_of(tools=tools).tools]
    assert shown == [
        [("name", "f"), ("description", "adds"), ("parameters", parameters)],
        [("name", "g"), ("parameters", nothing)],
        [("name", "h"), ("parameters", nothing)],
    ]


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "a", "raw": True}, TextPrompt("a")),
        ({"prompt": "a", "suffix": "b"}, InfillPrompt("a", "b")),
        ({"suffix": "b"}, InfillPrompt("", "b")),
        ({"prompt": "a"}, ChatPrompt(({"role": "user", "content": "a"},))),
    ],
)
def test_prompts(fields: dict[str, Any], prompt: Any) -> None:
    job, ignored = decode_generate(validate(GenerateRequest, fields), "mock", "1")
    assert (job.prompts, ignored) == ((prompt,), [])


def test_a_raw_prompt_has_no_thought_to_close() -> None:
    job, _ = decode_generate(validate(GenerateRequest, {"prompt": "a", "raw": True, "think": False}), "mock", "1")
    assert job.thinking_budget is None


@pytest.mark.parametrize(("given", "seed"), [(-1, None), (7, 7), (7.0, 7), (-2, 2**64 - 2), (None, None)])
def test_seeds(given: Any, seed: int | None) -> None:
    assert job_of(options={"seed": given}).sampling.seed == seed


def test_options_that_are_refused_say_where() -> None:
    for name, value in (("mirostat", 1), ("tfs_z", 0.5)):
        with pytest.raises(UnsupportedParameter) as raised:
            job_of(options={name: value})
        assert raised.value.param == f"options.{name}"
