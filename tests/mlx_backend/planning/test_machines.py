from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.planning.machines import (
    Machine,
    UnknownMachine,
    estimated_gpu_limit,
    find_machine,
    load_machines,
    this_machine,
)

GIB = 2**30
MEMINFO = "MemTotal:       16384000 kB\nMemFree:         1000000 kB\nSwapTotal:             0 kB\n"


def mac(text: str) -> Machine | None:
    return this_machine(platform="darwin", sysctl=lambda: text)


@pytest.mark.parametrize("machine", load_machines(), ids=lambda machine: machine.id)
def test_a_row_is_whole(machine: Machine) -> None:
    assert machine.name and machine.source
    assert machine.generation is not None and machine.chip.startswith(f"M{machine.generation}")
    assert machine.gpu_cores > 0 and machine.bandwidth > 60e9
    assert machine.memory_bytes % GIB == 0
    assert machine.id.endswith(f"-{machine.memory_bytes // GIB}")
    assert machine.memory_bytes // 2 < machine.gpu_limit_bytes < machine.memory_bytes
    assert machine.gpu_limit_basis.startswith(("measured: ", "estimated: "))
    if machine.gpu_limit_basis.startswith("estimated"):
        assert machine.gpu_limit_bytes == estimated_gpu_limit(machine.memory_bytes)


def test_the_rows_are_many_and_no_id_is_there_twice() -> None:
    machines = load_machines()
    assert len(machines) >= 30
    assert len({machine.id for machine in machines}) == len(machines)
    assert len({(machine.chip, machine.gpu_cores, machine.memory_bytes) for machine in machines}) == len(machines)


@pytest.mark.parametrize(
    ("machine_id", "chip", "cores", "bandwidth"),
    [
        ("m1-max-64", "M1 Max", 32, 400e9),
        ("m2-ultra-192", "M2 Ultra", 76, 800e9),
        ("m3-16", "M3", 10, 100e9),
        ("m3-ultra-512", "M3 Ultra", 80, 819e9),
        ("m4-max-64", "M4 Max", 40, 546e9),
        ("m4-max-128", "M4 Max", 40, 546e9),
        ("M4-Pro-64", "M4 Pro", 20, 273e9),
    ],
)
def test_a_machine_is_found_by_its_id(machine_id: str, chip: str, cores: int, bandwidth: float) -> None:
    found = find_machine(machine_id)
    assert (found.chip, found.gpu_cores, found.bandwidth) == (chip, cores, bandwidth)


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(UnknownMachine, match="m3-ultra-512") as raised:
        find_machine("m3-ultra-521")
    assert raised.value.nearest[0].startswith("m3-ultra")


def test_an_id_like_no_other_shows_what_one_looks_like() -> None:
    with pytest.raises(LookupError, match="looks like m3-ultra-512"):
        find_machine("?")


@given(st.integers(0, 2**50))
def test_the_estimated_limit_is_within_the_memory(memory_bytes: int) -> None:
    assert memory_bytes // 2 <= estimated_gpu_limit(memory_bytes) <= memory_bytes


@pytest.mark.parametrize(
    ("text", "machine_id"),
    [
        ("Apple M3 Ultra\n549755813888\n", "m3-ultra-512"),
        ("Apple M2 Ultra\n206158430208\n", "m2-ultra-192"),
        ("Apple M4 Max\n38654705664\n", "m4-max-32c-36"),
        ("Apple M1\n17179869184\n", "m1-16"),
    ],
)
def test_a_mac_is_known_by_chip_and_memory(text: str, machine_id: str) -> None:
    found = mac(text)
    assert found is not None
    assert found.id == machine_id


def test_among_bins_the_most_cores_are_assumed_and_that_is_said() -> None:
    assumed, sure = mac("Apple M2 Ultra\n206158430208\n"), mac("Apple M3 Ultra\n549755813888\n")
    assert assumed is not None and sure is not None
    assert assumed.gpu_cores == 76 and assumed.name.endswith("(GPU cores assumed)")
    assert "assumed" not in sure.name


def test_a_memory_no_row_has_keeps_the_chips_speed() -> None:
    found = mac(f"Apple M3 Ultra\n{1024 * GIB}\n")
    assert found is not None
    assert (found.id, found.memory_bytes, found.gpu_limit_bytes) == ("this", 1024 * GIB, 768 * GIB)
    assert found.bandwidth == find_machine("m3-ultra-512").bandwidth
    assert found.gpu_limit_basis.startswith("estimated")


@pytest.mark.parametrize("brand", ["Apple M9 Max", "Apple M1 (Virtual)", "Intel(R) Core(TM) i9-9880H CPU @ 2.30GHz"])
def test_a_chip_without_a_row_has_memory_and_no_speed(brand: str) -> None:
    found = mac(f"{brand}\n{16 * GIB}\n")
    assert found is not None
    assert (found.id, found.memory_bytes, found.bandwidth, found.generation) == ("this", 16 * GIB, 0, None)
    assert found.gpu_limit_bytes < found.memory_bytes


def test_linux_tells_its_memory_and_no_speed() -> None:
    found = this_machine(platform="linux", meminfo=lambda: MEMINFO)
    assert found is not None
    assert (found.id, found.memory_bytes, found.bandwidth) == ("this", 16384000 * 1024, 0)
    assert found.gpu_limit_bytes == found.memory_bytes


@pytest.mark.parametrize("text", ["", "Apple M3 Ultra\n", "Apple M3 Ultra\nmuch\n"])
def test_what_cannot_be_read_is_no_machine(text: str) -> None:
    assert mac(text) is None
    assert this_machine(platform="linux", meminfo=lambda: text) is None


def test_a_failing_command_is_no_machine() -> None:
    def missing() -> str:
        raise FileNotFoundError("sysctl")

    def failing() -> str:
        raise subprocess.CalledProcessError(1, "sysctl")

    assert this_machine(platform="darwin", sysctl=missing) is None
    assert this_machine(platform="darwin", sysctl=failing) is None
    assert this_machine(platform="win32") is None
