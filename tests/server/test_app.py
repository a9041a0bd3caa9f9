"""The application as clients meet it: a real uvicorn, the real engine over the mock runner, the openai SDK."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from mlx_backend.api.interface import ContextConfig
from server.app import create_app
from server.config import Config, SecurityConfig, StreamConfig
from tests.fake_engine import FakeEngine
from tests.serving import LiveServer, build_registry, mock_engine, serve, wait_until

HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with serve(mock_engine()) as server:
        yield server


@pytest.fixture
def sdk(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def sdk_of(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def events_of(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]


# --- the SDK


def test_completion(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="mock", prompt="hi", temperature=0)
    assert answer.object == "text_completion"
    assert len(answer.choices[0].text) > 0
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 16)


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="mock", messages=HI, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_has_the_text_of_the_whole(sdk: openai.OpenAI) -> None:
    whole = sdk.completions.create(model="mock", prompt="hi", temperature=0, max_tokens=40)
    chunks = list(sdk.completions.create(model="mock", prompt="hi", temperature=0, max_tokens=40, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_stream_with_usage(sdk: openai.OpenAI) -> None:
    for _ in range(2):  # once the prompt is known, it is for all
        whole = sdk.chat.completions.create(model="mock", messages=HI, temperature=0)
    options: Any = {"include_usage": True}
    stream = sdk.chat.completions.create(model="mock", messages=HI, temperature=0, stream=True, stream_options=options)
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert last.choices == []
    assert last.usage == whole.usage


async def test_async_streams_side_by_side(live: LiveServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as sdk:

        async def read(prompt: str) -> str:
            stream = await sdk.completions.create(
                model="mock", prompt=prompt, temperature=0, max_tokens=30, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        prompts = [f"prompt {number}" for number in range(20)]
        together = await asyncio.gather(*map(read, prompts))
        assert together == [await read(prompt) for prompt in prompts]


def test_seeds(sdk: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        return sdk.completions.create(model="mock", prompt="hi", seed=seed, max_tokens=40).choices[0].text

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_several_choices_of_several_prompts(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="mock", prompt=["a", "b"], n=2, temperature=0, max_tokens=40)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = sdk.completions.create(model="mock", prompt="b", temperature=0, max_tokens=40)
    assert answer.choices[2].text == alone.choices[0].text
    assert answer.choices[3].text != alone.choices[0].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4


def test_a_prompt_of_ids(sdk: openai.OpenAI) -> None:
    ids = sdk.completions.create(model="mock", prompt=[257, *b"hi"], temperature=0)
    text = sdk.completions.create(model="mock", prompt="hi", temperature=0)
    assert ids.choices == text.choices


def test_a_stop_string(live: LiveServer, sdk: openai.OpenAI) -> None:
    whole = sdk.completions.create(model="mock", prompt="hi", temperature=0, max_tokens=40).choices[0].text
    word = whole.split()[2]
    answer = sdk.completions.create(model="mock", prompt="hi", temperature=0, max_tokens=4000, stop=word)
    assert answer.choices[0].text == whole[: whole.index(word)]
    assert answer.choices[0].finish_reason == "stop"
    live.wait_until_idle()


def test_logprobs(sdk: openai.OpenAI) -> None:
    completion = sdk.completions.create(model="mock", prompt="hi", logprobs=2, temperature=0).choices[0]
    assert completion.logprobs is not None
    assert b"".join(map(bytes_of, completion.logprobs.tokens or [])).decode() == completion.text
    chat = sdk.chat.completions.create(model="mock", messages=HI, logprobs=True, top_logprobs=3).choices[0]
    assert chat.logprobs is not None
    assert len((chat.logprobs.content or [])[0].top_logprobs) == 3


def bytes_of(name: str) -> bytes:
    """What a token's name stands for: its text, or the bytes of a part of a character."""
    return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", "")) if name.startswith("bytes:") else name.encode()


def test_ignore_eos(sdk: openai.OpenAI) -> None:
    extra = {"ignore_eos": True}
    answer = sdk.chat.completions.create(model="mock", messages=HI, max_tokens=2000, extra_body=extra)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2000


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["mock"]
    assert sdk.models.retrieve("mock").owned_by == "pippin"


def test_the_sdk_knows_our_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.completions.create(model="gpt-4", prompt="hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        sdk.completions.create(model="mock", prompt="x" * 5000, max_tokens=10)
    assert too_long.value.code == "context_length_exceeded"
    assert "4096" in too_long.value.message
    with pytest.raises(openai.BadRequestError) as unsupported:
        sdk.completions.create(model="mock", prompt="hi", extra_body={"use_beam_search": True})
    assert unsupported.value.param == "use_beam_search"


# --- what travels besides


def test_the_request_id_is_in_header_body_and_log(live: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pippin.request")
    answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "me"}, headers={"X-Request-Id": "me-1"})
    assert answer.headers["x-request-id"] == "me-1"
    assert answer.json()["id"] == "cmpl-me-1"
    assert "cmpl-me-1 model=mock prompt=3 cached=0 output=16 ttft=" in caplog.text


def test_a_stream_ends_with_done_and_says_what_it_is(live: LiveServer) -> None:
    answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "hi", "stream": True, "foo": 1})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-pippin-ignored-fields"] == "foo"
    assert events_of(answer.text)[-1] == "[DONE]"


def test_probes(live: LiveServer) -> None:
    for path in ("/health", "/ready", "/version"):
        assert httpx.get(live.url + path).status_code == 200


async def test_the_lifespan_starts_and_closes_the_engines() -> None:
    engine = FakeEngine()
    app = create_app(Config(), build_registry(engine, is_started=False))
    async with app.router.lifespan_context(app):
        assert (engine.num_started, engine.num_closed) == (1, 0)
    assert engine.num_closed == 1


def test_loading_is_told() -> None:
    with serve(mock_engine(load_s=60), until_ready=False) as server:
        ready = httpx.get(f"{server.url}/ready")
        assert ready.status_code == 503
        assert ready.headers["retry-after"]
        assert ready.json()["models"][0]["load"]["total_bytes"] > 0
        assert httpx.get(f"{server.url}/health").status_code == 200
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")


# --- clients that misbehave


def test_a_large_body(live: LiveServer) -> None:
    body = json.dumps({"prompt": "x" * 64 * 1024 * 1024}).encode()
    answer = httpx.post(f"{live.url}/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_a_large_body_of_unknown_length(live: LiveServer) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(32):
            yield b" " * 1024 * 1024

    answer = httpx.post(f"{live.url}/v1/completions", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert httpx.get(f"{live.url}/health").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_takes_its_sequences_along(stream: bool) -> None:
    with serve(mock_engine(itl_s=0.01)) as server:
        body = {"prompt": "hi", "max_tokens": 4000, "n": 3, "stream": stream, "ignore_eos": True}
        connection = post_raw(server, body)
        wait_until(lambda: server.engine.stats().num_running == 3)
        connection.close()
        server.wait_until_idle()
        assert server.engine.stats().num_aborted == 3


def test_a_client_that_leaves_while_its_prompt_is_computed() -> None:
    with serve(mock_engine(ttft_s=2)) as server:
        connection = post_raw(server, {"prompt": "x" * 3000, "stream": True})
        wait_until(lambda: server.engine.stats().num_prefilling == 1)
        connection.close()
        server.wait_until_idle()
        stats = server.engine.stats()
        assert (stats.num_aborted, stats.num_finished) == (1, 0)


def test_a_client_that_stops_reading_is_cut_off() -> None:
    config = Config(security=SecurityConfig(send_timeout_s=0.2))
    with serve(mock_engine(context=1_000_000), config) as server:
        body = {"prompt": "hi", "max_tokens": 900_000, "n": 8, "stream": True, "ignore_eos": True}
        connection = post_raw(server, body, receive_buffer=4096)
        wait_until(lambda: server.engine.stats().num_aborted == 8)
        server.wait_until_idle()
        assert not read_to_the_end(connection).endswith(b"0\r\n\r\n")
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi"}).status_code == 200


def post_raw(
    server: LiveServer, body: dict[str, Any], *, receive_buffer: int | None = None, path: str = "/v1/completions"
) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", server.port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
    return connection


def read_to_the_end(connection: socket.socket) -> bytes:
    """The last bytes that were on the way when the server closed; the connection is closed here too."""
    last = b""
    with connection, contextlib.suppress(ConnectionError):
        while received := connection.recv(65536):
            last = received
    return last


# --- silence and failure


def test_comments_during_a_long_prefill() -> None:
    config = Config(stream=StreamConfig(keep_alive_s=0.05))
    with serve(mock_engine(ttft_s=0.5), config) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x" * 300, "stream": True})
    comments = [line for line in answer.text.split("\n") if line.startswith(":")]
    assert comments
    assert all(re.fullmatch(r": (prefill \d+%|keep-alive)", line) for line in comments)
    assert comments[0].startswith(": prefill")
    assert events_of(answer.text)[-1] == "[DONE]"


def test_the_sdk_reads_over_comments() -> None:
    config = Config(stream=StreamConfig(keep_alive_s=0.02))
    with serve(mock_engine(itl_s=0.01), config) as server, sdk_of(server) as sdk:
        chunks = list(sdk.chat.completions.create(model="mock", messages=HI, max_tokens=20, stream=True))
    assert chunks[-1].choices[0].finish_reason is not None


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_that_lost_its_oldest_turns_says_so(stream: bool) -> None:
    messages = [{"role": "user", "content": word * 60} for word in ("one ", "two ", "six ")]
    body = {"messages": messages, "max_tokens": 8, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    for policy, status in (("error", 400), ("truncate_oldest", 200)):
        config = Config(context=ContextConfig(on_overflow=policy))  # type: ignore[arg-type]
        with serve(mock_engine(context=600), config) as server:
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
        assert answer.status_code == status
    left_out = int(answer.headers["X-Pippin-Truncated-Tokens"])
    last = json.loads(events_of(answer.text)[-2]) if stream else answer.json()
    assert last["usage"]["prompt_tokens_details"]["truncated_tokens"] == left_out == len("user: \n") + 240
    assert last["usage"]["prompt_tokens"] == 2 * left_out + len("assistant:")


def test_a_failure_after_the_first_byte_is_one_event() -> None:
    with serve(mock_engine(fault="fail@3")) as server:
        body = {"prompt": "hi", "stream": True}
        *chunks, last = events_of(httpx.post(f"{server.url}/v1/completions", json=body).text)
        assert [json.loads(chunk)["choices"][0]["index"] for chunk in chunks] == [0] * len(chunks)
        assert json.loads(last)["error"]["code"] == "sequence_failed"
        # the fault is over: the next one is served
        assert httpx.post(f"{server.url}/v1/completions", json=body).text.endswith("data: [DONE]\n\n")


def test_the_sdk_raises_an_error_of_a_stream() -> None:
    with serve(mock_engine(fault="oom@3")) as server, sdk_of(server) as sdk:
        stream = sdk.completions.create(model="mock", prompt="hi", stream=True)
        with pytest.raises(openai.APIError, match="memory"):
            list(stream)


@pytest.mark.parametrize(
    ("fault", "status", "code"), [("fail@3", 500, "sequence_failed"), ("oom@1", 503, "out_of_memory")]
)
def test_a_failure_of_a_whole_answer(fault: str, status: int, code: str) -> None:
    with serve(mock_engine(fault=fault)) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_dead_engine_fails_who_waits_and_refuses_who_comes() -> None:
    with serve(mock_engine(fault="die@3")) as server:
        body = {"prompt": "hi", "stream": True}
        last = events_of(httpx.post(f"{server.url}/v1/completions", json=body).text)[-1]
        assert json.loads(last)["error"]["code"] == "engine_dead"
        refused = httpx.post(f"{server.url}/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "dead")
        assert httpx.get(f"{server.url}/ready").status_code == 503


def test_a_stalled_engine_is_unhealthy() -> None:
    with serve(mock_engine(fault="hang@2", stall_s=0.05)) as server:
        connection = post_raw(server, {"prompt": "hi", "stream": True})
        wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        assert httpx.get(f"{server.url}/health").json()["status"] == "stalled"
        connection.close()
