"""The exact bytes of every kind of answer, and that the anthropic SDK makes of each stream what the whole answer is.

`GOLDEN=write python -m pytest tests/server/dialects/anthropic_messages/test_answers.py` writes the files anew, after a
change that is meant: read the diff.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message
from anthropic.types.shared import ErrorResponse

from mlx_backend.api.errors import QueueFull, SequenceFailed
from server.config import Config, StreamConfig
from server.dialects.anthropic_messages.answer import MessageForm, _LateEncoder
from server.dialects.anthropic_messages.decode import decode
from server.dialects.anthropic_messages.schema import AnsweredMessage, MessagesError, MessagesRequest, StreamEvent
from server.text.events import Finished, Usage
from tests.fake_engine import spell
from tests.server.dialects.anthropic_messages.serving import BODY, PATH, Server, events_of
from tests.server.dialects.openai_chat.test_answers import CALL
from tests.server.goldens import Kind, compare
from tests.server.test_golden import CUT, REASONING, said
from tests.serving import client_of, mock_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOLDER = Path(__file__).parent / "golden"
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = {"tools": [WEATHER]}
COUNT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


KINDS = {
    "text": Kind(PATH, said("né.")),
    "nothing": Kind(PATH, said("\n ")),
    "max_tokens": Kind(PATH, [spell("né")]),
    "context_window": Kind(PATH, [spell("né")], {"max_tokens": 100_000}),
    "stop_sequence": Kind(PATH, [spell("one, two", reason=None)], {"stop_sequences": [", "]}),
    "thinking": Kind(PATH, said(f"{REASONING}4"), {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    "thinking_omitted": Kind(PATH, said(f"{REASONING}4"), {"thinking": {"type": "adaptive", "display": "omitted"}}),
    "tool_use": Kind(PATH, said(CALL), TOOLS),
    "parallel_tool_use": Kind(PATH, said(f"{REASONING}I ask. {CALL}\n{CALL}"), TOOLS),
    "structured": Kind(PATH, said('{"n":4}'), {"output_config": {"format": {"type": "json_schema", "schema": COUNT}}}),
    "edits": Kind(PATH, said("cd"), {"context_management": {"edits": [{"type": "compact_20260112"}]}}),
    "error": Kind(PATH, CUT, status=500),
}


async def ask(server: Server, kind: Kind, *, stream: bool) -> httpx2.Response:
    server.play(kind.script)
    body = {**BODY, **kind.body, "stream": stream}
    return await server.client.post(PATH, json=body, headers={"X-Request-Id": "golden"})


def check_golden(name: str, written: bytes) -> None:
    compare(FOLDER / name, written)


@pytest.mark.parametrize("name", KINDS)
async def test_answers_are_what_they_were_and_what_the_sdk_makes_of_them(server: Server, name: str) -> None:
    kind = KINDS[name]
    streamed = await ask(server, kind, stream=True)
    whole = await ask(server, kind, stream=False)
    check_golden(f"{name}.sse", streamed.content)
    check_golden(f"{name}.json", whole.content)
    assert whole.status_code == kind.status
    assert streamed.headers["request-id"] == whole.headers["request-id"] == "golden"
    for event, data in events_of(streamed.text):
        assert data["type"] == event
        (MessagesError if event == "error" else StreamEvent).model_validate(data, strict=True)
    if kind.status != 200:
        ErrorResponse.model_validate(whole.json())
        return
    AnsweredMessage.model_validate_json(whole.content, strict=True)
    Message.model_validate(whole.json(), strict=True)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.status == 200])
async def test_the_sdk_adds_a_stream_up_to_the_whole(server: Server, name: str) -> None:
    kind = KINDS[name]
    asked: Any = {**BODY, **kind.body}
    edits = asked.pop("context_management", None)  # of the SDK's beta alone
    extra: Any = {"extra_body": {"context_management": edits}} if edits else {}
    server.play(kind.script)
    async with server.sdk.messages.stream(**asked, **extra) as stream:
        found = await stream.get_final_message()
    expected = json.loads((FOLDER / f"{name}.json").read_bytes())
    written = found.to_dict()
    assert written["content"] == expected["content"]
    assert written["usage"] == expected["usage"]
    assert (written["stop_reason"], written["stop_sequence"]) == (expected["stop_reason"], expected["stop_sequence"])


async def test_every_file_is_of_a_kind() -> None:
    expected = {f"{name}.{end}" for name in KINDS for end in ("sse", "json")}
    assert {path.name for path in FOLDER.iterdir()} == expected


async def test_a_message_begins_and_pings_follow_before_the_first_token(server: Server) -> None:
    server.pinged.clear()
    server.play([server.pinged, *said("cd")])
    server.app.parts.settings.now = Config(stream=StreamConfig(keep_alive_s=0.01))
    try:
        answer = await server.client.post(PATH, json={**BODY, "stream": True})
    finally:
        server.app.parts.settings.now = Config()
    assert ': prefill 43%\nevent: ping\ndata: {"type": "ping"}\n\n' in answer.text
    events = events_of(answer.text)
    kinds = [event for event, _ in events if event != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-1] == "message_stop"
    (begun,) = (data for event, data in events if event == "message_start")
    (ended,) = (data for event, data in events if event == "message_delta")
    assert begun["message"]["usage"]["output_tokens"] == 0
    assert ended["usage"]["input_tokens"] == begun["message"]["usage"]["input_tokens"] > 0


async def test_a_prompt_is_computed_without_an_answer_and_kept() -> None:
    body = {**BODY, "messages": [{"role": "user", "content": "a" * 99}]}
    async with client_of(mock_engine()) as client:
        first, second = [(await client.post(PATH, json={**body, "max_tokens": most})).json() for most in (0, 3)]
    assert (first["content"], first["stop_reason"]) == ([], "max_tokens")
    assert (first["usage"]["cache_read_input_tokens"], first["usage"]["output_tokens"]) == (0, 0)
    assert (second["usage"]["input_tokens"], second["usage"]["output_tokens"]) == (1, 3)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"stream": True}, "stream"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"output_format": {"type": "json_schema", "schema": COUNT}}, "output_format"),
        ({"output_config": {"format": {"type": "json_schema", "schema": COUNT}}}, "output_config.format"),
    ],
)
async def test_what_has_no_answer_has_no_stream_no_thought_and_no_form(
    server: Server, fields: dict[str, Any], place: str
) -> None:
    answer = await server.client.post(PATH, json={**BODY, "max_tokens": 0, **fields})
    assert answer.status_code == 400
    assert f"'{place}'" in answer.json()["error"]["message"]


async def test_a_message_begins_while_its_model_loads() -> None:
    """Its prompt is not known by then; the end of the message tells its tokens."""
    body = MessagesRequest.model_validate(BODY)
    job, _ = decode(body, "1")
    stream = SimpleNamespace(model_id="mock", num_prompt_tokens=7, num_cached_tokens=3, shortened_to=None)
    pending: Any = SimpleNamespace(stream=None, result=lambda: stream)
    encoder = _LateEncoder(job, MessageForm(is_streamed=True, hides_thinking=False, with_edits=False), pending, "mock")
    written = encoder.start() + await encoder.encode([Finished(0, "stop", 0), Usage(7, 3, 1)])
    begun, *_, ended, _ = (data for _, data in events_of(written.decode()))
    assert (begun["message"]["model"], begun["message"]["usage"]["input_tokens"]) == ("mock", 0)
    assert (ended["usage"]["input_tokens"], ended["usage"]["cache_read_input_tokens"]) == (4, 3)


# --- what the SDK does


async def test_a_tool_is_called_and_its_result_sent_back(server: Server) -> None:
    server.play(said(f"{REASONING}I ask. {CALL}"))
    sdk, engine = server.sdk, server.engine
    tools: Any = [WEATHER]
    messages: list[Any] = [{"role": "user", "content": "Rain?"}]
    first = await sdk.messages.create(
        model="claude-large", max_tokens=1000, messages=messages, tools=tools, system="Be brief."
    )
    call = first.content[-1]
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "wet"}]}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    server.play(said("Yes."))
    second = await sdk.messages.create(model="mock", max_tokens=1000, messages=messages, tools=tools)
    assert first._request_id
    assert (first.model, first.stop_reason, second.stop_reason) == ("mock", "tool_use", "end_turn")
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
    prompt = bytes(engine.requests[-1].prompt_ids).decode()
    for said_before in ("I ask.", "wet", "Rain?", "hm"):
        assert said_before in prompt


async def test_thoughts_that_are_not_shown_are_in_the_next_prompt(server: Server) -> None:
    thinking: Any = {"type": "adaptive", "display": "omitted"}
    server.play(said(f"{REASONING}4"))
    sdk, engine = server.sdk, server.engine
    asked: Any = [{"role": "user", "content": "2+2"}]
    hidden = await sdk.messages.create(model="mock", max_tokens=1000, messages=asked, thinking=thinking)
    shown = await sdk.messages.create(model="mock", max_tokens=1000, messages=asked)
    for earlier in (hidden, shown):
        turns: Any = [*asked, {"role": "assistant", "content": earlier.content}, {"role": "user", "content": "?"}]
        await sdk.messages.create(model="mock", max_tokens=1000, messages=turns)
    assert hidden.content[0].type == shown.content[0].type == "thinking"
    assert (hidden.content[0].thinking, shown.content[0].thinking) == ("", "hm")
    assert engine.requests[-2].prompt_ids == engine.requests[-1].prompt_ids
    assert "hm" in bytes(engine.requests[-1].prompt_ids).decode()


@pytest.mark.parametrize("extra", [{}, TOOLS, {"system": "Be brief."}, {**TOOLS, "tool_choice": {"type": "none"}}])
async def test_tokens_are_counted_as_they_are_used(server: Server, extra: Any) -> None:
    messages: Any = [{"role": "user", "content": "näïve " * 9}]
    server.play(said("a"))
    sdk = server.sdk
    answer = await sdk.messages.create(model="mock", max_tokens=9, messages=messages, **extra)
    counted = await sdk.messages.count_tokens(model="mock", messages=messages, **extra)
    beta = await sdk.beta.messages.count_tokens(model="mock", messages=messages, **extra)
    assert counted.input_tokens == beta.input_tokens == answer.usage.input_tokens > 54


async def test_the_sdk_raises_the_errors_by_their_names(server: Server) -> None:
    server.play(CUT)
    sdk, engine = server.sdk, server.engine
    asked: Any = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await sdk.messages.create(model="gpt-4o", **asked)
    with pytest.raises(anthropic.InternalServerError):
        await sdk.messages.create(model="mock", **asked)
    with pytest.raises(anthropic.APIStatusError) as cut:
        async with sdk.messages.stream(model="mock", **asked) as stream:
            await stream.until_done()
    for length in (5_000, 50_000):
        long: Any = [{"role": "user", "content": "a" * length}]
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d{4,5} tokens > 4096 maximum"):
            await sdk.messages.create(model="mock", max_tokens=9, messages=long)
    engine.refusal = QueueFull(9)
    with pytest.raises(anthropic.APIStatusError) as full:
        await sdk.messages.create(model="mock", **asked)
    assert unknown.value.request_id
    assert {"type": "not_found_error"}.items() <= error_of(unknown.value).items()
    assert error_of(cut.value)["type"] == "api_error"
    assert (full.value.status_code, error_of(full.value)["type"]) == (503, "overloaded_error")


async def test_the_sdk_lists_the_models(server: Server) -> None:
    sdk = server.sdk
    page = await sdk.models.list()
    one = await sdk.models.retrieve("claude-small")
    theirs = (await server.client.get("/v1/models")).json()
    assert [model.id for model in page.data] == ["mock"]
    assert (one.id, one.max_input_tokens) == ("mock", 4096)
    assert one.created_at.year > 2000
    assert theirs["object"] == "list"


async def test_a_failure_has_no_words_of_its_inside() -> None:
    assert isinstance(CUT[-1], SequenceFailed)
    written = json.loads((FOLDER / "error.json").read_bytes())
    assert written == {
        "type": "error",
        "error": {"type": "api_error", "message": "the sequence cannot go on"},
        "request_id": "golden",
    }


def error_of(error: anthropic.APIStatusError) -> dict[str, Any]:
    body: Any = error.body
    return dict(body["error"])
