"""What clients write is not in the log, at any level and however a request fails; unless it is asked for."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mlx_backend.api.errors import OutOfMemory
from server.logs import QUIET, LogFormat, configure_logging, current_request_id, flush_logs, prompt_log
from tests.fake_engine import FakeEngine, Script, spell
from tests.serving import client_of, mock_engine, wait_until

SECRET = "Xanthippe"
"""In everything that is a prompt, or stands where one belongs."""

FUNCTION = {"name": "f", "description": SECRET, "parameters": {"type": "object", "description": SECRET}}
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": SECRET}]},
    {"messages": [{"role": "user", "content": SECRET}], "stream": True},
    {"messages": [{"role": "user", "content": SECRET}], "tools": [{"type": "function", "function": FUNCTION}]},
    {"messages": [{"role": SECRET, "content": "x"}]},
    {"messages": [{"role": "user", "content": {SECRET: 1}}]},
    {"messages": [{"role": "user", "content": [{"type": SECRET}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": SECRET}]}]},
    {"messages": SECRET},
    {"messages": [SECRET]},
    {"messages": [{"role": "assistant", "content": SECRET, "tool_calls": SECRET}]},
    {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 10**6},
    {"messages": [{"role": "user", "content": SECRET}], "temperature": SECRET},
    {"messages": [{"role": "user", "content": SECRET}], "tool_choice": SECRET},
    {"messages": [{"role": "user", "content": SECRET}], "tool_choice": "required", "tools": [SECRET]},
    {"messages": [{"role": "user", "content": SECRET}], "model": SECRET},
    {"messages": [{"role": "user", "content": SECRET}], "user": SECRET, "metadata": {"a": SECRET}},
    {"messages": [{"role": "user", "content": "\ud800" + SECRET}]},
    {"messages": [{"role": "user", "content": SECRET * 2000}]},
    {"messages": [{"role": "user", "content": SECRET}], "guided_regex": f"({SECRET}"},
    {"messages": [{"role": "user", "content": SECRET}], "guided_json": {"type": SECRET}},
    {"messages": [{"role": "user", "content": SECRET}], "guided_grammar": SECRET},
    {"messages": [{"role": "user", "content": SECRET}], "response_format": {"type": SECRET}},
    {"messages": [{"role": "user", "content": SECRET}], "chat_template_kwargs": SECRET},
]
COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": SECRET},
    {"prompt": [SECRET, SECRET], "stream": True, "echo": True},
    {"prompt": SECRET, "suffix": SECRET},
    {"prompt": {SECRET: SECRET}},
    {"prompt": [[SECRET]]},
    {"prompt": SECRET, "stop": [SECRET] * 40},
    {"prompt": SECRET, "logit_bias": {SECRET: 1}},
    {"prompt": SECRET, "bad_words": [SECRET], "guided_choice": SECRET},
    {"prompt": SECRET, "max_tokens": -1},
    {"prompt": SECRET, "n": 2, "stream": True},
]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/embeddings", {"input": SECRET}),
    ("/v1/embeddings", {"input": [SECRET, ""]}),
    ("/v1/embeddings", {"input": {"a": SECRET}}),
    ("/tokenize", {"prompt": SECRET}),
    ("/tokenize", {"messages": SECRET}),
    ("/detokenize", {"tokens": SECRET}),
]
REQUESTS = [
    *(("/v1/chat/completions", body) for body in CHATS),
    *(("/v1/completions", body) for body in COMPLETIONS),
    *OTHERS,
]


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", prompt_log.name, *QUIET)}
    handlers = list(root.handlers)
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> int:
    answer = await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    return answer.status_code


async def flood(client: httpx.AsyncClient) -> list[int]:
    statuses = await asyncio.gather(*(ask(client, path, body) for path, body in REQUESTS))
    broken = f'{{"prompt": "{SECRET}'.encode()
    for path in ("/v1/completions", "/v1/chat/completions"):
        answer = await client.post(path, content=broken, headers={"content-type": "application/json"})
        statuses.append(answer.status_code)
    return statuses


def written(capsys: pytest.CaptureFixture[str]) -> str:
    flush_logs()
    return capsys.readouterr().err


@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize("fault", [None, "fail/7", "oom/5"])
async def test_no_prompt_is_logged(capsys: pytest.CaptureFixture[str], form: LogFormat, fault: str | None) -> None:
    configure_logging("debug", form)
    engine = mock_engine(fault=fault)
    try:
        async with client_of(engine) as client:
            wait_until(lambda: engine.model_info is not None)
            statuses = await flood(client)
    finally:
        engine.close()
    logged = written(capsys)
    assert {200, 400, 404} <= set(statuses)
    assert "answered 400" in logged and " model=mock prompt=" in logged  # it was there that we looked
    assert SECRET not in logged


@pytest.mark.parametrize("form", ["console", "json"])
async def test_errors_that_nobody_foresaw_are_logged_without_their_words(
    capsys: pytest.CaptureFixture[str], form: LogFormat
) -> None:
    configure_logging("debug", form)

    def broken() -> Exception:
        error = RuntimeError(f"cannot parse {SECRET}")
        error.__cause__ = ValueError(SECRET)
        return error

    scripts: list[Script] = [
        [broken()],
        [spell("a", reason=None), broken()],
        [OutOfMemory("full", ())],
    ]
    for script in scripts:
        async with client_of(FakeEngine(script)) as client:
            for stream in (False, True):
                await ask(client, "/v1/completions", {"prompt": SECRET, "stream": stream, "max_tokens": 9})
    logged = written(capsys)
    assert "builtins.RuntimeError (its message may quote the request" in logged
    assert "builtins.ValueError" in logged and "Traceback" in logged and "server/service/generation.py" in logged
    assert SECRET not in logged


async def test_they_are_logged_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", with_prompts=True)
    async with client_of(FakeEngine([spell("x")])) as client:
        await ask(client, "/v1/chat/completions", {"messages": [{"role": "user", "content": SECRET}]})
        await ask(client, "/v1/completions", {"prompt": {SECRET: 1}})
    lines = [json.loads(line) for line in written(capsys).splitlines()]
    assert (lines[0]["level"], lines[0]["logger"]) == ("warning", "pippin.prompts")
    assert "log_prompts is true" in lines[0]["message"]
    (asked,) = [line for line in lines[1:] if line["logger"] == "pippin.prompts"]
    assert asked["prompts"][0]["messages"] == [{"role": "user", "content": SECRET}]


async def test_lines_of_a_request_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    engine = mock_engine()
    try:
        async with client_of(engine) as client:
            wait_until(lambda: engine.model_info is not None)
            headers = {"X-Request-Id": "me-1"}
            body = {"prompt": "hi\u2028", "max_tokens": 4, "ignore_eos": True, "colour": "red"}
            await client.post("/v1/completions", json=body, headers=headers)
            await client.post("/v1/embeddings", json={"input": "abc"}, headers=headers)
            await client.post("/v1/completions", json={"prompt": 7}, headers=headers)
    finally:
        engine.close()
    ignored, done, embedded, refused = [json.loads(line) for line in written(capsys).splitlines()]
    assert {line["request_id"] for line in (ignored, done, embedded, refused)} == {"me-1"}
    assert list(done)[:4] == ["time", "level", "logger", "message"]
    numbers = (done["id"], done["prompt_tokens"], done["cached_tokens"], done["output_tokens"], done["finish"])
    assert numbers == ("cmpl-me-1", 6, 0, 4, "length")
    assert done["model"] == "mock" and done["ttft_s"] >= 0 and "tok_s" in done
    assert (embedded["inputs"], embedded["prompt_tokens"], embedded["finish"]) == (1, 4, "done")
    assert (refused["status"], refused["code"]) == (400, "invalid_value")
    assert refused["message"].startswith("answered 400 invalid_value: at 'prompt")


def test_a_line_of_json_is_one_line_whatever_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    log = logging.getLogger("server")
    log.info("a\nb\u2028\x85", extra={"fields": {"message": "no", "path": object, "x": 1}})
    token = current_request_id.set("me-2")
    try:
        raise RuntimeError("broken\nin two")
    except RuntimeError:
        log.exception("failed")
    finally:
        current_request_id.reset(token)
    text = written(capsys)
    first, second = [json.loads(line) for line in text.splitlines()]
    assert text.isascii() and text.count("\n") == 2
    assert (first["message"], first["x"]) == ("a\nb\u2028\x85", 1)
    assert second["exception"].endswith("builtins.RuntimeError (its message may quote the request: see log_prompts)")
