"""Requests made up from the published schema, good and bad: every answer is one that the schema names, as it says.

`make fuzz` installs schemathesis, in an environment of its own, and runs this; it takes about a minute.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.server_process import serving

FUZZER = Path(__file__).parents[2] / ".venv-fuzz" / "bin" / "st"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not FUZZER.exists(), reason="schemathesis is not there; `make fuzz` installs it"),
]


@pytest.mark.parametrize("seed", [1, 2])
def test_every_answer_is_as_published(seed: int, tmp_path: Path) -> None:
    options = ("--seed", str(seed), "--max-examples", "100", "--phases", "coverage,fuzzing")
    patience = ("--no-color", "--request-timeout", "60")
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    with serving("--backend", "mock") as (_, client):
        client.get("/openapi.json")  # made with the first request, which on a busy machine takes a while
        command = [
            str(FUZZER),
            "run",
            f"{client.base_url}/openapi.json",
            "--checks",
            ",".join(CHECKS),
            *options,
            *patience,
        ]
        done = subprocess.run(command, cwd=tmp_path, env=environment)
        assert client.get("/health").json()["status"] == "ok"
    assert done.returncode == 0
