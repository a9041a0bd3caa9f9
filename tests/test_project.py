"""The project's own files: pins, direct dependencies, scripts, and that no registry is named."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import server

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = (
    "scripts/bench",
    "scripts/clients",
    "scripts/dashboard_shots/run",
    "scripts/fuzz",
    "scripts/install",
    "scripts/lint",
    "scripts/open_webui/run",
    "scripts/check",
    "scripts/test",
    "scripts/formula/run",
    "scripts/wheel/run",
    ".ci/run",
)
NOT_OURS = {
    ".git",
    ".venv",
    ".venv-aider",
    ".venv-clients",
    ".venv-dashboard",
    ".venv-fuzz",
    ".venv-open-webui",
    ".venv-router",
    "build",
    "dist",
    "__pycache__",
}


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in wanted}


def direct(*extras: str) -> list[Requirement]:
    optional = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]
    return [Requirement(text) for text in texts]


def text_files() -> Iterator[tuple[Path, str]]:
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in NOT_OURS and not f.endswith((".egg-info", "_cache"))]
        for path in (Path(folder, name) for name in names):
            try:
                yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # not text
                continue


# --- pins


def test_every_pin_is_one_version_and_nothing_else() -> None:
    for name, pin in pins().items():
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), name
        assert not pin.url
        assert not pin.extras


def test_the_clients_are_pinned_too() -> None:
    lines = (ROOT / "scripts/clients-requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line) for line in pinned)
    names = {line.partition("==")[0] for line in pinned}
    assert {"litellm", "mcp", "langchain-openai", "llm", "lm-eval", "transformers"} <= names
    assert "torch" not in names


def test_the_router_is_pinned_too() -> None:
    lines = (ROOT / "scripts/router-requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line) for line in pinned)
    names = {line.partition("==")[0] for line in pinned}
    assert "smg" in names
    assert "sglang-router" not in names  # it has a command of the same name


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    for wanted in direct("dev", "cuda"):
        pin = pins()[canonicalize_name(wanted.name)]
        (version,) = (specifier.version for specifier in pin.specifier)
        assert wanted.specifier.contains(version), wanted


def test_a_library_whose_internals_are_used_has_an_upper_bound() -> None:
    (uvicorn,) = [wanted for wanted in direct() if wanted.name == "uvicorn"]
    (pin,) = (specifier.version for specifier in pins()["uvicorn"].specifier)
    major, minor = map(int, pin.split(".")[:2])
    assert not uvicorn.specifier.contains(f"{major}.{minor + 1}.0")


def test_everything_that_is_installed_with_us_is_pinned() -> None:
    """Follow the installed packages' own requirements, with the extras that each was asked for."""
    waiting = [(wanted, "") for wanted in direct("dev")]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        assert name in pins(), f"{name} is installed and has no pin"
        for asked in ("", *wanted.extras):
            if (name, asked) not in seen:
                seen.add((name, asked))
                waiting += [(Requirement(text), asked) for text in metadata.requires(name) or []]
    assert len(seen) > len(direct("dev"))


@pytest.mark.parametrize(("name", "platform"), [("mlx-cpu", "linux"), ("mlx-metal", "darwin")])
def test_what_is_bound_to_a_platform_is_marked(name: str, platform: str) -> None:
    marker = pins()[name].marker
    assert marker is not None
    assert [p for p in ("linux", "darwin") if marker.evaluate({"sys_platform": p})] == [platform]
    assert pins()[name].specifier == pins()["mlx"].specifier


# --- dependencies and imports


def third_party_imports() -> Iterator[tuple[Path, str]]:
    for package in ("server", "mlx_backend"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                for top in {name.partition(".")[0] for name in names}:
                    if top not in sys.stdlib_module_names and top not in ("server", "mlx_backend"):
                        yield path.relative_to(ROOT), top


def test_whatever_the_sources_import_is_a_direct_dependency() -> None:
    known = {canonicalize_name(wanted.name) for wanted in direct("plots", "gguf")}  # imported late, and missed politely
    owners = metadata.packages_distributions()
    imported = list(third_party_imports())
    assert ("typer" in {name for _, name in imported}) and owners["typer"] == ["typer"]
    missing = {
        f"{path}: {name}"
        for path, name in imported
        if not known.intersection(map(canonicalize_name, owners.get(name, [name])))  # an extra need not be here
    }
    assert not missing


def test_mlx_comes_by_platform() -> None:
    mlx = [wanted for wanted in direct() if wanted.name == "mlx"]
    for platform, extras in (("darwin", set()), ("linux", {"cpu"})):
        (chosen,) = [w for w in mlx if w.marker and w.marker.evaluate({"sys_platform": platform})]
        assert chosen.extras == extras


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", server.__version__)


# --- files


def test_no_file_names_a_package_registry() -> None:
    words = [
        "pypi" + ".org",
        "python" + "hosted",
        "index" + "-url",
        "find" + "-links",
        "/simple" + "/",
    ]  # not spelt here
    found = {f"{path}: {word}" for path, text in text_files() for word in words if word in text}
    assert not found


def test_text_files_are_found() -> None:
    paths = {path.as_posix() for path, _ in text_files()}
    assert {"pyproject.toml", "server/cli.py", ".ci/run", "scripts/install", "tests/test_project.py"} <= paths


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_and_parse(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_ci_and_the_image_run_the_suite_and_nothing_of_their_own() -> None:
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").count("make test") == 1
    assert 'CMD ["make", "test"]' in (ROOT / "Dockerfile.cpu-test").read_text(encoding="utf-8")


def test_every_file_of_the_packages_is_in_the_wheel() -> None:
    """By the patterns of `package-data`; what `make wheel` builds has them is looked at there."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    paths = [path for package in ("server", "mlx_backend") for path in (ROOT / package).rglob("*") if path.is_file()]
    files = [path.relative_to(ROOT) for path in paths if path.suffix not in (".py", ".pyc") and path.name[0] != "."]
    assert len(files) > 30
    covered = {
        path.relative_to(ROOT)
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert not set(files) - covered
    assert Path("server/profiles/configs/default.yaml") in covered


# --- make


def serve_command(*variables: str, **environ: str) -> str:
    """What `make serve` would run."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "serve", *variables],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in done.stdout.replace("\\\n", " ").splitlines() if "pippin serve" in line]
    return " ".join(line.split()).removeprefix("exec .venv/bin/")


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ((), "pippin serve"),
        (("BACKEND=mock",), "pippin serve --backend 'mock'"),
        (("MODEL=/my models/a",), "pippin serve '/my models/a'"),
        (
            ("MODEL=a/b", "PORT=8081", "CONFIG=my.yaml", "ARGS=--kv-cache-bits 8"),
            "pippin serve 'a/b' --port '8081' --config 'my.yaml' --kv-cache-bits 8",
        ),
        (("HOST=::1", "LOG_LEVEL=debug"), "pippin serve --host '::1' --log-level 'debug'"),
    ],
)
def test_make_serve_passes_through_what_is_set(variables: tuple[str, ...], command: str) -> None:
    assert serve_command(*variables) == command


def test_make_serve_takes_no_host_or_port_from_the_environment() -> None:
    assert serve_command(HOST="my-mac.local", PORT="1", MODEL="a") == "pippin serve"
