"""Reading GGUF headers: what is read, and that any other bytes are refused in one line, quickly, in little memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.importing.gguf_file import MAX_TENSORS, is_gguf, read_header
from server.importing.gguf_split import parts_of, read_model
from server.importing.problems import CannotImport
from tests.gguf_writer import encode, tensor_info, text, value_bytes, write

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": ["<s>", "a", "ö", ""],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.0, 0.25],
    "tokenizer.ggml.token_type": [3, 1, -1, 1],
    "some.flag": True,
    "some.large": 2**40,
    "some.lists": [["a"], ["b", "c"]],
}
TENSORS = {
    "a.weight": encode(np.arange(96, dtype=np.float32).reshape(3, 32), "Q8_0"),
    "b.weight": encode(np.ones((2, 3, 4)), "F32"),
    "c.bias": encode(np.ones(5), "F16"),
}


def test_a_header_is_read(tmp_path: Path) -> None:
    found = read_header(write(tmp_path / "a.gguf", METADATA, TENSORS))
    assert found.metadata == METADATA
    assert [(t.name, t.shape, str(t.type), t.num_bytes) for t in found.tensors] == [
        ("a.weight", (3, 32), "Q8_0", 102),
        ("b.weight", (2, 3, 4), "F32", 96),
        ("c.bias", (5,), "F16", 10),
    ]
    with found.path.open("rb") as stream:
        stream.seek(found.tensors[1].offset)
        assert np.frombuffer(stream.read(96), np.float32).tolist() == [1.0] * 24
    assert is_gguf(found.path) and not is_gguf(tmp_path)


def test_the_parts_of_a_set_are_one_model(tmp_path: Path) -> None:
    names = [f"m-{place:05}-of-00002.gguf" for place in (1, 2)]
    first = {**METADATA, "split.no": 0, "split.count": 2, "split.tensors.count": 3}
    write(tmp_path / names[0], first, {"a.weight": TENSORS["a.weight"]})
    others = {name: TENSORS[name] for name in ("b.weight", "c.bias")}
    last = write(tmp_path / names[1], {"split.no": 1, "split.count": 2, "split.tensors.count": 3}, others)
    model = read_model(last)
    assert model.name == "m" and [file.name for file in model.files] == names
    assert {name: tensor.file.name for name, tensor in model.tensors.items()} == {
        "a.weight": names[0],
        "b.weight": names[1],
        "c.bias": names[1],
    }
    assert model.metadata["general.architecture"] == "llama"


@pytest.mark.parametrize(
    ("second", "tensors", "says"),
    [
        (None, [], "lacks m-00002-of-00002.gguf (1 of 2 parts)"),
        ({"split.no": 0, "split.count": 2}, ["c.bias"], "says that it is part 1 of its set; its name says 2"),
        ({"split.no": 1, "split.count": 3}, ["c.bias"], "is one of 3 files, and 2 are here"),
        ({"split.no": 1, "split.count": 2}, ["a.weight"], "has the tensor 'a.weight', which another part has, too"),
        ({"split.no": 1, "split.count": 2}, [], "have 1 tensors, not the 2 that it claims"),
        (
            {"split.no": 1, "split.count": 2, "general.architecture": "qwen2"},
            ["c.bias"],
            "is of another model than m-00001-of-00002.gguf: general.architecture differs",
        ),
    ],
)
def test_a_set_that_does_not_fit_together(tmp_path: Path, second: Any, tensors: list[str], says: str) -> None:
    first = {**METADATA, "split.no": 0, "split.count": 2, "split.tensors.count": 2}
    path = write(tmp_path / "m-00001-of-00002.gguf", first, {"a.weight": TENSORS["a.weight"]})
    if second is not None:
        write(tmp_path / "m-00002-of-00002.gguf", second, {name: TENSORS[name] for name in tensors})
    with pytest.raises(CannotImport) as caught:
        read_model(path)
    assert says in str(caught.value)


def test_a_name_alone_makes_no_set(tmp_path: Path) -> None:
    assert parts_of(Path("a-of-00002.gguf")) == [Path("a-of-00002.gguf")]
    with pytest.raises(CannotImport, match="is no part of a set"):
        parts_of(Path("a-00003-of-00002.gguf"))


def header(num_tensors: int, num_keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + rest


def one_key(kind: int, value: bytes) -> bytes:
    return header(0, 1, text("k") + struct.pack("<I", kind) + value)


def one_tensor(shape: tuple[int, ...], kind: int = 0, offset: int = 0, data: int = 64) -> bytes:
    written = header(1, 0, tensor_info("t", shape, kind, offset))
    return written + b"\0" * (-len(written) % 32) + b"\0" * data


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends within its header"),
    "another format": (b"PK\x03\x04" + bytes(60), "begins with b'PK"),
    "big-endian": (b"GGUF\0\0\0\x03" + bytes(16), "it is big-endian"),
    "an old version": (header(0, 0, version=1), "its version is 1"),
    "a million tensors": (header(1_000_000, 0), f"claims 1000000 tensors; at most {MAX_TENSORS}"),
    "2^64 keys": (header(0, 2**64 - 1), "claims 18446744073709551615 keys"),
    "keys that are not there": (header(0, 3), "ends within its header"),
    "a key of 2^63 bytes": (header(0, 1, struct.pack("<Q", 2**63)), "a key claims 9223372036854775808 bytes"),
    "a text of 2^63 bytes": (one_key(8, struct.pack("<Q", 2**63)), "the value of 'k' claims 9223372036854775808 bytes"),
    "a text beyond the end": (one_key(8, struct.pack("<Q", 1000)), "claims 1000 bytes; the file has 0 more"),
    "an array beyond the end": (one_key(9, struct.pack("<IQ", 10, 1000)), "claims 8000 bytes"),
    "an array of 2^60 items": (one_key(9, struct.pack("<IQ", 0, 2**60)), "claims 1152921504606846976 items"),
    "arrays in arrays": (one_key(9, struct.pack("<IQ", 9, 1) * 9 + bytes(99)), "is nested too deeply"),
    "an unknown type of value": (one_key(99, b""), "is of type 99"),
    "an array of an unknown type": (one_key(9, struct.pack("<IQ", 77, 1)), "is an array of type 77"),
    "a key twice": (header(0, 2, (text("k") + struct.pack("<IB", 0, 1)) * 2), "the key 'k' is there twice"),
    "a name with a line break": (header(0, 1, text("a\nb") + struct.pack("<IB", 0, 1)), "a key is 'a\\nb'"),
    "a name of no letters": (header(1, 0, tensor_info("", (1,), 0, 0)), "a tensor's name is ''"),
    "an alignment of 3": (
        header(0, 1, text("general.alignment") + struct.pack("<II", 4, 3)),
        "general.alignment is 3, not a power of two",
    ),
    "an alignment of words": (
        header(0, 1, text("general.alignment") + struct.pack("<I", 8) + text("32")),
        "general.alignment is '32'",
    ),
    "no dimensions": (one_tensor(()), "has 0 dimensions"),
    "five dimensions": (one_tensor((1,) * 5), "has 5 dimensions"),
    "a length of zero": (one_tensor((0, 4)), "has the shape [0, 4]"),
    "a shape of 2^128 values": (one_tensor((2**63, 2**63)), "has the shape"),
    "an unknown type of tensor": (one_tensor((4,), 1234), "is of type 1234"),
    "half a block": (one_tensor((48,), 8), "has rows of 48 values; Q8_0 has blocks of 32"),
    "data that are cut off": (one_tensor((4, 4), data=60), "ends 4 bytes after the end of the file"),
    "data far beyond": (one_tensor((4,), offset=2**60), "after the end of the file"),
    "an offset of no alignment": (one_tensor((4,), offset=8), "is at 8, no multiple of 32"),
    "a name twice": (header(2, 0, tensor_info("t", (1,), 0, 0) * 2) + bytes(99), "tensor 't' is there twice"),
    "two in one place": (
        header(2, 0, tensor_info("t", (16,), 0, 0) + tensor_info("u", (4,), 0, 32)) + bytes(200),
        "tensors 't' and 'u' overlap",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_in_a_line(tmp_path: Path, what: str) -> None:
    content, says = BAD[what]
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CannotImport) as caught:
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert says in message and message.startswith(str(file)) and "\n" not in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CannotImport, match="cannot be read: No such file or directory"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(CannotImport, match="cannot be read: Is a directory"):
        read_header(tmp_path)


@settings(max_examples=70, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = write(tmp_path_factory.getbasetemp() / "whole.gguf", METADATA, TENSORS).read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            place = data.draw(st.integers(0, len(damaged) - 1))
            piece = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)))
            damaged[place : place + len(piece)] = piece
    file = tmp_path_factory.getbasetemp() / "damaged.gguf"
    file.write_bytes(bytes(damaged))
    try:
        found = read_header(file)
    except CannotImport as error:
        assert "\n" not in str(error)
    else:
        assert all(t.offset + t.num_bytes <= len(damaged) for t in found.tensors)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9),
        st.one_of(
            st.booleans(),
            st.integers(0, 2**40),
            st.text(max_size=9).filter(lambda text: "\ud800" not in text),
            st.lists(st.integers(-(2**31), 2**31 - 1).map(lambda n: -abs(n)), min_size=1),
            st.lists(st.floats(width=32, allow_nan=False)),
        ),
        max_size=5,
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any]) -> None:
    file = write(tmp_path_factory.getbasetemp() / "written.gguf", metadata, {})
    assert read_header(file).metadata == metadata
    for value in metadata.values():
        assert value_bytes(value)[0] in range(13)
