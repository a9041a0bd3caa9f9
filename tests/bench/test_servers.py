"""What is known of a server without starting it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.servers import OURS, PEER, ServerKind, peak_bytes_in


def test_peak_memory_is_read_from_the_status() -> None:
    status = "Name:\tpython\nVmPeak:\t 9000 kB\nVmHWM:\t  330752 kB\nVmRSS:\t  1024 kB\n"
    assert peak_bytes_in(status) == 330752 * 1024
    assert peak_bytes_in("Name:\tpython\n") is None


@pytest.mark.parametrize("kind", [OURS, PEER])
def test_the_command_names_the_model_and_the_port(kind: ServerKind) -> None:
    command = kind.command(Path("/models/{odd} name"), 8123)
    assert command[:2] == [sys.executable, "-m"]
    assert "/models/{odd} name" in command
    assert command[command.index("--port") + 1] == "8123"
