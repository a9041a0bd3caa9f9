"""The official SDKs for Python and JavaScript, each as its example, against the pocket model."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import Example
from tests.clients.running import ROOT, environment, of_npm, run, run_script

EXAMPLES = ROOT / "examples"
COUNT = "There are 3 r's in strawberry."
SUNNY = "In Paris it is sunny at 21 degrees."

pytestmark = [pytest.mark.mlx, pytest.mark.clients]


def in_python(name: str, url: str, home: Path, way_out: socket.socket) -> list[str]:
    """The lines of an example that needs no more than the development environment."""
    command = [sys.executable, str(EXAMPLES / name), url]
    return run(command, env=environment(home, way_out), cwd=home).splitlines()


def has_thought(line: str) -> bool:
    return line.startswith("[r") and line.endswith(f"]{COUNT}")


@pytest.mark.parametrize("name", ["openai_sdk.py", "openai_responses.py"])
def test_openai_in_python(name: str, url: str, tmp_path: Path, way_out: socket.socket) -> None:
    thought, called, said, person, *_ = in_python(name, url, tmp_path, way_out)
    assert has_thought(thought)
    assert (called, said) == ('called get_weather with {"city": "Paris"}', SUNNY)
    assert person == "Person(name='Anna', age=31)"


def test_anthropic_in_python(url: str, tmp_path: Path, way_out: socket.socket) -> None:
    thought, called, said, counted = in_python("anthropic_sdk.py", url, tmp_path, way_out)
    assert has_thought(thought)
    assert (called, said) == ('called get_weather with {"city": "Paris"}', SUNNY)
    assert counted.startswith("the prompt has ")


def test_ollama_in_python(url: str, tmp_path: Path, way_out: socket.socket) -> None:
    thought, called, said, person = in_python("ollama_sdk.py", url, tmp_path, way_out)
    assert has_thought(thought.rpartition(" (")[0])
    assert (called, said) == ("calls get_weather with {'city': 'Paris'}", SUNNY)
    assert person == "Person(name='Anna', age=31)"


@of_npm("openai")
def test_openai_in_javascript(url: str, tmp_path: Path, way_out: socket.socket) -> None:
    thought, *told, response = run_script(EXAMPLES / "openai_sdk.mjs", url, tmp_path, way_out)
    assert has_thought(thought)
    assert told == ['calls get_weather with {"city": "Paris"}', SUNNY]
    assert response == COUNT


@of_npm("@anthropic-ai/sdk")
def test_anthropic_in_javascript(url: str, tmp_path: Path, way_out: socket.socket) -> None:
    thought, *told = run_script(EXAMPLES / "anthropic_sdk.mjs", url, tmp_path, way_out)
    assert has_thought(thought)
    assert told == ['calls get_weather with {"city":"Paris"}', SUNNY]


@of_npm("ollama")
def test_ollama_in_javascript(url: str, tmp_path: Path, way_out: socket.socket) -> None:
    thought, called, said, parsed = run_script(EXAMPLES / "ollama_client.mjs", url, tmp_path, way_out)
    assert has_thought(thought)
    assert (called, said) == ('calls get_weather with {"city":"Paris"}', SUNNY)
    assert json.loads(parsed) == {"name": "Anna", "age": 31}


@of_npm("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible")
def test_ai_sdk(url: str, tmp_path: Path, way_out: socket.socket) -> None:
    thought, *told = run_script(EXAMPLES / "ai_sdk.mjs", url, tmp_path, way_out)
    assert has_thought(thought)
    assert told == ['calls get_weather with {"city":"Paris"}', SUNNY] * 2


def test_litellm_by_ollamas_api(example: Example) -> None:
    whole, streamed = example("litellm_ollama.py").splitlines()
    assert has_thought(whole)
    assert streamed == COUNT
