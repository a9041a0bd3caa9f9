"""`pippin doctor`: problems of this machine and configuration that would prevent serving, each with a remedy.

Each check is a function of `Facts`, which tests replace. Nothing is loaded, downloaded or changed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from server import pocket
from server.appliance import launchd, systemd
from server.commands import doctor_ranks, packages
from server.commands.finding import Finding, State
from server.commands.install_service import Here, ParseServe, ServeArguments, service_path
from server.commands.wired_memory import WiredState, describe, read_state
from server.config import Config, ConfigError, engine_config

_OTHER_FILES = 256
_LOW_DISK_BYTES = 20 * 10**9
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*>=\s*([0-9.]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about the machine."""

    here: Here = field(default_factory=Here)
    python: tuple[int, int] = sys.version_info[:2]
    version_of: Callable[[str], str | None] = lambda name: _version_of(name)
    requires: Callable[[], Sequence[str]] = lambda: _requires()
    other_packages: Callable[[], packages.Others] = packages.find_others
    memory_bytes: Callable[[], int | None] = lambda: _memory_bytes()
    footprint: Callable[[Config, Path], Any] = lambda config, folder: _footprint(config, folder)
    wired_limit_mb: Callable[[], int | None] = lambda: _wired_limit_mb()
    wired_state: Callable[[], WiredState] = read_state
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    who_answers: Callable[[str, int], str | None] = lambda host, port: _who_answers(host, port)
    """None: the port is free. Empty: a program other than Pippin has it. Raises OSError if it cannot be bound."""
    cached: Callable[[str], Path | None] = lambda name: _cached(name)
    num_files: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    succeeds: Callable[[Sequence[str]], bool] = lambda command: _succeeds(command)


def add_to(app: typer.Typer, parse: ParseServe) -> None:
    """Add the command to the command line."""

    @app.command()
    def doctor(
        arguments: list[str] | None = ServeArguments,
        hostfile: str | None = typer.Option(None, metavar="FILE", help="MLX hostfile whose machines to check as well."),
        as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
    ) -> None:
        """Check machine and configuration, and suggest fixes. Exits with 1 if there is a problem."""
        facts = Facts()
        found = list(examine(facts, arguments or [], parse))
        if hostfile is not None:
            found += examine_hosts(facts, Path(hostfile), arguments or [], parse)
        if as_json:
            print(json.dumps([asdict(each) for each in found], indent=2))
        else:
            show(found)
        raise typer.Exit(1 if any(each.state == "problem" for each in found) else 0)


def examine(facts: Facts, arguments: Sequence[str], parse: ParseServe) -> Iterator[Finding]:
    """Yield all findings, in the order in which they matter."""
    try:
        config = parse(arguments)
    except ConfigError as error:
        yield from check_versions(facts, Config())
        yield Finding("configuration", "problem", str(error), "correct it; the other checks need it and were skipped")
        return
    yield from check_versions(facts, config)
    yield packages.check(facts.other_packages())
    yield from check_configuration(facts, config)
    yield from check_models(facts, config)
    if facts.here.platform == "darwin":
        yield Finding("wired memory", *describe(config.memory.wired, facts.wired_state()))
    yield from check_disk(facts, config)
    yield check_port(facts, config)
    yield check_files(facts, config)
    yield check_service(facts)


def examine_hosts(facts: Facts, hostfile: Path, arguments: Sequence[str], parse: ParseServe) -> Iterator[Finding]:
    """Yield findings about the machines of a hostfile, as far as they are visible from this one."""
    try:
        config = parse(arguments)
    except ConfigError:
        config = Config()  # its fault is already reported
    name = config.model
    folder = pocket.folder() if pocket.is_meant(name) else _folder(facts, name or "")
    asked = doctor_ranks.RankFacts(version_of=facts.version_of)
    yield from doctor_ranks.examine(asked, hostfile, folder, config.ranks.port)


# --- the checks


def check_versions(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check Python, mlx and mlx-lm against the requirements of the installed package."""
    version = ".".join(map(str, facts.python))
    if facts.python < (3, 11):
        yield Finding(
            "python", "problem", f"{version}; 3.11 or newer is required", "create the environment with a newer Python"
        )
    else:
        yield Finding("python", "ok", version)
    least = {asked[1]: asked[2] for text in facts.requires() if (asked := _REQUIREMENT.match(text))}
    for name in ("mlx", "mlx-lm"):
        found = facts.version_of(name)
        if found is None:
            state: State = "problem" if config.backend == "mlx" else "ok"
            yield Finding(name, state, "is not installed", "run scripts/install" if state == "problem" else "")
        elif name in least and _numbers(found) < _numbers(least[name]):
            yield Finding(name, "problem", f"{found}; {least[name]} or newer is required", "run scripts/install")
        else:
            yield Finding(name, "ok", found)


def check_configuration(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check that the resolved configuration is safe and its keys file readable."""
    from server.security.hosts import UnsafeSetup, check_setup
    from server.security.keys import KeysError, read_keys

    try:
        check_setup(config)
        keys = "no keys"
        if config.security.keys_file is not None:
            keys = f"{len(read_keys(Path(config.security.keys_file).expanduser()))} keys"
        yield Finding("configuration", "ok", f"resolves; {config.host}:{config.port}, {keys}")
    except (UnsafeSetup, KeysError) as error:
        yield Finding("configuration", "problem", str(error))


def check_models(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check each model's files and that it fits into memory."""
    total = facts.memory_bytes()
    yield Finding("memory", "ok", f"{total / 1e9:.1f} GB") if total else Finding("memory", "warning", "size unknown")
    if config.backend == "mock" or config.simulate.machine is not None:
        yield Finding("model", "ok", "the mock backend needs no files")
        return
    names: list[str | None] = [entry.model for entry in config.models]
    for name in names or [config.model]:
        yield from _check_model(facts, config, name)


def _check_model(facts: Facts, config: Config, name: str | None) -> Iterator[Finding]:
    from mlx_backend.api.errors import ModelLoadError
    from mlx_backend.model.checkpoint import open_checkpoint

    what = f"model {name or pocket.MODEL_ID}"
    folder = pocket.folder() if pocket.is_meant(name) else _folder(facts, name or "")
    if folder is None and name and "/" in name and not name.startswith(("/", ".", "~")):
        yield Finding(
            what, "warning", "is not in the download cache", f"downloaded at the start; or now: pippin pull {name}"
        )
        return
    try:
        if folder is None:
            raise ModelLoadError(
                f"folder {name} does not exist" if name else "no model is set, and none ships with Pippin"
            )
        checkpoint = open_checkpoint(folder)
        files = checkpoint.weight_files
    except ModelLoadError as error:
        yield Finding(what, "problem", str(error), "download it again, or set another model")
        return
    size = sum(file.stat().st_size for file in files)
    yield Finding(what, "ok", f"{len(files)} weight files, {size / 1e9:.2f} GB, complete by their headers; in {folder}")
    if checkpoint.notes:
        advice = "it is served without them; remove leftover files, or download the model again"
        yield Finding(what, "warning", "; ".join(checkpoint.notes), advice)
    yield check_fit(facts, config, what, folder)


def check_fit(facts: Facts, config: Config, what: str, folder: Path) -> Finding:
    """Check that the model fits; if not, on a Mac, suggest a higher GPU limit."""
    from mlx_backend.api.errors import EngineError
    from mlx_backend.planning.machines import highest_gpu_limit

    try:
        needs = facts.footprint(config, folder)
    except (EngineError, ImportError, OSError, ValueError) as error:
        return Finding(what, "warning", f"its memory need is unknown: {error}")
    text = f"needs at least {needs.least_bytes / 1e9:.2f} GB, {needs.wanted_bytes / 1e9:.2f} GB with a request"
    if needs.limit_bytes is None:
        return Finding(what, "ok", text)
    text += f"; the limit is {needs.limit_bytes / 1e9:.2f} GB"
    if needs.wanted_bytes <= needs.limit_bytes:
        return Finding(what, "ok", text)
    advice = "use a smaller model, or fewer bits; `pippin plan` shows what fits"
    highest = highest_gpu_limit(facts.memory_bytes() or 0) if facts.here.platform == "darwin" else 0
    if highest > max(needs.limit_bytes, needs.least_bytes):
        now = facts.wired_limit_mb()
        advice = f"sudo sysctl iogpu.wired_limit_mb={highest // 2**20}" + (f" (now {now})" if now else "")
    return Finding(what, "problem" if needs.least_bytes > needs.limit_bytes else "warning", text, advice)


def check_disk(facts: Facts, config: Config) -> Iterator[Finding]:
    """Check disk space for the prefix cache and for downloads."""
    if config.prefix_cache.dir is not None:
        folder = Path(config.prefix_cache.dir).expanduser()
        held = sum(path.stat().st_size for path in folder.glob("*/*.kv")) if folder.is_dir() else 0
        wanted = max(0, config.prefix_cache.max_bytes - held)
        yield _check_room(facts, "disk of the prefix cache", folder, wanted, "lower prefix_cache.max_bytes")
        near = _nearest_folder(folder)
        if not os.access(near, os.W_OK):
            yield Finding("disk of the prefix cache", "problem", f"{near} is not writable", "set another folder")
    environ = facts.here.environ
    hub = Path(environ.get("HF_HOME") or facts.here.home / ".cache/huggingface")
    yield _check_room(facts, "disk of models", hub, _LOW_DISK_BYTES, "free up space before the next download")


def _check_room(facts: Facts, what: str, folder: Path, wanted: int, advice: str) -> Finding:
    try:
        free = facts.free_bytes(_nearest_folder(folder))
    except OSError as error:
        return Finding(what, "problem", f"{folder}: {error.strerror or error}", "set another folder")
    text = f"{free / 1e9:.1f} GB free in {folder}"
    if free < wanted:
        return Finding(what, "warning", f"{text}, {wanted / 1e9:.1f} GB may be needed", advice)
    return Finding(what, "ok", text)


def check_port(facts: Facts, config: Config) -> Finding:
    """Check that the port is free, or find what has it."""
    place = f"{config.host}:{config.port}"
    if config.port == 0:
        return Finding("port", "ok", "any free one")
    try:
        answer = facts.who_answers(config.host, config.port)
    except OSError as error:
        return Finding("port", "problem", f"{place}: {error.strerror or error}", "set another with --host or --port")
    if answer is None:
        return Finding("port", "ok", f"{place} is free")
    if answer:
        return Finding("port", "ok", f"{answer} is already running on {place}")
    return Finding("port", "problem", f"{place} is in use by another program", "stop it, or set another --port")


def check_files(facts: Facts, config: Config) -> Finding:
    """Check the limit of open files: each connection is one."""
    wanted = config.security.max_connections + _OTHER_FILES
    if facts.num_files == resource.RLIM_INFINITY or facts.num_files >= wanted:
        return Finding("open files", "ok", "the limit is high enough")
    text = f"the limit is {facts.num_files}; security.max_connections needs {wanted}"
    return Finding(
        "open files", "warning", text, "raise the hard limit (ulimit -Hn), or lower security.max_connections"
    )


def check_service(facts: Facts) -> Finding:
    """Check whether a service is installed and running."""
    for is_system in (False, True):
        path = service_path(facts.here, is_system=is_system)
        if path is None or not path.is_file():
            continue
        domain = "system" if is_system else f"gui/{facts.here.uid}"
        ask: tuple[str, ...] = ("launchctl", "print", f"{domain}/{launchd.LABEL}")
        if facts.here.platform != "darwin":
            ask = ("systemctl", *(() if is_system else ("--user",)), "is-active", "--quiet", systemd.NAME)
        if facts.succeeds(ask):
            return Finding("service", "ok", f"{path}, running")
        return Finding(
            "service", "warning", f"{path} is installed but not running", f"see `{' '.join(ask)}` and the log"
        )
    return Finding("service", "ok", "not installed (pippin install-service)")


# --- output


def show(found: Sequence[Finding]) -> None:
    """Print one line per finding, and its advice on another."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    for each in found:
        console.print(f"{each.state:<8}", style=colours[each.state], end="", markup=False)
        console.print(f"{each.what}: {each.text}", markup=False)
        if each.advice:
            console.print(f"        -> {each.advice}", markup=False)


# --- the machine


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requires() -> Sequence[str]:
    try:
        return metadata.requires("pippin") or []
    except metadata.PackageNotFoundError:
        return []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _memory_bytes() -> int | None:
    from mlx_backend.planning.machines import this_machine

    found = this_machine()
    return None if found is None else found.memory_bytes


def _footprint(config: Config, folder: Path) -> Any:
    from mlx_backend.factory import estimate_footprint

    return estimate_footprint(engine_config(config, str(folder)))


def _wired_limit_mb() -> int | None:
    command = ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _who_answers(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((host, port))
            return None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _name_of_server(host, port)


def _name_of_server(host: str, port: int) -> str:
    """Return name and version if the server is Pippin; else empty."""
    import http.client

    connection = http.client.HTTPConnection({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=3)
    try:
        connection.request("GET", "/version")
        said = json.loads(connection.getresponse().read(10_000))
        return f"{said['name']} {said['version']}" if said.get("name") == "pippin" else ""
    except (OSError, ValueError, KeyError, AttributeError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _cached(name: str) -> Path | None:
    """Return the folder of a hub id in the download cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _folder(facts: Facts, name: str) -> Path | None:
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    return facts.cached(name) if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _nearest_folder(path: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
