"""The prefix cache's folder as a person looks at it: what is listed, cleared and damaged, and foreign things in it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlx_backend.api.interface import EngineConfig, MockConfig, PrefixCacheConfig
from mlx_backend.prefix_cache import folder
from mlx_backend.prefix_cache.disk import locked
from mlx_backend.prefix_cache.files import DamagedBlock, Header, read_block, read_header, write_block
from mlx_backend.prefix_cache.identity import chain_id
from tests.engine_client import one, running

ROOT_ID = b"r" * 16
MODEL = "ab" * 16


def write(
    path: Path, tokens: Sequence[int], *, parent: bytes = ROOT_ID, start: int = 0, data: bytes = b"12345"
) -> bytes:
    """A block's id, once its file is there."""
    block_id = chain_id(parent, tokens)
    header = Header(block_id, parent, start, tuple(tokens), False, False, None, len(data))
    path.mkdir(exist_ok=True)
    write_block(path / f"{block_id.hex()}.kv", header, [memoryview(data)])
    return block_id


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model with three blocks, two of which follow one another; about.json as the server writes it."""
    first = write(tmp_path / MODEL, (1, 2))
    write(tmp_path / MODEL, (3, 4), parent=first, start=2)
    write(tmp_path / MODEL, (5,))
    about = {"model": "pocket", "kv_cache": {"bits": 8, "key_bits": None, "value_bits": 4}}
    (tmp_path / MODEL / "about.json").write_text(json.dumps(about))
    return tmp_path


def block(root: Path, tokens: Sequence[int], parent: bytes = ROOT_ID) -> Path:
    return root / MODEL / f"{chain_id(parent, tokens).hex()}.kv"


def only(root: Path) -> folder.ModelFolder:
    (found,) = folder.models(root)
    return found


def findings(root: Path, *, is_held: bool = True) -> dict[str, str]:
    return {each.path.name: each.reason for each in folder.verify(only(root), is_held=is_held)}


def test_what_is_there(root: Path) -> None:
    found = only(root)
    assert (found.id, found.model, found.kv_bits) == (MODEL, "pocket", (8, 4))
    assert (found.num_blocks, found.num_tokens, found.num_unreadable) == (3, 5, 0)
    assert found.num_bytes == sum(path.stat().st_size for path in (root / MODEL).glob("*.kv"))
    assert found.used_at == max(path.stat().st_mtime for path in (root / MODEL).glob("*.kv"))


def test_the_model_used_last_is_first(root: Path) -> None:
    write(root / ("cd" * 16), (1,))
    os.utime(block(root, (5,)), (2e9, 2e9))
    (root / ("ef" * 16)).mkdir()
    assert [found.id[:2] for found in folder.models(root)] == ["ab", "cd", "ef"]
    assert folder.models(root)[2].used_at is None


async def test_what_a_server_writes_is_whole(tmp_path: Path) -> None:
    kept = PrefixCacheConfig(dir=str(tmp_path), chunk_tokens=8)
    config = EngineConfig(model_path="mock", backend="mock", mock=MockConfig(), prefix_cache=kept)
    async with running(config) as engine:
        await one(engine, tuple(range(1, 60)), 9)
        with pytest.raises(folder.FolderInUse), folder.held(tmp_path):
            pass
    found = only(tmp_path)
    assert (found.model, found.kv_bits) == ("mock", (None, None))
    assert found.num_blocks > 7 and found.num_tokens >= 59
    with folder.held(tmp_path):
        assert folder.verify(found, is_held=True) == []


ABOUTS = [
    b"",
    b"{",
    b"[1]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"model": 7, "kv_cache": []}',
    b'{"model": "", "kv_cache": {"bits": "8"}}',
    b" " * (1 << 21),
]


@pytest.mark.parametrize("about", ABOUTS, ids=lambda about: repr(about[:20]))
def test_a_broken_about_is_no_error(root: Path, about: bytes) -> None:
    (root / MODEL / "about.json").write_bytes(about)
    found = only(root)
    assert (found.model, found.kv_bits, found.num_blocks) == (None, None, 3)


def test_about_is_a_folder_or_a_pipe(root: Path) -> None:
    about = root / MODEL / "about.json"
    about.unlink()
    about.mkdir()
    assert only(root).about == {}
    about.rmdir()
    os.mkfifo(about)
    assert only(root).about == {}


def place_foreign(root: Path) -> list[Path]:
    """Things in the folders that are not the prefix cache's."""
    foreign = [root / "notes.txt", root / "photos" / "a.kv", root / MODEL / "mine.kv", root / MODEL / "b.txt"]
    (root / "photos").mkdir()
    for path in foreign:
        path.write_text("mine")
    pipe, inner, link = (root / MODEL / f"{digit * 32}.kv" for digit in "012")
    os.mkfifo(pipe)
    inner.mkdir()
    link.symlink_to(root / "notes.txt")
    outside = root / "photos" / "real"
    outside.mkdir()
    write(outside, (1,))
    (root / ("12" * 16)).symlink_to(outside)
    (root / ("34" * 16)).write_text("a file")
    return [*foreign, pipe, inner, link, root / ("12" * 16), root / ("34" * 16), *outside.iterdir()]


def test_foreign_things_are_neither_read_nor_removed(root: Path) -> None:
    foreign = place_foreign(root)
    assert (only(root).num_blocks, only(root).num_unreadable) == (3, 0)
    assert findings(root) == {}
    cleared = folder.clear(folder.models(root), is_held=True)
    assert (cleared.num_blocks, cleared.num_foreign) == (3, 5)
    assert all(os.path.lexists(path) for path in foreign)
    assert not (root / MODEL / "about.json").exists()


def test_clearing(root: Path) -> None:
    write(root / ("cd" * 16), (1,))
    (root / MODEL / f"{'0' * 32}.part").write_bytes(b"half")
    size = only_bytes(root)
    cleared = folder.clear([found for found in folder.models(root) if found.id == MODEL], is_held=True)
    assert cleared == folder.Cleared(3, size, 0)
    assert [path.name for path in root.iterdir()] == ["cd" * 16]


def only_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / MODEL).iterdir() if path.suffix != ".json")


def test_clearing_beside_a_server_leaves_it_its_folder(root: Path) -> None:
    assert folder.clear(folder.models(root), is_held=False).num_blocks == 3
    assert [path.name for path in (root / MODEL).iterdir()] == ["about.json"]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_every_flipped_bit_is_found(root: Path) -> None:
    path = block(root, (5,))
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place)
        assert list(findings(root)) == [path.name], place
        path.write_bytes(whole)
    assert findings(root) == {}


@pytest.mark.parametrize("content", [b"", b"x", b"PIPPINKV", b"x" * 500])
def test_what_is_no_block(root: Path, content: bytes) -> None:
    block(root, (5,)).write_bytes(content)
    assert list(findings(root)) == [block(root, (5,)).name]
    assert only(root).num_unreadable == 1


def test_what_was_cut_off_or_is_longer(root: Path) -> None:
    path = block(root, (5,))
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"x"):
        path.write_bytes(content)
        assert list(findings(root)) == [path.name]


def test_a_block_under_anothers_name(root: Path) -> None:
    name = root / MODEL / f"{'0' * 32}.kv"
    block(root, (5,)).rename(name)
    assert findings(root) == {name.name: "it is another block"}


def test_what_follows_a_damaged_block_is_of_no_use(root: Path) -> None:
    first = chain_id(ROOT_ID, (1, 2))
    second = chain_id(first, (3, 4))
    write(root / MODEL, (9, 9), parent=second, start=4)
    flip(block(root, (1, 2)), -1)
    chain = [block(root, (1, 2)), block(root, (3, 4), first), block(root, (9, 9), second)]
    assert list(findings(root)) == [path.name for path in chain]


def test_a_block_at_another_place_than_its_parent_ends(root: Path) -> None:
    first = chain_id(ROOT_ID, (1, 2))
    path = root / MODEL / f"{write(root / MODEL, (7, 7), parent=first, start=3).hex()}.kv"
    assert findings(root) == {path.name: "what it follows is not there"}


def test_half_written_files_are_found_where_nobody_can_be_writing_them(root: Path) -> None:
    part = root / MODEL / f"{'0' * 32}.part"
    part.write_bytes(b"half")
    assert findings(root, is_held=False) == {}
    assert findings(root) == {part.name: "it is half-written"}


def test_removing(root: Path) -> None:
    flip(block(root, (1, 2)), -1)
    found = folder.verify(only(root), is_held=True)
    assert folder.remove(found) == 2
    assert [path.stem for path in (root / MODEL).glob("*.kv")] == [block(root, (5,)).stem]
    assert findings(root) == {}


def test_what_cannot_be_read_may_be_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder, "read_block", refuse)
    found = folder.verify(only(root), is_held=True)
    assert {each.reason for each in found} == {"it cannot be read: Permission denied"}
    assert folder.remove(found) == 0
    assert only(root).num_blocks == 3


def test_what_goes_meanwhile_is_no_finding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, gone = only(root), block(root, (1, 2))

    def read_late(path: Path) -> object:
        if path == gone:
            gone.unlink()
        return read_block(path)

    monkeypatch.setattr(folder, "read_block", read_late)
    reasons = [each.reason for each in folder.verify(found, is_held=False)]
    assert reasons == ["what it follows is not there"]


def test_the_lock(tmp_path: Path) -> None:
    with folder.held(tmp_path), pytest.raises(folder.FolderInUse):
        locked(tmp_path)
    os.close(locked(tmp_path))


BAD_FIELDS = [
    {"start": "0"},
    {"start": -1},
    {"start": True},
    {"token_ids": ["1"]},
    {"token_ids": [1.5]},
    {"token_ids": [-1]},
    {"token_ids": [1 << 32]},
    {"token_ids": 7},
    {"num_bytes": -5},
    {"num_bytes": 1 << 70},
    {"id": 5},
    {"id": "zz"},
    {"parent": None},
]


@pytest.mark.parametrize("bad", BAD_FIELDS, ids=str)
def test_a_header_that_somebody_made_up(tmp_path: Path, bad: dict[str, object]) -> None:
    """Its digest is right: anybody can compute it."""
    import hashlib
    import struct

    fields = {
        "id": "0" * 32,
        "parent": "0" * 32,
        "start": 0,
        "token_ids": [1],
        "has_state": False,
        "is_system": False,
        "arrays": None,
        "num_bytes": 0,
    }
    text = json.dumps({**fields, **bad}).encode()
    start = struct.pack("<8sHI", b"PIPPINKV", 1, len(text)) + text
    end = hashlib.blake2b(digest_size=16).digest()
    path = tmp_path / f"{'0' * 32}.kv"
    path.write_bytes(start + hashlib.blake2b(start, digest_size=16).digest() + end)
    with pytest.raises(DamagedBlock):
        read_header(path)
