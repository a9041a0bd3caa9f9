"""What macOS says of itself, as recorded; and the search for panics of the GPU driver, on files that are made here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.planning import macos
from mlx_backend.planning.macos import find_panics, macos_version, wired_bytes

SW_VERS = "ProductName:\t\tmacOS\nProductVersion:\t\t26.5.2\nBuildVersion:\t\t25F84\n"
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                             1804611.
Pages active:                           4483329.
Pages wired down:                        305176.
Pages purgeable:                          22981.
"""
UNDERFLOW = (
    'panic(cpu 7 caller 0xfffffe004418be28): "completeMemory() prepare count underflow" @IOGPUMemory.cpp:550\n'
    "Debugger message: panic\nOS version: 25E246\nEpoch Time:        sec       usec\n"
    "  Boot    : 0x69e578d2 0x000480a2\n  Sleep   : 0x00000000 0x00000000\n  Calendar: 0x69e5a0c1 0x0002d5c1\n"
)
GROUP = UNDERFLOW.replace("completeMemory() prepare count underflow", "remove_memory_object() memory object not found")
GROUP = GROUP.replace("IOGPUMemory.cpp:550", "IOGPUGroupMemory.cpp:323")
WATCHDOG = (
    'panic(cpu 2 caller 0xfffffe0021): "watchdog timeout: no checkins from watchdogd in 93 seconds"\n'
    "  Calendar: 0x69e5a0c1 0x0002d5c1\nloaded kexts:\ncom.apple.iokit.IOGPUFamily\t130.13\n"
)
CRASHED_AT = float(0x69E5A0C1)


def report(panic: str) -> str:
    """As macOS writes it: a line of JSON, then JSON."""
    head = {"bug_type": "210", "timestamp": "2026-04-20 13:40:00.00 +0900", "os_version": "macOS 26.4 (25E246)"}
    return json.dumps(head) + "\n" + json.dumps({"build": "macOS 26.4", "panicString": panic}, indent=2)


def ask(answers: dict[str, Any]) -> Any:
    def run(command: Sequence[str]) -> str:
        answer = answers[command[0].rpartition("/")[2]]
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    return run


def test_what_it_says_of_itself() -> None:
    run = ask({"sw_vers": SW_VERS, "vm_stat": VM_STAT})
    assert macos_version(run) == ((26, 5, 2), "25F84")
    assert wired_bytes(run) == 305_176 * 16_384


@pytest.mark.parametrize("answer", ["", "no such thing", FileNotFoundError(), subprocess.TimeoutExpired("x", 5)])
def test_what_it_does_not_say_is_not_known(answer: Any) -> None:
    run = ask({"sw_vers": answer, "vm_stat": answer})
    assert (macos_version(run), wired_bytes(run)) == (((), ""), 0)


@pytest.mark.parametrize("text", [report(UNDERFLOW), UNDERFLOW, report(GROUP)])
def test_a_panic_of_the_driver_is_found_with_its_moment(tmp_path: Path, text: str) -> None:
    (tmp_path / "panic-full-2026-04-20-134000.0002.panic").write_text(text)
    (found,) = find_panics(tmp_path)
    assert (found.file, found.at) == ("panic-full-2026-04-20-134000.0002.panic", CRASHED_AT)


def test_without_a_moment_it_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.panic"
    for text in (
        "@IOGPUMemory.cpp:492",
        "@IOGPUMemory.cpp:492 Calendar: 0x0",
        "@IOGPUMemory.cpp Calendar: 0xffffffffffff",
    ):
        path.write_text(text)
        os.utime(path, (5e8, 5e8))
        assert [panic.at for panic in find_panics(tmp_path)] == [5e8]


def test_other_panics_and_other_files_are_none(tmp_path: Path) -> None:
    (tmp_path / "watchdog.panic").write_text(report(WATCHDOG))
    (tmp_path / "crash.ips").write_text(report(UNDERFLOW))
    assert find_panics(tmp_path) == []


def test_what_cannot_be_read_hides_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "binary.panic").write_bytes(os.urandom(5000) + b"\0\xff")
    (tmp_path / "empty.panic").touch()
    (tmp_path / "folder.panic").mkdir()
    (tmp_path / "gone.panic").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.panic")  # opening it would wait for a writer
    with open(tmp_path / "huge.panic", "wb") as huge:
        huge.write(UNDERFLOW.encode())
        huge.truncate(1 << 40)
    (tmp_path / "late.panic").write_bytes(b"x" * macos._MOST_BYTES + UNDERFLOW.encode())
    assert [panic.file for panic in find_panics(tmp_path)] == ["huge.panic"]


def test_a_folder_that_is_not_there_or_not_a_folder(tmp_path: Path) -> None:
    assert find_panics(tmp_path / "none") == []
    (tmp_path / "file").touch()
    assert find_panics(tmp_path / "file") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_must_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.panic").write_text(UNDERFLOW)
    (tmp_path / "a.panic").chmod(0)
    assert find_panics(tmp_path) == []
    tmp_path.chmod(0)
    try:
        assert find_panics(tmp_path) == []
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert find_panics(tmp_path) == []


def test_of_many_the_newest_are_read(tmp_path: Path) -> None:
    for number in range(macos._MOST_FILES + 5):
        path = tmp_path / f"{number}.panic"
        path.write_text("@IOGPUMemory.cpp:550")
        os.utime(path, (1000 + number, 1000 + number))
    found = find_panics(tmp_path)
    assert (len(found), found[0].file) == (macos._MOST_FILES, "5.panic")
