"""What the mock is told to write: the script as a file, and which of its lines answers what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import MockConfig, SamplingParams
from server.app import create_app
from server.config import Config
from server.models import build_model
from server.service.job import ChatPrompt, GenerationJob, InfillPrompt, Prompt, TextPrompt, TokenPrompt
from server.service.mock_script import MockAuthor, read_script
from server.service.names import FieldNames
from server.service.registry import ModelRegistry
from server.text.tokenizer import ByteTokenizer
from tests.serving import wait_until
from tests.tiny_tokenizer import write_tiny_tokenizer

BYTES = ByteTokenizer()


def write_script(folder: Path, *lines: object) -> Path:
    path = folder / "script.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def job_of(prompt: Prompt, **fields: Any) -> GenerationJob:
    return GenerationJob(request_id="r", model="", prompts=(prompt,), names=FieldNames(prompt="prompt"), **fields)


def chat(*said: str | None) -> ChatPrompt:
    return ChatPrompt(tuple({"role": "user", "content": text} for text in said))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (chat("hello there"), "first"),
        (chat("hello", "bye"), "second"),
        (chat("bye, hello"), "first"),
        (chat("hello", None), None),
        (chat("42"), "digits"),
        (TextPrompt("say hello"), "first"),
        (TokenPrompt(tuple(b"say bye")), "second"),
        (InfillPrompt("bye(", ")"), "second"),
        (TextPrompt("nothing"), None),
    ],
)
def test_the_first_line_that_is_found(tmp_path: Path, prompt: Prompt, expected: str | None) -> None:
    lines = (
        {"match": "hel+o", "text": "first"},
        "",
        {"match": "bye", "text": "second"},
        {"match": r"^\d+$", "text": "digits"},
    )
    author = MockAuthor(read_script(write_script(tmp_path, *lines)))
    ids = prompt.ids if isinstance(prompt, TokenPrompt) else (1,)
    (found,) = author.write(BYTES, job_of(prompt, n=2), [ids], [False])
    assert (found and [bytes(output).decode() for output in found.outputs]) == (expected and [expected] * 2)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "7",
        '"text"',
        {"match": "a"},
        {"text": "a"},
        {"match": "a", "text": "b", "more": 1},
        {"match": 1, "text": "b"},
        {"match": "a", "text": None},
        {"match": "(", "text": "b"},
        {"match": "*", "text": "b"},
        {"match": "a{99999999999999999999}", "text": "b"},
        '{"match": "a", "text": "\\ud800"}',
        "[" * 5000,
    ],
    ids=lambda line: str(line)[:20],
)
def test_a_broken_script_is_refused_with_its_line(tmp_path: Path, line: object) -> None:
    path = write_script(tmp_path, {"match": "a", "text": "b"}, "", line)
    with pytest.raises(ModelLoadError, match=r"script\.jsonl, line 3: "):
        build_model(Config(backend="mock", mock=MockConfig(script=str(path))))


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read"):
        read_script(tmp_path / "none.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        read_script(tmp_path / "bytes")


def test_made_up_words_depend_on_prompt_choice_and_seed() -> None:
    author = MockAuthor(has_tokenizer=True)

    def words(prompt: str, seed: int | None = None, temperature: float = 1.0) -> tuple[tuple[int, ...], ...]:
        sampling = SamplingParams(temperature=temperature, seed=seed)
        (found,) = author.write(
            BYTES, job_of(TextPrompt(prompt), n=2, sampling=sampling), [tuple(prompt.encode())], [True]
        )
        assert found is not None
        assert found.closing_ids == frozenset(b'"]}')
        return found.outputs

    assert words("a") == words("a")
    assert len({*words("a"), *words("b"), *words("a", 1)}) == 6
    assert words("a", 1, 0.0) == words("a", 2, 0.0)


@pytest.mark.mlx
async def test_the_tokens_and_the_template_of_a_folder(tmp_path: Path) -> None:
    folder = write_tiny_tokenizer(tmp_path / "model")
    (folder / "config.json").unlink()
    script = write_script(tmp_path, {"match": "hi", "text": "Hello, 世界!"})
    config = Config(backend="mock", mock=MockConfig(script=str(script), tokenizer=str(folder)))
    model = build_model(config)
    model.start()
    try:
        wait_until(lambda: model.state != "loading")
        transport = httpx.ASGITransport(create_app(config, ModelRegistry([model])))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            said = {"messages": [{"role": "user", "content": "hi"}], "n": 2}
            answer = (await client.post("/v1/chat/completions", json=said)).json()
            made_up = (await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 500})).json()
            long = {"prompt": "x", "max_tokens": 900, "ignore_eos": True, "min_tokens": 3}
            ignoring = (await client.post("/v1/completions", json=long)).json()
    finally:
        model.close()
    for choice in answer["choices"]:
        assert choice["message"]["content"] == "Hello, 世界!"
        assert choice["finish_reason"] == "stop"
    assert made_up["choices"][0]["finish_reason"] == "stop"
    assert made_up["choices"][0]["text"].split()
    assert ignoring["usage"]["completion_tokens"] == 900
    assert ignoring["choices"][0]["text"].startswith(made_up["choices"][0]["text"])


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": "{"}, {"tokenizer.json": "[]"}])
def test_a_folder_that_has_no_tokenizer(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelLoadError, match=r"mock\.tokenizer"):
        build_model(Config(backend="mock", mock=MockConfig(tokenizer=str(tmp_path))))
    with pytest.raises(ModelLoadError, match="there is no folder"):
        build_model(Config(backend="mock", mock=MockConfig(tokenizer=str(tmp_path / "none"))))
