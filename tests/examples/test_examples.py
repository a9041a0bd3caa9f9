"""The examples, as a user runs them, against a server of its own with the pocket model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server import pocket
from tests.server_process import DEADLINE_S, serving

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them"),
]


def test_the_openai_sdk() -> None:
    with serving() as (_, client):
        ran, responses = (
            subprocess.run(
                [sys.executable, str(ROOT / "examples" / name), str(client.base_url).rstrip("/")],
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
            )
            for name in ("openai_sdk.py", "openai_responses.py")
        )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert "There are 3 r's in strawberry." in ran.stdout
    assert "called get_weather with" in ran.stdout
    assert "Paris" in lines[-3]
    assert lines[-2].startswith("Person(name=")
    assert lines[-1].startswith("['")
    # the same through the other API, from its first word to its last
    assert responses.stdout.splitlines() == lines[:-1], responses.stderr
