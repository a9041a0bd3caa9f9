"""The import rules of docs/structure.md, held by reading the sources. Knows no module's contents, only its imports."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Literal

import pytest

from mlx_backend.core.sequence import SequenceGroup, TokenSequence

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "mlx_backend")
MAX_LINES = 400

SERVER_MAY_IMPORT = {
    f"mlx_backend.{name}"
    for name in (
        "api.interface",
        "api.errors",
        "api.options",
        "conversion.entry",
        "factory",
        "follow",
        "model.adapter_files",
        "model.checkpoint",
        "model.draft_files",
        "planning.drafts",
        "planning.memory",
        "planning.machines",
        "planning.macos",
        "planning.links",
        "planning.planner",
        "planning.ranks",
        "planning.ranks_plan",
        "planning.speed",
        "planning.wired_lock",
        "planning.wiring",
        "prefix_cache.folder",
    )
}
REQUEST_FILES = ("server/dialects/*", "server/service/*", "server/grammars/*", "server/text/*", "server/security/*")
REQUEST_DOORS = {"mlx_backend.api.interface", "mlx_backend.api.errors"}
MLX_FILES = (
    "mlx_backend/acceptance/*.py",
    "mlx_backend/conversion/calibrated.py",
    "mlx_backend/conversion/compensated.py",
    "mlx_backend/conversion/computing.py",
    "mlx_backend/conversion/convert.py",
    "mlx_backend/conversion/cpu_matmul.py",
    "mlx_backend/conversion/hessians.py",
    "mlx_backend/conversion/plan.py",
    "mlx_backend/conversion/quality.py",
    "mlx_backend/conversion/quantizing.py",
    "mlx_backend/conversion/search.py",
    "mlx_backend/conversion/sensitivity.py",
    "mlx_backend/conversion/source.py",
    "mlx_backend/conversion/tracing.py",
    "mlx_backend/model/loader.py",
    "mlx_backend/model/rank_shapes.py",
    "mlx_backend/model/sharding.py",
    "mlx_backend/model/skeleton.py",
    "mlx_backend/runners/*.py",
    "mlx_backend/kv_cache/*.py",
    "mlx_backend/sampling/*.py",
    "mlx_backend/prefix_cache/store*.py",
)
NO_MLX_FILES = (
    "mlx_backend/acceptance/checks.py",
    "mlx_backend/acceptance/streams.py",
    "mlx_backend/kv_cache/allocation.py",
    "mlx_backend/kv_cache/grouping.py",
    "mlx_backend/kv_cache/spec.py",
    "mlx_backend/kv_cache/plan.py",
    "mlx_backend/runners/base.py",
    "mlx_backend/runners/mock.py",
    "mlx_backend/*/__init__.py",
)
FLOORS = (
    ("api",),
    ("core",),
    ("kv_cache", "sampling"),
    ("planning",),
    ("model",),
    ("prefix_cache", "conversion", "drafting"),
    ("runners",),
    ("ranks",),
    ("engine",),
    ("factory",),
    ("replay", "follow", "acceptance"),
)
"""Rooms of `mlx_backend`, lowest first: each imports itself and what is on lower floors."""
_READERS = ("engine", "prefix_cache", "drafting", "core")
SEQUENCE_READERS = tuple(f"mlx_backend/{room}/*" for room in _READERS)
SEQUENCE_OWNERS = ("mlx_backend/engine/*", "mlx_backend/core/sequence.py")
SEQUENCE_FIELDS = frozenset(
    name for kind in (SequenceGroup, TokenSequence) for name in kind.__dataclass_fields__ if name not in ("id", "index")
)
LATE_MLX_LM_FILES = ("server/text/tokenizer.py",)
PYDANTIC_FILES = ("*/schema.py", "server/dialects/openai_schema.py", "server/dialects/openai_shared.py")
WIRE_LIBRARIES = {"fastapi", "starlette", "uvicorn", "sse_starlette", "pydantic"}

LAYERS = ("text", "service", "dialects", "load_report", "plan", "models", "app", "run", "commands", "cli", "__main__")
"""Parts of `server`, lowest first; each imports itself and what is below. Other files of `server` are shared."""

When = Literal["module", "function", "types"]


@dataclass(frozen=True)
class Import:
    """One imported module: where it stands, and whether it happens on import, in a call, or for type checkers only."""

    target: str
    when: When
    line: int

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


@dataclass(frozen=True)
class Module:
    """One source file, by its path from the root."""

    path: str
    source: str

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def layer(self) -> int | None:
        """The place in LAYERS; None for a shared file and for the engine."""
        package, _, rest = self.name.partition(".")
        part = rest.partition(".")[0]
        return LAYERS.index(part) if package == "server" and part in LAYERS else None

    @property
    def imports(self) -> tuple[Import, ...]:
        return _imports(self.source)

    def at(self, imported: Import, what: str) -> str:
        return f"{self.path}:{imported.line}: {what}"


@cache
def _imports(source: str) -> tuple[Import, ...]:
    return tuple(_walk(ast.parse(source), "module"))


def _walk(node: ast.AST, when: When) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, when, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            yield from (Import(f"{base}.{alias.name}", when, child.lineno) for alias in child.names)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _walk(child, "function" if when == "module" else when)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from (found for part in child.body for found in _walk(ast.Module([part], []), "types"))
            yield from (found for part in child.orelse for found in _walk(ast.Module([part], []), when))
        else:
            yield from _walk(child, when)


@cache
def the_modules() -> tuple[Module, ...]:
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return tuple(Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


# --- the rules: each gives what breaks it


def engine_knows_no_server(modules: Sequence[Module]) -> Iterator[str]:
    for module, imported in _all_imports(modules, "mlx_backend/*"):
        if imported.top == "server":
            yield module.at(imported, "the engine imports nothing of the server")


def server_knows_the_engine_by_its_doors(modules: Sequence[Module]) -> Iterator[str]:
    for module, imported in _all_imports(modules, "server/*"):
        doors = (imported.target, imported.target.rpartition(".")[0])
        if imported.top == "mlx_backend" and not SERVER_MAY_IMPORT.intersection(doors):
            yield module.at(imported, f"the server may not import {imported.target}")


def requests_cross_at_two_doors(modules: Sequence[Module]) -> Iterator[str]:
    for module, imported in _all_imports(modules):
        doors = {imported.target, imported.target.rpartition(".")[0]}
        if imported.top == "mlx_backend" and _is_in(module, REQUEST_FILES) and not doors & REQUEST_DOORS:
            yield module.at(imported, f"{imported.target} is not for what a request passes through")


def mlx_stays_where_it_computes(modules: Sequence[Module]) -> Iterator[str]:
    for module, imported in _all_imports(modules):
        late = imported.when == "function" and imported.top == "mlx_lm" and _is_in(module, LATE_MLX_LM_FILES)
        allowed = late or (_is_in(module, MLX_FILES) and not _is_in(module, NO_MLX_FILES))
        if imported.top in ("mlx", "mlx_lm") and not allowed:
            yield module.at(imported, f"{imported.top} is not imported here")


def rooms_import_downwards(modules: Sequence[Module]) -> Iterator[str]:
    floors = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    for module, imported in _all_imports(modules, "mlx_backend/*"):
        room, target = module.name.split(".")[1:2], imported.target.split(".")[1:2]
        if imported.top != "mlx_backend" or room == target:
            continue
        if not room or room[0] not in floors or target[0] not in floors:
            yield module.at(imported, "a room that is on no floor")
        elif floors[target[0]] >= floors[room[0]]:
            yield module.at(imported, f"{target[0]} is not below {room[0]}")


def live_sequences_stay_on_their_side_of_the_door(modules: Sequence[Module]) -> Iterator[str]:
    for module, imported in _all_imports(modules, "mlx_backend/*"):
        if imported.target.startswith("mlx_backend.core.sequence") and not _is_in(module, SEQUENCE_READERS):
            yield module.at(imported, "a runner knows sequences by their ids")


def sequences_are_changed_by_the_engine_alone(modules: Sequence[Module]) -> Iterator[str]:
    for module in modules:
        if not _is_in(module, SEQUENCE_READERS) or _is_in(module, SEQUENCE_OWNERS):
            continue
        for node in ast.walk(ast.parse(module.source)):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                is_own = isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
                if isinstance(target, ast.Attribute) and target.attr in SEQUENCE_FIELDS and not is_own:
                    yield f"{module.path}:{target.lineno}: assigns {target.attr} of a sequence or a prompt"


def pydantic_stays_at_the_wire(modules: Sequence[Module]) -> Iterator[str]:
    for module, imported in _all_imports(modules):
        if imported.top == "pydantic" and not _is_in(module, PYDANTIC_FILES):
            yield module.at(imported, "pydantic belongs into a schema.py")


def text_and_service_know_no_http(modules: Sequence[Module]) -> Iterator[str]:
    for module, imported in _all_imports(modules):
        if _is_in(module, ("server/text/*", "server/service/*")) and imported.top in WIRE_LIBRARIES:
            yield module.at(imported, f"{imported.top} belongs to the dialects and the app")


def dialects_know_not_each_other(modules: Sequence[Module]) -> Iterator[str]:
    dialects = {module.name.split(".")[2] for module in modules if fnmatch(module.path, "server/dialects/*/*.py")}
    for module, imported in _all_imports(modules, "server/dialects/*/*.py"):
        mine, other = module.path.split("/")[2], imported.target.split(".")[2:3]
        if imported.target.startswith("server.dialects.") and other[0] != mine and other[0] in dialects:
            yield module.at(imported, f"dialect {mine} imports dialect {other[0]}")


def layers_import_downwards(modules: Sequence[Module]) -> Iterator[str]:
    for module, imported in _all_imports(modules, "server/*"):
        target = Module(imported.target.replace(".", "/") + ".py", "").layer
        ceiling = module.layer if module.layer is not None else LAYERS.index("text")
        if target is not None and target > ceiling:
            yield module.at(imported, f"{imported.target} is in a higher layer")


def applications_have_typed_parts(modules: Sequence[Module]) -> Iterator[str]:
    """The framework's `app.state` takes anything under any name: nothing here reads or writes it."""
    for module in modules:
        for node in ast.walk(ast.parse(module.source)):
            if isinstance(node, ast.Attribute) and node.attr == "state" and ast.unparse(node.value).endswith("app"):
                yield f"{module.path}:{node.lineno}: app.state has no types; see server/dialects/parts.py"


def imports_are_absolute(modules: Sequence[Module]) -> Iterator[str]:
    for module, imported in _all_imports(modules):
        if imported.target.startswith("."):
            yield module.at(imported, "relative import")


def no_cycles(modules: Sequence[Module]) -> Iterator[str]:
    """Imports that run when a module is imported form no circle."""
    names = {module.name for module in modules}
    edges = {module.name: sorted(_runtime_targets(module, names)) for module in modules}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> Iterator[str]:
        if name in trail:
            yield "cycle: " + " -> ".join([*trail[trail.index(name) :], name])
        elif name not in done:
            for target in edges[name]:
                yield from visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        yield from visit(name, ())


def files_are_short(modules: Sequence[Module]) -> Iterator[str]:
    for module in modules:
        lines = module.source.count("\n")
        if lines > MAX_LINES:
            yield f"{module.path}: {lines} lines, more than {MAX_LINES}"


def modules_say_what_they_know(modules: Sequence[Module]) -> Iterator[str]:
    for module in modules:
        if not ast.get_docstring(ast.parse(module.source)):
            yield f"{module.path}: no docstring"


def _all_imports(modules: Sequence[Module], pattern: str = "*") -> Iterator[tuple[Module, Import]]:
    return ((module, found) for module in modules if fnmatch(module.path, pattern) for found in module.imports)


def _is_in(module: Module, patterns: Sequence[str]) -> bool:
    return any(fnmatch(module.path, pattern) for pattern in patterns)


def _runtime_targets(module: Module, names: set[str]) -> set[str]:
    """The project's modules that importing `module` imports: `from a import b` means a.b where that is a module.

    With each come the packages that it is in, but those of `module`, which have begun.
    """
    found = set()
    for imported in module.imports:
        if imported.when == "module":
            target = imported.target if imported.target in names else imported.target.rpartition(".")[0]
            found |= {target, *_packages(target)}
    return (found & names) - {module.name, *_packages(module.name)}


def _packages(name: str) -> Iterator[str]:
    """The packages around a module."""
    return (name[:end] for end, letter in enumerate(name) if letter == ".")


# --- the rules hold, and would notice if they did not

Rule = Callable[[Sequence[Module]], Iterator[str]]

PLANTED: dict[Rule, list[tuple[str, str]]] = {
    engine_knows_no_server: [("mlx_backend/engine/engine.py", "def f():\n    from server.text import events")],
    server_knows_the_engine_by_its_doors: [
        ("server/service/x.py", "from mlx_backend.engine.engine import DeviceEngine"),
        ("server/service/x.py", "from mlx_backend.engine import scheduler"),
        ("server/service/x.py", "import mlx_backend.runners.mock"),
    ],
    requests_cross_at_two_doors: [
        ("server/service/x.py", "from mlx_backend.factory import create_engine"),
        ("server/dialects/a/routes.py", "def f():\n    from mlx_backend.planning import memory"),
    ],
    mlx_stays_where_it_computes: [
        ("mlx_backend/engine/scheduler.py", "def f():\n    import mlx.core as mx"),
        ("mlx_backend/kv_cache/spec.py", "import mlx_lm"),
        ("mlx_backend/runners/mock.py", "import mlx.core"),
        ("mlx_backend/kv_cache/__init__.py", "from mlx import core"),
        ("server/text/tokenizer.py", "from mlx_lm import utils"),
        ("server/text/tokenizer.py", "def f():\n    import mlx.core"),
        ("server/app.py", "if TYPE_CHECKING:\n    import mlx.core"),
    ],
    rooms_import_downwards: [
        ("mlx_backend/kv_cache/plain.py", "from mlx_backend.planning.memory import batch_bytes"),
        ("mlx_backend/kv_cache/plain.py", "def f():\n    from mlx_backend import planning"),
        ("mlx_backend/kv_cache/plain.py", "from mlx_backend.sampling import keys"),
        ("mlx_backend/prefix_cache/store_mlx.py", "from mlx_backend.runners.base import failed"),
        ("mlx_backend/runners/mock.py", "if TYPE_CHECKING:\n    from mlx_backend.engine import scheduler"),
        ("mlx_backend/attic.py", "from mlx_backend.core import step"),
    ],
    live_sequences_stay_on_their_side_of_the_door: [
        ("mlx_backend/runners/mlx.py", "from mlx_backend.core.sequence import SequenceGroup"),
        ("mlx_backend/sampling/sampler.py", "from mlx_backend.core import sequence"),
    ],
    sequences_are_changed_by_the_engine_alone: [
        ("mlx_backend/prefix_cache/cache.py", "def f(prefill):\n    prefill.num_computed_tokens = 0"),
        ("mlx_backend/prefix_cache/cache.py", "def f(prefill):\n    prefill.num_cached_tokens += 1"),
    ],
    pydantic_stays_at_the_wire: [("server/config.py", "from pydantic import BaseModel")],
    text_and_service_know_no_http: [("server/service/generation.py", "from fastapi import Request")],
    dialects_know_not_each_other: [("server/dialects/a/decode.py", "from server.dialects.b.schema import Message")],
    layers_import_downwards: [
        ("server/text/stop.py", "from server.service.job import GenerationJob"),
        ("server/service/x.py", "def f():\n    from server.app import create_app"),
        ("server/errors.py", "from server.service import registry"),
        ("server/dialects/a/routes.py", "import server.cli"),
    ],
    applications_have_typed_parts: [
        ("server/dialects/a/routes.py", "def f(request): return request.app.state.registry"),
        ("server/app.py", "app.state.x = 1"),
    ],
    imports_are_absolute: [("server/app.py", "from . import errors")],
    no_cycles: [
        ("server/x.py", "from server import y"),
        ("server/dialects/__init__.py", "from server.commands import z"),
    ],
    files_are_short: [("server/x.py", '"""Long."""\n' + "x = 1\n" * MAX_LINES)],
    modules_say_what_they_know: [("server/x.py", "x = 1  # no docstring")],
}

ALLOWED = [
    ("server/service/x.py", "from mlx_backend.api import errors\nfrom mlx_backend.api.interface import Engine"),
    ("server/text/tokenizer.py", "def load():\n    from mlx_lm import utils"),
    ("mlx_backend/kv_cache/plain.py", "import mlx.core as mx\nfrom mlx_backend.kv_cache import spec"),
    ("mlx_backend/x.py", "import mlxtend"),
    ("server/dialects/a/schema.py", "from pydantic import BaseModel"),
    ("server/dialects/a/routes.py", "from server.dialects import openai_shared\nfrom server.dialects.a import schema"),
    ("server/dialects/a/routes.py", "from server.dialects.openai_shared import answer"),
    ("server/cli.py", "def f():\n    from server.run import serve"),
    ("server/x.py", "def f():\n    from server import y"),
    ("server/dialects/a/routes.py", "def f(request): return request.state.tenant"),
    ("server/x.py", "if TYPE_CHECKING:\n    from server import y"),
]

# what the planted module stands among
NEIGHBOURS = (
    Module("server/y.py", '"""Imports x."""\nimport server.x'),
    Module("server/dialects/b/schema.py", '"""Another dialect."""'),
    Module("server/commands/z.py", '"""Imports a module of a package."""\nimport server.dialects.b.schema'),
)


def test_the_sources_are_found() -> None:
    names = {module.name for module in the_modules()}
    assert {"server", "server.config", "server.text.events", "mlx_backend.api.interface"} <= names


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    assert list(rule(the_modules())) == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [(rule, *planted) for rule, all_planted in PLANTED.items() for planted in all_planted],
    ids=lambda value: getattr(value, "__name__", None) or value[:40],
)
def test_rule_catches_what_breaks_it(rule: Rule, path: str, source: str) -> None:
    assert list(rule((Module(path, source), *NEIGHBOURS)))


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_what_is_allowed_breaks_no_rule(path: str, source: str) -> None:
    modules = (Module(path, f'"""A module."""\n{source}'), *NEIGHBOURS)
    assert [broken for rule in PLANTED for broken in rule(modules)] == []
