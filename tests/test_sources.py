"""Every source has tests that can be found: at its place, or where `tests/sources.py` says."""

from __future__ import annotations

from pathlib import Path

from tests.sources import TESTED_IN

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("server", "mlx_backend")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)


def test_every_source_is_tested_at_its_place_or_where_it_is_said() -> None:
    without = [
        name for name in SOURCES if not (ROOT / "tests" / Path(name).parent / f"test_{Path(name).name}").exists()
    ]
    assert sorted(TESTED_IN) == without


def test_what_is_said_is_there() -> None:
    for name, tests in TESTED_IN.items():
        assert tests.split(), name
        assert all((ROOT / test).exists() for test in tests.split()), name
