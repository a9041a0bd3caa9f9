"""Facts of a Mac, from answers as its manual pages have them; and of the machine at hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

import pytest

from server.acceptance.facts import boot_id, gather, gpu_cores

SYSCTLS = {
    "machdep.cpu.brand_string": "Apple M3 Ultra\n",
    "hw.memsize": "549755813888\n",
    "iogpu.wired_limit_mb": "0\n",
    "kern.hv_vmm_present": "0\n",
    "kern.boottime": "{ sec = 1776700000, usec = 123456 } Mon Apr 20 13:46:40 2026\n",
}
DISPLAYS = json.dumps({"SPDisplaysDataType": [{"_name": "Apple M3 Ultra", "sppci_cores": "80"}]})


def mac(command: Sequence[str]) -> str:
    match command[0].rpartition("/")[2]:
        case "sw_vers":
            return "ProductName:\t\tmacOS\nProductVersion:\t\t26.5.2\nBuildVersion:\t\t25F84\n"
        case "sysctl" if command[-1] in SYSCTLS:
            return SYSCTLS[command[-1]]
        case "system_profiler":
            return DISPLAYS
        case "pmset":
            return "Note: No thermal warning level has been recorded\n"
    raise subprocess.CalledProcessError(1, command)


def test_a_mac() -> None:
    found = gather(mac, "darwin")
    assert (found["macos"], found["macos_build"], found["gpu_cores"]) == ("26.5.2", "25F84", 80)
    assert found["sysctl"]["iogpu.wired_limit_mb"] == "0"
    assert "iogpu.rsrc_limit" not in found["sysctl"]  # sysctl does not know it, and that is all
    assert (found["is_virtual"], found["wired_bytes"]) == (False, 0)
    assert "thermal warning" in found["thermal"]
    assert json.loads(json.dumps(found)) == found


def test_a_mac_that_answers_nothing() -> None:
    def nothing(command: Sequence[str]) -> str:
        raise FileNotFoundError(command[0])

    found = gather(nothing, "darwin")
    assert (found["macos"], found["sysctl"], found["gpu_cores"]) == ("", {}, None)
    assert boot_id(nothing, "darwin") == ""


def test_the_machine_at_hand() -> None:
    found = gather()
    assert found["packages"]["pippin"] and found["python"]
    assert "macos" not in gather(system="linux")
    assert boot_id() == boot_id()


def test_the_start_of_the_machine() -> None:
    assert boot_id(mac, "darwin") == "1776700000"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"SPDisplaysDataType": [{}]}', '{"SPDisplaysDataType": 1}'])
def test_cores_that_are_not_said(text: str) -> None:
    assert gpu_cores(text) is None
