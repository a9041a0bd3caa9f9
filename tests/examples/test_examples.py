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
        command = [sys.executable, str(ROOT / "examples" / "openai_sdk.py"), str(client.base_url).rstrip("/")]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert "There are 3 r's in strawberry." in ran.stdout
    assert "called get_weather with" in ran.stdout
    assert "Paris" in lines[-3]
    assert lines[-2].startswith("Person(name=")
    assert lines[-1].startswith("['")
