"""Which fields of a request reach a replica through smg: those of docs/api.md, but for what docs/replicas.md lists."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from tests.clients.replicas import ROOT, replicas

pytestmark = pytest.mark.clients

DOC = (ROOT / "docs/replicas.md").read_text(encoding="utf-8")
CHAT = {"model": "pocket", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "pocket", "prompt": "hi"}
SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"maximum": 5}}, "required": ["z", "a"]}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "strict": True, "parameters": SCHEMA}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1}'}}

BOTH: dict[str, Any] = {
    "n": 2, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "typical_p": 0.9,
    "top_n_sigma": 1.5, "xtc_probability": 0.1, "xtc_threshold": 0.1, "dry_multiplier": 0.8, "dry_base": 1.75,
    "dry_allowed_length": 2, "dry_range": 100, "dry_sequence_breakers": ["\n"], "repetition_penalty": 1.1,
    "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"5": -100},
    "seed": 2**63 - 1, "stop": ["a", "b"], "stop_token_ids": [1, 2], "min_tokens": 2, "ignore_eos": True,
    "allowed_token_ids": [1, 2], "bad_words": ["x"], "response_format": {"type": "json_object"}, "user": "u",
    "guided_json": SCHEMA, "guided_regex": "a+", "guided_choice": ["a"], "guided_grammar": 'start: "a"',
    "structured_outputs": {"regex": "a"}, "cache_salt": "s", "prefix_cache": False, "no_such_field": {"b": [1, 2.5]},
}  # fmt: skip
OF_CHAT: dict[str, Any] = {
    "continue_final_message": True, "add_generation_prompt": False, "parallel_tool_calls": False,
    "max_completion_tokens": 9, "reasoning_effort": "xhigh", "reasoning": {"effort": "high", "max_tokens": 7},
    "enable_thinking": False, "think": False, "verbosity": "low", "include_reasoning": False,
    "reasoning_format": "hidden", "thinking_budget": 10, "chat_template_kwargs": {"enable_thinking": False},
    "tools": [TOOL], "logprobs": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": SCHEMA}},
    "messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}], "name": "n"},
        {"role": "assistant", "content": "x", "reasoning_content": "r", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "r"}, {"role": "developer", "content": "d"},
    ],
}  # fmt: skip
OF_TEXT: dict[str, Any] = {
    "suffix": "x", "echo": True, "best_of": 2, "logprobs": 20, "return_token_ids": True, "add_special_tokens": False,
    "prompt": ["a", "b"],
}  # fmt: skip
LOST: dict[str, Any] = {
    "budget_tokens": {"thinking": {"type": "enabled", "budget_tokens": 10}},
    "prefix": {"messages": [*CHAT["messages"], {"role": "assistant", "content": "Yes", "prefix": True}]},
    "schema": {"response_format": {"type": "json_object", "schema": SCHEMA}},
}
"""By the name that is lost: what is accepted, and reaches a replica without it."""
REFUSED: dict[str, Any] = {
    "max_tokens": {"max_tokens": -1},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 0},
    "stop": {"stop": ["1", "2", "3", "4", "5"]},
    "n": {"n": 11},
    "repetition_penalty": {"repetition_penalty": 2.5},
    "tool_choice": {"tools": [TOOL], "tool_choice": "any"},
}
"""By the name that a 400 names; all of it is allowed without the router."""

Sent = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]
"""A path and a body -> the status, and the body that has arrived."""


class Recorder(socketserver.ThreadingMixIn, HTTPServer):
    """Stands for a replica; keeps the last body."""

    daemon_threads = True
    body: dict[str, Any] = {}  # noqa: RUF012


class Handler(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "pocket", "owned_by": "pippin"}], "version": "0", "object": "list"})

    def do_POST(self) -> None:
        self.server.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer({"choices": []})

    def _answer(self, body: object) -> None:
        written = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, format: str, *args: object) -> None:
        """Without a log."""


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    recorder = Recorder(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=recorder.serve_forever)
    thread.start()
    worker = f"http://127.0.0.1:{recorder.server_address[1]}"
    try:
        with replicas(tmp_path_factory.mktemp("home"), workers=(worker,)) as started:

            def send(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
                recorder.body = {}
                answer = httpx.post(started.url + path, json=body, timeout=60)
                return answer.status_code, recorder.body

            yield send
    finally:
        recorder.shutdown()
        thread.join()
        recorder.server_close()


def test_what_docs_api_lists_arrives(sent: Sent) -> None:
    for path, base, fields in (
        ("/v1/chat/completions", CHAT, BOTH | OF_CHAT),
        ("/v1/completions", TEXT, BOTH | OF_TEXT),
        ("/v1/embeddings", {"model": "pocket", "input": "a"}, {"encoding_format": "base64", "dimensions": 3}),
    ):
        for name, value in fields.items():
            status, body = sent(path, {**base, name: value})
            assert (status, name, body.get(name)) == (200, name, value)
            added = body.keys() - base.keys() - {name}
            assert added <= {"stream", "logprobs", "echo", "tool_choice"}  # each as if it were absent
            assert all(body[key] in (False, "auto") for key in added)


def test_the_order_of_a_schema_stays(sent: Sent) -> None:
    """The order in which properties are written, and the text of a prompt that lists tools."""
    _, body = sent("/v1/chat/completions", {**CHAT, "tools": [TOOL]})
    assert json.dumps(body["tools"][0]["function"]["parameters"]) == json.dumps(SCHEMA)


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_documented(sent: Sent, name: str) -> None:
    status, body = sent("/v1/chat/completions", {**CHAT, **LOST[name]})
    assert status == 200
    assert f'"{name}"' not in json.dumps(body)
    assert name in DOC


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_documented(sent: Sent, name: str) -> None:
    assert sent("/v1/chat/completions", {**CHAT, **REFUSED[name]}) == (400, {})
    assert f"`{name}`" in DOC


def test_a_model_is_needed_and_prompts_are_text(sent: Sent) -> None:
    assert sent("/v1/completions", {"prompt": "hi"})[0] == 400
    assert sent("/v1/completions", {"model": "pocket", "prompt": [1, 2]})[0] == 400
    assert sent("/v1/completions", {**TEXT, "model": "other"})[0] == 404
    assert sent("/tokenize", TEXT)[0] == 404
