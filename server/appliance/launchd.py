"""A property list of launchd: a user's agent, or with `is_system` the machine's daemon; and the rotation of its log.

Written from launchd.plist(5), launchctl(1) and newsyslog.conf(5); not run on a Mac.
"""

from __future__ import annotations

import plistlib
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from server.appliance.service import NUM_OPEN_FILES, RESTART_S, Service, ServiceFile

LABEL = "local.pippin.server"
RANK_LABEL = "local.pippin.rank"
ROTATION = Path("/etc/newsyslog.d/pippin.conf")
_PATH = "/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_NUM_OLD_LOGS = 5
_LOG_KIB = 10_240


def is_ours(text: str) -> bool:
    try:
        return bool(plistlib.loads(text.encode()).get("Label") in (LABEL, RANK_LABEL))
    except (ExpatError, ValueError, AttributeError):
        return False


def path_of(home: Path, *, is_system: bool, is_rank: bool = False) -> Path:
    folder = Path("/Library/LaunchDaemons") if is_system else home / "Library/LaunchAgents"
    return folder / f"{RANK_LABEL if is_rank else LABEL}.plist"


def log_folder(home: Path) -> Path:
    return home / "Library/Logs/Pippin"


def write(service: Service, log_file: Path) -> ServiceFile:
    """Return the property list and how to load it. `log_file`: the server's configured log file."""
    domain = "system" if service.is_system else f"gui/{service.uid}"
    path = path_of(service.home, is_system=service.is_system, is_rank=service.is_rank)
    label = RANK_LABEL if service.is_rank else LABEL
    launchctl = ("sudo", "launchctl") if service.is_system else ("launchctl",)
    return ServiceFile(
        path=path,
        text=plistlib.dumps(property_list(service)).decode(),
        folders=(log_folder(service.home), log_file.parent, *service.written),
        start=((*launchctl, "bootstrap", domain, str(path)),),
        stop=((*launchctl, "bootout", f"{domain}/{label}"),),
        hints=(
            f"its log: tail -F {log_file}",
            *(() if service.is_rank else _server_hints(service, log_file, f"{' '.join(launchctl)} kill HUP {domain}")),
            *(() if service.is_system else (f"it runs while {service.user} is logged in; for longer: --system",)),
        ),
    )


def _server_hints(service: Service, log_file: Path, hang_up: str) -> tuple[str, ...]:
    return (
        f"new settings without a restart: {hang_up}/{LABEL}",
        f"to have the log rotated: echo '{rotation(service, log_file)}' | sudo tee {ROTATION}",
    )


def property_list(service: Service) -> dict[str, Any]:
    """Return its keys. Interactive: launchd does not throttle its I/O or CPU use."""
    errors = str(log_folder(service.home) / ("rank.log" if service.is_rank else "stderr.log"))
    files = {"NumberOfFiles": NUM_OPEN_FILES}
    keys: dict[str, Any] = {
        "Label": RANK_LABEL if service.is_rank else LABEL,
        "ProgramArguments": list(service.arguments),
        "WorkingDirectory": str(service.folder),
        "EnvironmentVariables": {"PATH": _PATH, **service.environment},
        "RunAtLoad": True,
        "KeepAlive": True if service.is_rank else {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_S,
        "ExitTimeOut": service.stop_within_s,
        "ProcessType": "Interactive",
        "SoftResourceLimits": files,
        "HardResourceLimits": files,
        "StandardOutPath": errors,
        "StandardErrorPath": errors,
        "Umask": 0o077,
    }
    return {**keys, "UserName": service.user} if service.is_system else keys


def rotation(service: Service, log_file: Path) -> str:
    """Return a line of newsyslog: a new file beyond 10 MiB, five old ones, compressed; no process is signalled (N).

    The server detects that its file was moved, and continues in a new one.
    """
    return f"{log_file} {service.user}:staff 600 {_NUM_OLD_LOGS} {_LOG_KIB} * JN"
