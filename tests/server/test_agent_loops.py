"""An agent over the openai SDK with every family's form of calls, written by the mock: calls, results, more turns."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tokenizers import Tokenizer

from mlx_backend.api.interface import MockConfig
from server.app import create_app
from server.config import Config
from server.models import build_model
from server.service.registry import ModelRegistry
from server.text.calls.form import CallForm
from server.text.calls.forms import FORMS, GENERIC
from tests.server.text.calls.test_families import CALLS
from tests.serving import wait_until
from tests.tiny_tokenizer import write_harmony_tokenizer, write_tiny_tokenizer

pytestmark = pytest.mark.mlx

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments | tojson }})"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = re.compile(r"<[|｜]?[\w▁|｜:/]+[|｜]?>|\[/?[A-Z_]+\]")
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
HARMONY = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris", "days": 2}<|call|>'
SAID = {"harmony": "<|channel|>final<|message|>It is sunny in Paris.<|return|>"}
SAME = {"laguna": "glm47"}
"""Forms for which mlx-lm has one name."""
FAMILIES = [*CALLS, GENERIC.name, "harmony"]


def write_model(folder: Path, family: str) -> Path:
    """A tokenizer and a template of that family."""
    if family == "harmony":
        return write_harmony_tokenizer(folder)
    form: CallForm = FORMS.get(family, GENERIC)
    marks = "" if form.own_words else "".join("{# " + mark + " #}" for mark in form.template)
    told = "" if form.own_words else "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}"
    write_tiny_tokenizer(folder, chat_template=marks + told + TEMPLATE)
    if not (form.own_words or form.template or form.vocabulary):  # known by its settings alone
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tool_parser_type": family}))
    names = {name for mark in (*form.markup, *form.vocabulary) for name in SPECIAL.findall(mark)}
    if family == "mistral_list":  # of older tokenizers, which have no such tokens
        names -= {"[ARGS]", "[CALL_ID]"}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(sorted(names))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@asynccontextmanager
async def agent(folder: Path, family: str) -> AsyncIterator[openai.AsyncOpenAI]:
    call = HARMONY if family == "harmony" else CALLS.get(family, CALLS["json_tools"])
    lines = [
        {"match": "weather|tomorrow", "text": call},
        {"match": "sunny", "text": SAID.get(family, "It is sunny in Paris.")},
    ]
    script = folder / "script.jsonl"
    script.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    config = Config(backend="mock", mock=MockConfig(script=str(script), tokenizer=str(folder), context=8192))
    model = build_model(config)
    model.start()
    registry = ModelRegistry([model])
    try:
        wait_until(lambda: model.state != "loading")
        transport = httpx.ASGITransport(create_app(config, registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1", timeout=60) as client:
            http: Any = client
            yield openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="-", max_retries=0, http_client=http)
    finally:
        model.close()


Turn = tuple[str, list[tuple[str, str, str]], str]


async def turn(sdk: openai.AsyncOpenAI, messages: list[Any], *, stream: bool) -> Turn:
    """(content, calls, finish reason) of an answer."""
    create: Any = sdk.chat.completions.create
    asked = {"model": "mock", "messages": messages, "tools": TOOLS}
    if not stream:
        choice = (await create(**asked)).choices[0]
        calls = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
        return choice.message.content or "", calls, choice.finish_reason
    content, calls, reason = "", [], ""
    async for chunk in await create(**asked, stream=True):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        calls += [(call.id, call.function.name, call.function.arguments) for call in delta.tool_calls or ()]
        reason = chunk.choices[0].finish_reason or reason
    return content, calls, reason


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_loop_of_calls_and_results(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "model", family)
    async with agent(folder, family) as sdk:
        for stream in (False, True):
            await loop(sdk, stream=stream)
        (model,) = (await sdk.models.list()).data
    listed: Any = model
    source = "prompt" if family == "generic" else "template"
    assert listed.pippin["tool_calls"] == {"form": SAME.get(family, family), "told_by": source}


async def loop(sdk: openai.AsyncOpenAI, *, stream: bool) -> None:
    """Ask twice: a call comes, its result goes back, an answer comes."""
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The weather?"}]
    for question in ("And tomorrow?", None):
        content, calls, reason = await turn(sdk, messages, stream=stream)
        assert (content, reason) == ("", "tool_calls")
        ((id, name, arguments),) = calls
        assert (name, json.loads(arguments)) == ("weather", {"city": "Paris", "days": 2})
        called = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [called]})
        messages.append({"role": "tool", "tool_call_id": id, "content": "sunny"})
        assert await turn(sdk, messages, stream=stream) == ("It is sunny in Paris.", [], "stop")
        messages.append({"role": "assistant", "content": "It is sunny in Paris."})
        messages.append({"role": "user", "content": question})
