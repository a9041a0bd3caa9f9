"""Files and batches: private to their owner, within bounds, and what is there is whole, also after a kill."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.batches.folder import Folder
from server.batches.records import Batch, StoredFile, new_file_id, to_json
from server.batches.room import Bounds, StoreFull
from server.batches.store import FileInUse, FileTooLarge, NotFound, Store, TooManyUploads, page

BOUNDS = Bounds(max_bytes=1000, max_file_bytes=400, max_files=6, keep_s=100.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001  # no two records have the same time
        return self.now


@contextmanager
def opened(path: Path, bounds: Bounds = BOUNDS, clock: Clock | None = None) -> Iterator[Store]:
    store = Store(Folder(path), lambda: bounds, clock or Clock())
    try:
        yield store
    finally:
        store.close()


def put(store: Store, content: bytes = b"x", owner: str = "", name: str = "in.jsonl", **options: Any) -> StoredFile:
    with closing(store.begin_upload(owner)) as upload:
        upload.write(content)
        return upload.finish(name, "batch", **options)


def batch_of(store: Store, file: StoredFile, **options: Any) -> Batch:
    given = {"endpoint": "/v1/completions", "window": "24h", "window_s": 86400.0, "metadata": None, **options}
    return store.create_batch(file.owner, input_id=file.id, **given)


def test_a_file_is_there_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        file = put(store, b"content", name="ü.jsonl")
        batch = batch_of(store, file, metadata={"a": "b"})
    with opened(tmp_path) as store:
        assert store.file("", file.id) == file
        assert store.path_of(file.id).read_bytes() == b"content"
        assert store.path_of(file.id).stat().st_mode & 0o077 == 0
        assert store.room.num_bytes == 7
        assert to_json(store.batch("", batch.id)) == to_json(batch)
        assert store.open_batches() == [batch]


def test_what_belongs_to_another_is_not_there(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        file = put(store, owner="ann")
        batch = batch_of(store, file)
        for owner in ("bob", "", "an"):
            for call in (store.file, store.delete_file, store.batch, store.cancel_batch):
                with pytest.raises(NotFound):
                    call(owner, file.id if "file" in call.__name__ else batch.id)
            with pytest.raises(NotFound):
                store.create_batch(owner, input_id=file.id, endpoint="", window="", window_s=1, metadata=None)
            assert not store.files(owner)
            assert not store.batches(owner)
        assert store.files("ann") == [file]


@pytest.mark.parametrize("id", ["", "..", "../lock", "file-", f"file-{'0' * 32}", "file-../../lock", "\0", "a" * 5000])
def test_an_id_is_no_path(tmp_path: Path, id: str) -> None:
    with opened(tmp_path) as store:
        for call in (store.file, store.delete_file, store.batch, store.cancel_batch):
            with pytest.raises(NotFound):
                call("", id)


def test_an_upload_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        upload = store.begin_upload("")
        upload.write(b"x" * 300)
        with pytest.raises(FileTooLarge, match="larger than 400 bytes"):
            upload.write(b"x" * 101)
        upload.close()
        upload.close()
        assert (store.files(""), store.room.num_bytes) == ([], 0)
        assert list(store.folder.partial.iterdir()) == []


def test_all_files_together_have_a_size(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        kept = [put(store, b"x" * 400), put(store, b"x" * 400)]
        with pytest.raises(StoreFull, match="take all the room"):
            put(store, b"x" * 201)
        assert store.room.num_bytes == 800
        store.delete_file("", kept[0].id)
        assert put(store, b"x" * 400)


def test_one_key_leaves_half_of_the_room_to_others(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, b"x" * 400, owner="ann")
        with pytest.raises(StoreFull, match="one key may take 500 bytes"):
            put(store, b"x" * 101, owner="ann")
        put(store, b"x" * 300, owner="bob")
        for _ in range(2):
            put(store, owner="ann")
        with pytest.raises(StoreFull, match="No more files"):
            put(store, owner="ann")
        put(store, owner="bob")


def test_uploads_at_once_are_bounded(tmp_path: Path) -> None:
    with opened(tmp_path, Bounds(1000, 400, 100, 100.0)) as store:
        uploads = [store.begin_upload("ann") for _ in range(4)]
        with pytest.raises(TooManyUploads):
            store.begin_upload("ann")
        uploads += [store.begin_upload(f"other {n}") for n in range(4)]
        with pytest.raises(TooManyUploads):
            store.begin_upload("bob")
        for upload in uploads:
            upload.close()
        store.begin_upload("bob").close()


def test_batches_are_bounded_too(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        file = put(store)
        for _ in range(6):
            batch_of(store, file)
        with pytest.raises(StoreFull, match="No more batches"):
            batch_of(store, file)


def test_a_file_that_a_batch_reads_is_not_deleted(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock) as store:
        file = put(store)
        batch = batch_of(store, file)
        with pytest.raises(FileInUse, match=batch.id):
            store.delete_file("", file.id)
        clock.now += 1000
        store.tidy()
        assert store.files("") == [file]
        batch.enter("completed", clock.now)
        store.delete_file("", file.id)


def test_what_is_old_is_deleted(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock) as store:
        ended, still_open = batch_of(store, put(store)), batch_of(store, put(store))
        ended.enter("completed", clock.now)
        soon = put(store, keep_s=5.0)
        clock.now += 10
        store.tidy()
        with pytest.raises(NotFound):
            store.file("", soon.id)
        assert len(store.files("")) == 2
        clock.now += 100
        store.tidy()
        assert [file.id for file in store.files("")] == [still_open.input_id]
        assert store.batches("") == [still_open]
        assert store.room.num_bytes == 1
    with opened(tmp_path) as store:
        assert store.batches("") == [still_open]


def test_answers_become_files_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        batch = batch_of(store, put(store))
        output, errors = store.answers_of(batch)
        output.write_bytes(b"answers")
        errors.write_bytes(b"")
        for _ in range(2):
            assert store.adopt(output, "", batch.output_id, "out.jsonl")
            assert not store.adopt(errors, "", batch.error_id, "errors.jsonl")
        assert store.path_of(batch.output_id).read_bytes() == b"answers"
        assert store.file("", batch.output_id).purpose == "batch_output"
        assert store.room.num_bytes == 8
        assert list(store.folder.running.iterdir()) == []


def test_only_a_batch_that_is_not_ending_is_cancelled(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        batch = batch_of(store, put(store))
        assert store.cancel_batch("", batch.id).status == "cancelling"
        for status in ("completed", "failed", "expired", "cancelled", "finalizing"):
            batch.status = status
            assert store.cancel_batch("", batch.id).status == status


def test_a_full_disk_leaves_no_file_and_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(tmp_path) as store:
        kept = put(store)
        batch = batch_of(store, kept)
        for name in ("write", "fsync", "replace"):
            with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
                patched.setattr(os, name, fail)
                put(store, b"y")
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", fail)
            with pytest.raises(OSError, match="No space"):
                batch_of(store, kept)
            batch.enter("in_progress", 1.0)
            assert not store.save(batch)
        assert store.files("") == [kept]
        assert store.batches("") == [batch]
        assert store.room.num_bytes == 1
        assert len(list(store.folder.files.iterdir())) == 2
        store.tidy()  # there is room again
    with opened(tmp_path) as store:
        assert store.batch("", batch.id).status == "in_progress"


@settings(max_examples=30)
@given(st.data())
def test_killed_between_any_two_steps_what_is_there_is_whole(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    """Fail at any call that changes the folder, as a kill does: nothing after it happens."""

    class Killed(BaseException):
        pass

    path = tmp_path_factory.mktemp("store")
    left = data.draw(st.integers(0, 14), "steps")
    with opened(path) as store:
        kept = put(store, b"kept")
    with pytest.MonkeyPatch.context() as patched, opened(path) as store:

        def step(call: Any) -> Any:
            def run(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return call(*arguments, **options)

            return run

        for name in ("replace", "fsync", "write", "unlink"):
            patched.setattr(os, name, step(getattr(os, name)))
        try:
            put(store, b"new one")
            store.delete_file("", kept.id)
            store.tidy()
        except Killed:
            pass
    with opened(path) as store:
        contents = {store.path_of(file.id).read_bytes() for file in store.files("")}
        assert contents in ({b"kept"}, {b"kept", b"new one"}, {b"new one"})
        assert store.room.num_bytes == sum(map(len, contents))
        assert len(list(store.folder.files.iterdir())) == 2 * len(contents)
        assert list(store.folder.partial.iterdir()) == []


def test_pages() -> None:
    def file(id: str) -> StoredFile:
        times = {"created_at": 0.0, "expires_at": 0.0}
        return StoredFile(id=id, owner="", filename="", purpose="batch", num_bytes=0, **times)

    files = [file(id) for id in "abcde"]
    assert page(files, None, 2) == (files[:2], True)
    assert page(files, "b", 2) == (files[2:4], True)
    assert page(files, "d", 2) == (files[4:], False)
    assert page(files, "e", 2) == ([], False)
    with pytest.raises(NotFound):
        page(files, "x", 2)


@pytest.mark.parametrize("fields", [{}, {"id": "../x"}, {"id": 7}, {"more": 1}])
def test_what_is_no_record_is_an_error(fields: dict[str, Any]) -> None:
    whole = StoredFile(
        id=new_file_id(), owner="", filename="", purpose="batch", num_bytes=0, created_at=0.0, expires_at=0.0
    )
    assert StoredFile.from_json(to_json(whole)) == whole
    with pytest.raises((TypeError, ValueError)):
        StoredFile.from_json({**to_json(whole), **fields} if fields else {})
