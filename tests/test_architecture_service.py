"""The service and the text know no wire: no library of HTTP, not even through others, and no dialect's names."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.dialects.openai_chat.schema import ChatRequest
from server.dialects.openai_completions.schema import CompletionRequest
from server.dialects.openai_embeddings.schema import EmbeddingRequest
from server.dialects.tokenize.schema import DetokenizeRequest, TokenizeRequest
from tests.test_architecture import WIRE_LIBRARIES

ROOT = Path(__file__).parents[1]
BODIES = (ChatRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest, DetokenizeRequest)
WIRE_NAMES = {name for body in BODIES for name in body.model_fields} - {"model"}
"""Fields of requests. `model` is called so in every API."""
NAMING = {"UnsupportedParameter", "to_api_error", "check_known"}
"""Calls that take the name of a field, beside those that take it as `param`."""
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
    """Failures to import each of `modules` by itself, in a process without the libraries of the wire."""
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


# --- names


def names_of_the_wire(source: str) -> Iterator[str]:
    """Places where an error names a field of a request by itself."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            named = [keyword.value for keyword in node.keywords if keyword.arg == "param"]
            named += node.args if called in NAMING else []
            for value in named:
                texts = [each.value for each in ast.walk(value) if isinstance(each, ast.Constant)]
                yield from (f"line {node.lineno}: {text}" for text in texts if text in WIRE_NAMES)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            quoted = re.findall(r"'(\w+)'", node.value)
            yield from (f"line {node.lineno}: {name}" for name in quoted if name in WIRE_NAMES)


def test_no_error_of_service_or_text_names_a_field_as_one_dialect_does() -> None:
    assert {"max_tokens", "tool_choice", "messages", "prompt"} <= WIRE_NAMES
    paths = [path for package in ("service", "text") for path in (ROOT / "server" / package).rglob("*.py")]
    found = {path.name: [*names_of_the_wire(path.read_text(encoding="utf-8"))] for path in paths}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "raise InvalidRequest('no', param='tool_choice')",
        "raise InvalidRequest('no', param='prompt' if is_text else 'other')",
        "raise UnsupportedParameter('tools')",
        "raise to_api_error(error, 'logit_bias' if error.is_bias else job.names.prompt)",
        "message = \"'min_tokens' is more than there may be\"",
        "message = f\"'min_tokens' ({number}) is more than there may be\"",
    ],
)
def test_a_name_of_the_wire_would_be_noticed(source: str) -> None:
    assert [*names_of_the_wire(source)]
