"""The service and the text without HTTP: each of their modules is imported where there is no library of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.test_architecture import WIRE_LIBRARIES

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(ROOT).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for package in ("server/service", "server/text")
    for path in (ROOT / package).rglob("*.py")
)

IMPORT_EACH = """
import importlib, json, sys
libraries, modules = json.loads(sys.stdin.read())
sys.modules |= dict.fromkeys(libraries)  # None: there is no such module
failures = {}
for name in modules:
    for known in [each for each in sys.modules if each.partition(".")[0] in ("server", "mlx_backend")]:
        del sys.modules[known]
    try:
        importlib.import_module(name)
    except ImportError as error:
        failures[name] = str(error)
print(json.dumps(failures))
"""


def failures_of(modules: list[str]) -> dict[str, str]:
    """Those of `modules` that cannot be imported, each by itself, in a process without the libraries of the wire."""
    asked = json.dumps([sorted(WIRE_LIBRARIES), modules])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH], cwd=ROOT, input=asked, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_the_service_loads_no_http() -> None:
    code = "import sys, server.service.generation; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "server" in loaded
    assert not loaded & WIRE_LIBRARIES


def test_every_module_of_service_and_text_is_imported_alone_and_without_http() -> None:
    assert {"server.service.generation", "server.text", "server.text.calls.reader"} <= {*MODULES}
    assert failures_of(MODULES) == {}


def test_a_module_that_loads_http_would_be_noticed() -> None:
    assert [*failures_of(["server.error_answers", "server.errors"])] == ["server.error_answers"]
