"""The official JavaScript SDKs read every golden answer of every API: a server replays the files, byte for byte.

What a client has made of a stream, and of the whole answer, is compared with what the file of the whole answer says.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.clients.running import ROOT, of_npm, run_script, url_of
from tests.embedding_models import write_served_embedding_model
from tests.server_process import serving

TESTS = ROOT / "tests" / "server"
DIALECTS = TESTS / "dialects"
PACKAGES = ("openai", "@anthropic-ai/sdk", "ollama", "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible")
TYPES = {"json": "application/json", "sse": "text/event-stream", "ndjson": "application/x-ndjson"}

pytestmark = [pytest.mark.clients, of_npm(*PACKAGES)]


@dataclass(frozen=True, slots=True)
class Read:
    """What is to be read in an answer; None where it is an error."""

    text: str = ""
    thinking: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)


def of_chat(answer: Any) -> Read:
    message = answer["choices"][0]["message"]
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in _list(message)]
    return Read(message["content"] or "", message.get("reasoning_content") or "", calls)


def _list(message: Any) -> list[Any]:
    return message.get("tool_calls") or []


def of_completion(answer: Any) -> Read:
    return Read(answer["choices"][0]["text"])


def of_responses(answer: Any) -> Read:
    by_type: dict[str, list[Any]] = {}
    for item in answer["output"]:
        by_type.setdefault(item["type"], []).append(item)
    texts = [part["text"] for item in by_type.get("message", ()) for part in item["content"]]
    thoughts = [
        part["text"] for item in by_type.get("reasoning", ()) for part in item.get("content") or item["summary"]
    ]
    calls = [(item["name"], json.loads(item["arguments"])) for item in by_type.get("function_call", ())]
    calls += [(item["name"], item["input"]) for item in by_type.get("custom_tool_call", ())]
    return Read("".join(texts), "".join(thoughts), calls)


def of_messages(answer: Any) -> Read:
    blocks = answer["content"]
    calls = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    texts, thoughts = (
        "".join(block[name] for block in blocks if block["type"] == name) for name in ("text", "thinking")
    )
    return Read(texts, thoughts, calls)


def of_ollama_chat(answer: Any) -> Read:
    message = answer["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in _list(message)]
    return Read(message["content"], message.get("thinking", ""), calls)


def of_ollama_generate(answer: Any) -> Read:
    return Read(answer["response"], answer.get("thinking", ""))


@dataclass(frozen=True, slots=True)
class Way:
    """A client with one of its APIs: the golden files that it reads, and how their whole answers are to be read."""

    folder: Path
    prefix: str
    read: Callable[[Any], Read]
    streamed: str = "sse"

    def kinds(self) -> Iterator[tuple[str, bool]]:
        """Each golden answer of the API, and whether it is a stream."""
        for path in sorted(self.folder.glob(f"{self.prefix}*")):
            yield path.stem, path.suffix != ".json"

    def path(self, kind: str, *, is_streamed: bool) -> Path:
        return self.folder / f"{kind}.{self.streamed if is_streamed else 'json'}"

    def expected(self, kind: str) -> Read | None:
        whole = self.path(kind, is_streamed=False)
        if not whole.exists():  # a stream that was silent for a while
            return Read("cd")
        answer = json.loads(whole.read_bytes())
        return None if "error" in answer and answer["error"] is not None else self.read(answer)


GOLDEN = TESTS / "golden"
CHAT, COMPLETIONS = Way(GOLDEN, "chat", of_chat), Way(GOLDEN, "completion", of_completion)
RESPONSES = Way(DIALECTS / "openai_responses" / "golden", "", of_responses)
OLLAMA = DIALECTS / "ollama" / "golden"
WAYS = {
    "openai chat": CHAT,
    "openai completions": COMPLETIONS,
    "openai responses": RESPONSES,
    "@anthropic-ai/sdk messages": Way(DIALECTS / "anthropic_messages" / "golden", "", of_messages),
    "ollama chat": Way(OLLAMA, "chat", of_ollama_chat, "ndjson"),
    "ollama generate": Way(OLLAMA, "generate", of_ollama_generate, "ndjson"),
    "@ai-sdk/openai-compatible chat": CHAT,
    "@ai-sdk/openai-compatible completions": COMPLETIONS,
    "@ai-sdk/openai chat": CHAT,
    "@ai-sdk/openai responses": RESPONSES,
}


def asked_for() -> Iterator[tuple[str, str, bool]]:
    """(way, kind, is it a stream)."""
    for name, way in WAYS.items():
        for kind, is_streamed in way.kinds():
            # the AI SDK asks for one choice, and would put the streams of several together
            if not (is_streamed and name.startswith("@ai-sdk") and kind.endswith("_n")):
                yield name, kind, is_streamed


def as_shown(way: str, expected: Read | None, kind: str) -> Read | None:
    """What a client shows of an answer: @ai-sdk/openai knows thoughts as summaries alone."""
    if expected is None or not way.startswith("@ai-sdk/openai ") or kind == "reasoning_summary":
        return expected
    return replace(expected, thinking="")


class Replay(BaseHTTPRequestHandler):
    """Answers each request with a golden file: `/WAY/KIND/...`, whatever is asked there."""

    def do_GET(self) -> None:
        self._answer(200, "application/json", json.dumps(list(asked_for())).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, name, kind, *_ = map(unquote, self.path.split("/"))
        path = WAYS[name].path(kind, is_streamed=bool(body.get("stream")))
        is_failure = kind.endswith("error") and path.suffix == ".json"
        self._answer(500 if is_failure else 200, TYPES[path.suffix[1:]], path.read_bytes())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def replayed() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Replay) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_they_read_every_golden_answer(replayed: str, tmp_path: Path, way_out: socket.socket) -> None:
    lines = run_script(Path(__file__).parent / "golden.mjs", replayed, tmp_path, way_out)
    found = {(line["way"], line["kind"], line["stream"]): line for line in map(json.loads, lines)}
    asked = set(asked_for())
    assert found.keys() == asked
    wrong = []
    for (name, kind, is_streamed), line in found.items():
        expected, read = as_shown(name, WAYS[name].expected(kind), kind), read_from(line)
        if read != expected:
            wrong.append((name, kind, is_streamed, line, expected))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.mlx
def test_they_read_embeddings(tmp_path: Path, way_out: socket.socket) -> None:
    with serving(str(write_served_embedding_model(tmp_path / "tiny"))) as (_, client):
        lines = run_script(Path(__file__).parent / "embeddings.mjs", url_of(client), tmp_path, way_out)
        answer = client.post("/v1/embeddings", json={"input": ["One text.", "Another one."]}).json()
    expected = [item["embedding"] for item in answer["data"]]
    found = {line["way"]: line["vectors"] for line in map(json.loads, lines)}
    assert len(found) == 6
    for way, vectors in found.items():
        for vector, other in zip(vectors, expected, strict=True):
            assert vector == pytest.approx(other, abs=1e-6), way


def read_from(line: dict[str, Any]) -> Read | None:
    if "failed" in line:
        return None
    calls = [
        (name, json.loads(arguments) if arguments.startswith(("{", '"')) else arguments)
        for name, arguments in line["calls"]
    ]
    return Read(line["text"], line.get("thinking") or "", calls)
