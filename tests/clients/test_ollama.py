"""What speaks to Ollama, and the agents that `pippin launch` starts without another API than chat completions."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import DEADLINE_S, ROOT, Example
from tests.server_process import serving

NPM = ROOT / "build" / "npm-clients" / "node_modules"
COUNT = "There are 3 r's in strawberry."

pytestmark = [pytest.mark.mlx, pytest.mark.clients]


def of_npm(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (NPM / name).is_dir(), reason=f"{name} is not there; `make clients` sets it up")


def environment(home: Path, way_out: socket.socket) -> dict[str, str]:
    """Nothing of the user's, and a proxy for whatever is not this server."""
    proxy = f"http://127.0.0.1:{way_out.getsockname()[1]}"
    return {
        "PATH": f"{NPM / '.bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        **{name: proxy for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")},
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }


@of_npm("ollama")
def test_its_own_javascript_package(url: str, tmp_path: Path, way_out: socket.socket) -> None:
    (tmp_path / "node_modules").symlink_to(NPM)
    script = shutil.copy(ROOT / "examples" / "ollama_client.mjs", tmp_path)
    ran = subprocess.run(
        ["node", script, url],
        env=environment(tmp_path, way_out),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ran.returncode == 0, ran.stderr
    counted, called, told, parsed = ran.stdout.splitlines()
    assert counted.startswith("[r") and counted.endswith(f"]{COUNT}")
    assert called == 'calls get_weather with {"city":"Paris"}'
    assert told == "In Paris it is sunny at 21 degrees."
    assert json.loads(parsed) == {"name": "Anna", "age": 31}


def test_litellm(example: Example) -> None:
    whole, streamed = example("litellm_ollama.py").splitlines()
    assert whole.startswith("[r") and whole.endswith(f"]{COUNT}")
    assert streamed == COUNT


@of_npm("opencode-ai")
def test_opencode_is_launched(tmp_path: Path, way_out: socket.socket) -> None:
    """It asks, answers and ends; nothing of it is left in its user's home or among temporary files."""
    script = tmp_path / "script.jsonl"
    script.write_text(json.dumps({"match": ".", "text": "Hello from the script."}) + "\n", encoding="utf-8")
    for name in ("home", "work", "temporary"):
        (tmp_path / name).mkdir()
    with serving("--backend", "mock", "--mock-script", str(script), "--mock-context", "400000") as (_, client):
        ran = subprocess.run(
            ["pippin", "launch", "opencode", "--url", str(client.base_url), "--", "run", "Say hi."],
            env=environment(tmp_path / "home", way_out) | {"TMPDIR": str(tmp_path / "temporary")},
            cwd=tmp_path / "work",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "Hello from the script."
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not list((tmp_path / "temporary").glob("pippin-*"))
