"""Headers of weight files: those that lie, that are cut off, that nobody can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.headers import MOST_HEADER_BYTES, parse_header, read_header
from mlx_backend.conversion.shards import Unit, lay_out


def entry(dtype: Any = "BF16", shape: Any = (2, 3), offsets: Any = (0, 12)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def parse(document: Any, size: int = 12) -> Any:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_header("f.safetensors", len(raw), raw, 8 + len(raw) + size)


def test_a_header_is_read_in_the_order_of_its_bytes() -> None:
    found = parse({"b": entry(offsets=(12, 24)), "__metadata__": {"format": "pt"}, "a": entry()}, 24)
    assert [each.name for each in found.tensors] == ["a", "b"]


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "no JSON object"),
        (b"{]", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"a": {}, "a": {}}', "is there twice"),
        ({"a": 1}, "entry of 'a' cannot be read"),
        ({"a": {"dtype": "BF16", "shape": [2]}}, "there is no 'data_offsets'"),
        ({"a": entry(dtype="F8_E4M4")}, "dtype 'F8_E4M4' is not known"),
        ({"a": entry(dtype=["BF16"])}, "cannot be read"),
        ({"a": entry(shape=(2, -3))}, "does not have 12 bytes"),
        ({"a": entry(shape=(2, 4))}, "does not have 12 bytes"),
        ({"a": entry(shape=(1.5, 4))}, "does not have 12 bytes"),
        ({"a": entry(shape=[1] * 17)}, "does not have 12 bytes"),
        ({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 12))}, "does not have 12 bytes"),
        ({"a": entry(offsets=(0, 12, 14))}, "cannot be read"),
        ({"a": entry(), "b": entry(offsets=(6, 18))}, "overlap others or leave a gap"),
        ({"a": entry(), "b": entry(offsets=(14, 26))}, "overlap others or leave a gap"),
    ],
)
def test_a_header_that_lies_is_refused(document: Any, told: str) -> None:
    with pytest.raises(ConversionError) as error:
        parse(document)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_cut_off_or_goes_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="is cut off: it has"):
        parse({"a": entry()}, 11)
    with pytest.raises(ConversionError, match="has 1 bytes that its header does not know"):
        parse({"a": entry()}, 13)
    (tmp_path / "short").write_bytes(b"\x05\x00")
    (tmp_path / "vast").write_bytes((MOST_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
    for name in ("short", "vast"):
        with pytest.raises(ConversionError, match="is no safetensors file"):
            read_header(tmp_path / name)
    with pytest.raises(ConversionError, match="cannot be read"):
        read_header(tmp_path / "none")


units = some.lists(
    some.tuples(some.sampled_from(("U8", "BF16", "F32")), some.lists(some.integers(0, 9), max_size=3).map(tuple)),
    max_size=8,
)


@given(some.lists(units, min_size=1, max_size=6), some.integers(1, 400))
def test_the_files_that_are_laid_out_are_read_as_they_were_meant(
    given_units: list[list[tuple[str, tuple[int, ...]]]], most: int
) -> None:
    made = [
        Unit(f"u{place}", tuple((f"u{place}.{number}", *each) for number, each in enumerate(tensors)))
        for place, tensors in enumerate(given_units)
    ]
    shards = lay_out(made, most)
    found: dict[str, object] = {}
    for shard in shards:
        raw = shard.head[8:]
        header = parse_header(shard.name, int.from_bytes(shard.head[:8], "little"), raw, shard.size)
        found |= {each.name: (each.dtype, each.shape) for each in header.tensors}
        assert len(raw) % 8 == 0
        assert len(shard.units) == 1 or shard.size - len(shard.head) <= most
    assert found == {name: (dtype, shape) for unit in made for name, dtype, shape in unit.tensors}
    assert [key for shard in shards for key in shard.units] == [unit.key for unit in made]
