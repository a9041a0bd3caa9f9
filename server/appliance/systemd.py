"""A systemd unit: a user's, or with `is_system` the machine's."""

from __future__ import annotations

import re
from pathlib import Path

from server.appliance.service import NUM_OPEN_FILES, RESTART_S, Service, ServiceFile

NAME = "pippin.service"
RANK_NAME = "pippin-rank.service"
MARK = "# Written by `pippin install-service`."
_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")


def is_ours(text: str) -> bool:
    return text.startswith(MARK)


def path_of(home: Path, *, is_system: bool, is_rank: bool = False) -> Path:
    name = RANK_NAME if is_rank else NAME
    return Path("/etc/systemd/system", name) if is_system else home / ".config/systemd/user" / name


def write(service: Service) -> ServiceFile:
    """Return the unit and how to start it."""
    systemctl = ("sudo", "systemctl") if service.is_system else ("systemctl", "--user")
    name = RANK_NAME if service.is_rank else NAME
    reload = f"new settings without a restart: {' '.join(systemctl)} reload {name}"
    linger = f"it runs while {service.user} is logged in; for longer: loginctl enable-linger {service.user}"
    return ServiceFile(
        path=path_of(service.home, is_system=service.is_system, is_rank=service.is_rank),
        text=unit(service),
        folders=service.written,
        start=((*systemctl, "daemon-reload"), (*systemctl, "enable", "--now", name)),
        stop=((*systemctl, "disable", "--now", name),),
        hints=(
            f"its log: journalctl {'' if service.is_system else '--user '}-u {name} -f",
            *(() if service.is_rank else (reload,)),
            *(() if service.is_system else (linger,)),
        ),
    )


def unit(service: Service) -> str:
    """Return the unit's text. Exit code 2 means an unusable configuration: restarting would not help.

    A rank is restarted however often it ends: rank 0 may be away for long.
    """
    lines = [
        MARK,
        "[Unit]",
        f"Description=Pippin, {'a rank of ' if service.is_rank else ''}an LLM inference server",
        *(["After=network-online.target", "Wants=network-online.target"] if service.is_system else []),
        *(["StartLimitIntervalSec=0"] if service.is_rank else ["StartLimitIntervalSec=300", "StartLimitBurst=5"]),
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={' '.join(_quoted(argument.replace('$', '$$')) for argument in service.arguments)}",
        *([] if service.is_rank else ["ExecReload=/bin/kill -HUP $MAINPID"]),
        f"WorkingDirectory={_escaped(str(service.folder))}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in service.environment.items()),
        *([f"User={service.user}"] if service.is_system else []),
        f"Restart={'always' if service.is_rank else 'on-failure'}",
        f"RestartSec={RESTART_S}",
        "RestartPreventExitStatus=2",
        "# The signal goes to the server alone, which ends what it has started.",
        "KillMode=mixed",
        f"TimeoutStopSec={service.stop_within_s}",
        f"LimitNOFILE={NUM_OPEN_FILES}",
        "UMask=0077",
        "NoNewPrivileges=yes",
        "# Nothing is written but these and a temporary folder of its own.",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        *(f"ReadWritePaths={_quoted(f'-{path}')}" for path in service.written),
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "",
        "[Install]",
        f"WantedBy={'multi-user' if service.is_system else 'default'}.target",
        "",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """Return one word of a unit's line, quoted if necessary."""
    if _PLAIN.fullmatch(text):
        return text
    return '"' + _escaped(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
