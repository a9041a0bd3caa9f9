"""A tiny gpt-oss end to end: what it is made to write, by its tokens, comes out as reasoning, content and calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_backend.api.interface import EngineConfig, GenerationRequest, GrammarState, ModelInfo
from mlx_backend.factory import create_engine
from server.app import create_app
from server.config import Config
from server.service.registry import ModelRegistry, ServedModel
from server.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine_client import until
from tests.fake_engine import FakeEngine
from tests.tiny_models import write_model
from tests.tiny_tokenizer import write_harmony_tokenizer

pytestmark = pytest.mark.mlx

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_harmony_tokenizer(tmp_path_factory.mktemp("models") / "gpt_oss")
    names = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return write_model(folder, "gpt_oss", vocab_size=1 + names[-1]["id"])


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    model = ServedModel("tiny", create_engine(EngineConfig(model_path=str(folder))), lambda: load_tokenizer(folder))
    model.start()
    try:
        await until(lambda: model.health().status == "ok")
        async with client_of(model) as client:
            yield client
    finally:
        model.close()


def client_of(model: ServedModel) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(Config(), ModelRegistry([model])))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/chat/completions", json={"messages": HI, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    return whole


def biased(tokenizer: Tokenizer, *names: str) -> dict[str, float]:
    """No other special token."""
    ids = {tokenizer.encode(name, add_special_tokens=False)[0] for name in names}
    return {str(token_id): -100.0 for token_id in tokenizer.special_ids - ids}


async def test_a_grammar_is_of_the_final_message(client: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    """A model of random weights says anything, without a header, for ever: its budget ends that."""
    choices = {"guided_choice": ["yes", "no"], "logit_bias": biased(tokenizer), "max_tokens": 100}
    answer = await ask(client, **choices, thinking_budget=9)
    (choice,) = answer["choices"]
    assert choice["message"]["content"].endswith(("yes", "no"))
    assert choice["finish_reason"] == "stop"
    closed = tokenizer.encode("<|end|><|start|>assistant<|channel|>final<|message|>", add_special_tokens=False)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(closed)
    endless = await ask(client, **choices)
    assert endless["choices"][0]["finish_reason"] == "length"


async def test_the_last_message_goes_on(client: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    begun = [*HI, {"role": "assistant", "content": "It is", "reasoning_content": "Hm"}]
    body = {"messages": begun, "continue_final_message": True, "return_token_strs": True}
    spelled = (await client.post("/tokenize", json=body)).json()["token_strs"]
    assert "".join(spelled) == (
        "<|start|>user<|message|>hi<|end|><|start|>assistant<|channel|>analysis<|message|>Hm<|end|>"
        "<|start|>assistant<|channel|>final<|message|>It is"
    )
    answer = await ask(client, messages=begun, continue_final_message=True, logit_bias=biased(tokenizer), max_tokens=8)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert answer["choices"][0]["message"]["content"]


_asked: list[ServedModel] = []


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    """The models of `asked`, whose grammars the test still follows."""
    yield
    while _asked:
        _asked.pop().close()


async def asked(folder: Path, **body: Any) -> GenerationRequest:
    """What the engine gets to do."""
    engine = FakeEngine([], info=ModelInfo(context_limit=256, vocab_size=1000))
    model = ServedModel("tiny", engine, lambda: load_tokenizer(folder))
    _asked.append(model)
    model.start()
    await until(lambda: model.tokenizer is not None)
    async with client_of(model) as client:
        await client.post("/v1/chat/completions", json={"messages": HI, **body})
    (request,) = engine.requests
    return request


async def test_what_the_engine_is_asked(folder: Path) -> None:
    """Both end tokens, and a budget of the analysis that knows how it is closed."""
    request, tokenizer = await asked(folder, thinking_budget=2), load_tokenizer(folder)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    assert request.stop_ids >= {*ids("<|call|>"), *ids("<|return|>")}
    assert request.grammar is not None
    state = request.grammar.start()
    for token_id in (*ids("<|channel|>analysis<|message|>"), 70, 71):
        assert state.allowed() is None
        state.accept(token_id)
    for token_id in ids("<|end|><|start|>assistant<|channel|>final<|message|>"):
        bits = state.allowed()
        assert bits is not None
        assert int.from_bytes(bits, "little") == 1 << token_id
        state.accept(token_id)
    assert state.allowed() is None


CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "maxProperties": 0}}},
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_call_that_is_demanded_is_made(client: httpx.AsyncClient, tokenizer: Tokenizer, choice: object) -> None:
    """A model that says anything thinks as long as it may, and then calls."""
    body = {"temperature": 1, "thinking_budget": 5, "max_tokens": 250, "tools": TOOLS, "tool_choice": choice}
    answers = await asyncio.gather(*(ask(client, seed=seed, **body) for seed in range(6)))
    for seed, answer in enumerate(answers):
        (found,) = answer["choices"]
        assert "tool_calls" in found["message"], (seed, answer)
        (call,) = found["message"]["tool_calls"]
        assert found["finish_reason"] in ("tool_calls", "stop")
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "weather":
            assert arguments["city"] in ("Rome", "Oslo")
        else:
            assert call["function"]["name"] == "time" and choice == "required"
            assert arguments == {}


@pytest.mark.parametrize(
    ("written", "then"),
    [
        ("<|channel|>commentary to=functions.", {"w", "t"}),
        ('<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "', {"R", "O"}),
        ('<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary to=functions.time '
         '<|constrain|>json<|message|>{"any": ', {"{", "[", "t", "-", "0", '"'}),
    ],
)  # fmt: skip
async def test_a_strict_tool_is_held_to_where_it_is_called(
    folder: Path, tokenizer: Tokenizer, written: str, then: set[str]
) -> None:
    loose = {"type": "function", "function": {"name": "time", "parameters": CITY}}
    state = grammar_state(await asked(folder, tools=[TOOLS[0], loose]))
    for token_id in tokenizer.encode(written, add_special_tokens=False):
        assert token_id in allowed(state)
        state.accept(token_id)
    found = {tokenizer.token_text(token_id)[:1] for token_id in allowed(state)} - {" ", "\n"}
    assert found == then if len(then) == 2 else found >= then


async def test_an_answer_in_words_is_free_beside_strict_tools(folder: Path, tokenizer: Tokenizer) -> None:
    state = grammar_state(await asked(folder, tools=TOOLS))
    for token_id in tokenizer.encode("<|channel|>final<|message|>Hello, so be it!", add_special_tokens=False):
        assert token_id in allowed(state)
        state.accept(token_id)
    assert tokenizer.eos_ids & allowed(state)


def grammar_state(request: GenerationRequest) -> GrammarState:
    assert request.grammar is not None
    return request.grammar.start()


def allowed(state: GrammarState) -> set[int]:
    bits = state.allowed()
    assert bits is not None
    number = int.from_bytes(bits, "little")
    return {token_id for token_id in range(number.bit_length()) if number >> token_id & 1}
