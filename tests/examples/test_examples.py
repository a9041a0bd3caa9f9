"""The examples, as a user runs them, against a server of its own with the pocket model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import pocket
from tests.server_process import DEADLINE_S, serving

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as (_, client):
        yield str(client.base_url).rstrip("/")


def output_of(example: str, url: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / example), url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_openai_sdk(url: str) -> None:
    written = output_of("openai_sdk.py", url)
    lines = written.splitlines()
    assert "There are 3 r's in strawberry." in written
    assert "called get_weather with" in written
    assert "Paris" in lines[-3]
    assert lines[-2].startswith("Person(name=")
    assert lines[-1].startswith("['")
    # the same through the other API, from its first word to its last
    assert output_of("openai_responses.py", url).splitlines() == lines[:-1]


def test_the_anthropic_sdk(url: str) -> None:
    first, called, said, counted = output_of("anthropic_sdk.py", url).splitlines()
    assert first.startswith("[r") and first.endswith("]There are 3 r's in strawberry.")
    assert called == 'called get_weather with {"city": "Paris"}'
    assert said == "In Paris it is sunny at 21 degrees."
    number = counted.removeprefix("the prompt has ").partition(" ")[0]
    assert counted.endswith(f"used: {number}")


def test_the_ollama_sdk(url: str) -> None:
    counted, called, told, parsed = output_of("ollama_sdk.py", url).splitlines()
    assert counted.startswith("[r") and "]There are 3 r's in strawberry. (" in counted.replace("][", "")
    assert called == "calls get_weather with {'city': 'Paris'}"
    assert told == "In Paris it is sunny at 21 degrees."
    assert parsed == "Person(name='Anna', age=31)"
