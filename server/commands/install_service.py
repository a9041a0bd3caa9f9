"""`pippin install-service` and `uninstall-service`: let the system start and restart the server.

Chooses the files' places and prints instructions; `server.appliance` writes their contents.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer

from server.appliance import launchd, systemd
from server.appliance.service import Service, ServiceFile, carried
from server.config import Config, ConfigError

ParseServe = Callable[[Sequence[str]], Config]
"""The configuration of `pippin serve` with these arguments. Raises ConfigError."""

JoinOption = typer.Option(
    None, metavar="LEADER:PORT", help="Join rank 0 at this address, as `pippin join` does, instead of serving."
)
ServeArguments = typer.Argument(None, metavar="[-- ARGUMENT...]", help="Arguments of `pippin serve`.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The machine and the user, as far as a service depends on them."""

    platform: str = sys.platform
    home: Path = field(default_factory=lambda: Path(_person().pw_dir))
    user: str = field(default_factory=lambda: _person().pw_name)
    uid: int = field(default_factory=lambda: _person().pw_uid)
    folder: Path = field(default_factory=Path.cwd)
    python: str = sys.executable
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def command(self) -> tuple[str, ...]:
        """Command of Pippin itself: its script, if installed."""
        script = Path(self.python).absolute().with_name("pippin")
        return (str(script),) if script.is_file() else (str(Path(self.python).absolute()), "-m", "server")


def add_to(app: typer.Typer, parse: ParseServe) -> None:
    """Add both commands to the command line."""

    @app.command("install-service")
    def install_service(
        arguments: list[str] | None = ServeArguments,
        join: str | None = JoinOption,
        key: str | None = typer.Option(None, "--key", metavar="@FILE", help="With --join: file of rank 0's key."),
        is_system: bool = typer.Option(
            False, "--system", help="Install for the machine instead of your user: it starts without a login."
        ),
        only_print: bool = typer.Option(False, "--print", help="Print the file without writing it."),
        force: bool = typer.Option(False, "--force", help="Replace a file that this command did not write."),
    ) -> None:
        """Install a launchd (macOS) or systemd (Linux) service that starts the server and restarts it when it fails."""
        if join is not None:
            found = build_rank(Here(), join, key, arguments or [], is_system=is_system)
        else:
            if key is not None:
                raise ConfigError("--key applies only with --join; put the --key of `pippin serve` after --")
            found = build(Here(), arguments or [], parse, is_system=is_system)
        if only_print:
            print(found.text, end="")
            return
        install(found, is_ours=_is_ours(sys.platform), force=force)
        print(f"wrote {found.path}\nto start it now and at every boot:")
        for command in found.start:
            print(f"  {shlex.join(command)}")
        for hint in found.hints:
            print(hint)

    @app.command("uninstall-service")
    def uninstall_service(
        is_system: bool = typer.Option(False, "--system", help="Remove the machine's service instead of your user's."),
        is_rank: bool = typer.Option(False, "--join", help="Remove the service that joins another machine's server."),
        force: bool = typer.Option(False, "--force", help="Remove a file that install-service did not write."),
    ) -> None:
        """Stop the service after its running requests and remove its file."""
        here = Here()
        if is_rank:
            found = build_rank(here, "", None, [], is_system=is_system, is_checked=False)
        else:
            found = build(here, [], parse, is_system=is_system, reads_config=False)
        uninstall(found, is_ours=_is_ours(here.platform), force=force)
        print(f"removed {found.path}")


def build(
    here: Here, arguments: Sequence[str], parse: ParseServe, *, is_system: bool, reads_config: bool = True
) -> ServiceFile:
    """Return the service file for this system. Raises ConfigError."""
    if here.platform not in ("darwin", "linux"):
        raise ConfigError(f"services are supported on macOS and Linux, not on {here.platform}")
    config = parse(arguments) if reads_config else Config()
    is_mac = here.platform == "darwin"
    log_file = here.folder / Path(config.log_file).expanduser() if config.log_file else None
    more: list[str] = []
    if is_mac and log_file is None:
        log_file = launchd.log_folder(here.home) / "pippin.log"
        more = ["--log-file", str(log_file)]
    try:
        service = Service(
            arguments=(*here.command, "serve", *arguments, *more),
            folder=here.folder,
            home=here.home,
            user=here.user,
            uid=here.uid,
            is_system=is_system,
            environment=carried(here.environ),
            drain_s=config.stream.drain_s,
            written=_written(here, config, log_file),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return launchd.write(service, log_file) if is_mac and log_file is not None else systemd.write(service)


def build_rank(
    here: Here, leader: str, key: str | None, arguments: Sequence[str], *, is_system: bool, is_checked: bool = True
) -> ServiceFile:
    """Return the file of a service that joins and rejoins rank 0 at `leader`. Raises ConfigError."""
    if here.platform not in ("darwin", "linux"):
        raise ConfigError(f"services are supported on macOS and Linux, not on {here.platform}")
    if is_checked:
        key = _checked(here, leader, key)
    log_file = launchd.log_folder(here.home) / "rank.log"
    try:
        service = Service(
            arguments=(*here.command, "join", leader, "--key", key or "", *arguments),
            folder=here.folder,
            home=here.home,
            user=here.user,
            uid=here.uid,
            is_system=is_system,
            environment=carried(here.environ),
            drain_s=0.0,
            written=_written(here, Config(), None),
            is_rank=True,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return launchd.write(service, log_file) if here.platform == "darwin" else systemd.write(service)


def _checked(here: Here, leader: str, key: str | None) -> str:
    """Return the key's file with its full path. Raises ConfigError if the service could not start."""
    from mlx_backend.follow import KeyFileError, parse, read_key  # late: `pippin --help` needs no engine

    if key is None or key == "@-":
        raise ConfigError("--join needs --key @FILE, a file with the same key as rank 0's")
    whole = f"@{here.folder / Path(key[1:]).expanduser()}" if key.startswith("@") and len(key) > 1 else key
    try:
        parse(leader)
        read_key(whole)
    except KeyFileError as error:
        raise ConfigError(f"--key: {error}") from None
    except ValueError as error:
        raise ConfigError(f"--join: {error}") from None
    return whole


def install(found: ServiceFile, *, is_ours: Callable[[str], bool], force: bool) -> None:
    """Write the file and create the folders it names. Raises ConfigError."""
    try:
        _check_owner(found.path, is_ours, force=force)
        for folder in (found.path.parent, *found.folders):
            folder.mkdir(parents=True, exist_ok=True)
        unfinished = found.path.with_name(f".{found.path.name}.new")
        unfinished.write_text(found.text, encoding="utf-8")
        unfinished.chmod(0o644)
        os.replace(unfinished, found.path)
    except OSError as error:
        advice = "; --system needs sudo" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"{error.filename or found.path}: {error.strerror or error}{advice}") from None


def uninstall(
    found: ServiceFile,
    *,
    is_ours: Callable[[str], bool],
    force: bool,
    run: Callable[[Sequence[str]], int] = lambda command: _run(command),
) -> None:
    """Stop the service and remove its file. Raises ConfigError."""
    if not found.path.exists():
        raise ConfigError(f"{found.path} does not exist; no service is installed")
    _check_owner(found.path, is_ours, force=force)
    for command in found.stop:
        if run(command) != 0:
            why = "it was not running, or must be stopped manually"
            print(f"pippin: `{shlex.join(command)}` failed: {why}", file=sys.stderr)
    try:
        found.path.unlink()
    except OSError as error:
        raise ConfigError(f"{found.path}: {error.strerror or error}") from None


def service_path(here: Here, *, is_system: bool) -> Path | None:
    """Return the path of the service file; None on other systems."""
    if here.platform == "darwin":
        return launchd.path_of(here.home, is_system=is_system)
    return systemd.path_of(here.home, is_system=is_system) if here.platform == "linux" else None


def _check_owner(path: Path, is_ours: Callable[[str], bool], *, force: bool) -> None:
    if force or not path.exists():
        return
    if not is_ours(path.read_text(encoding="utf-8", errors="replace")):
        raise ConfigError(f"{path} was not written by `pippin install-service`; check it, then use --force")


def _is_ours(platform: str) -> Callable[[str], bool]:
    return launchd.is_ours if platform == "darwin" else systemd.is_ours


def _written(here: Here, config: Config, log_file: Path | None) -> tuple[Path, ...]:
    """Return the folders that the service writes to: prefix cache, log and model downloads."""
    cache = here.environ.get("XDG_CACHE_HOME") or str(here.home / ".cache")
    hub = here.environ.get("HF_HOME") or f"{cache}/huggingface"
    folders = [Path(hub)]
    if config.prefix_cache.dir:
        folders.append(here.folder / Path(config.prefix_cache.dir).expanduser())
    if log_file is not None:
        folders.append(log_file.parent)
    return tuple(dict.fromkeys(folders))


def _person() -> pwd.struct_passwd:
    """Return the user of the service: under sudo, the invoking user."""
    name = os.environ.get("SUDO_USER") if os.geteuid() == 0 else None
    return pwd.getpwnam(name or getpass.getuser())


def _run(command: Sequence[str]) -> int:
    try:
        return subprocess.run(command, check=False).returncode
    except OSError:
        return 127
