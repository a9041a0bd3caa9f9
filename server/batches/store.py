"""Files and batches of a server's clients: kept in a folder, within limits, visible only to their owner.

Ids are looked up before they become part of a path.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from server.batches.folder import Folder, read_records, write_record
from server.batches.records import Batch, Record, StoredFile, new_batch_id, new_file_id, to_json
from server.batches.room import Bounds, Room, StoreFull

logger = logging.getLogger("pippin.batches")

MAX_UPLOADS = 8
"""Most concurrent uploads; half of them for one owner."""
R = TypeVar("R", StoredFile, Batch)


class NotFound(LookupError):
    """This owner has nothing with this id."""


class FileInUse(Exception):
    """A batch that has not ended reads the file."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"The file is the input of {batch_id}, which has not ended; cancel it first.")


class TooManyUploads(Exception):
    """Too many uploads are in progress; retry later."""


class FileTooLarge(Exception):
    """The file exceeds the limit of a file."""

    def __init__(self, most: int) -> None:
        super().__init__(f"The file is larger than {most} bytes, the most that this server takes.")


class Upload:
    """A file on its way to the store. For one thread at a time."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store, self.owner = store, owner
        self._file, self.path = store.folder.new_partial()
        self.num_bytes = 0
        self._is_open = True

    def write(self, content: bytes) -> None:
        """Append to the file. Raises FileTooLarge, StoreFull and OSError."""
        most = self._store.bounds().max_file_bytes
        if self.num_bytes + len(content) > most:
            raise FileTooLarge(most)
        self._store.room.take(self.owner, len(content))
        self.num_bytes += len(content)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def finish(self, filename: str, purpose: str, keep_s: float | None = None) -> StoredFile:
        """Turn the upload into a file of the store. Raises StoreFull and OSError.

        `keep_s`: it expires after this time at the latest.
        """
        os.fsync(self._file)
        return self._store.take_in(self, filename, purpose, keep_s)

    def close(self) -> None:
        """Discard an unfinished upload. Idempotent."""
        if self._is_open:
            self._is_open = False
            os.close(self._file)
            self._store.leave(self)


class Store:
    """Files and batches by id. Thread-safe.

    Lookups take no lock, so that the event loop never waits for a disk.
    """

    def __init__(self, folder: Folder, bounds: Callable[[], Bounds], clock: Callable[[], float] = time.time) -> None:
        """Read what an earlier server left. Raises OSError."""
        self.folder, self.bounds, self.room = folder, bounds, Room(bounds)
        self._clock = clock
        self._lock = threading.RLock()
        self._uploads: list[Upload] = []
        self._unsaved: set[str] = set()
        self._batches = {batch.id: batch for batch in read_records(folder.batches, Batch.from_json)}
        self._files: dict[str, StoredFile] = {}
        for file in read_records(folder.files, StoredFile.from_json):
            if self.path_of(file.id).is_file():
                self._files[file.id] = file
                self.room.hold(file.owner, file.num_bytes)
            else:  # remains of a kill during an upload or a deletion
                self._record_of(file).unlink()
        for path in folder.files.iterdir():
            if path.suffix != ".json" and path.name not in self._files:
                path.unlink()
        for path in folder.running.iterdir():
            if path.stem not in self._batches or not self._batches[path.stem].is_open:
                path.unlink()

    def close(self) -> None:
        self.folder.close()

    # --- files

    def begin_upload(self, owner: str) -> Upload:
        """Return an empty upload. Raises TooManyUploads, StoreFull and OSError."""
        with self._lock:
            num_own = sum(upload.owner == owner for upload in self._uploads)
            if len(self._uploads) >= MAX_UPLOADS or (owner and num_own >= MAX_UPLOADS // 2):
                raise TooManyUploads("Too many files are being uploaded; try again in a moment.")
            self._check_count(owner, self._files.values(), "files", more=1)
            upload = Upload(self, owner)
            self._uploads.append(upload)
            return upload

    def take_in(self, upload: Upload, filename: str, purpose: str, keep_s: float | None) -> StoredFile:
        """Turn an upload into a file. Raises StoreFull and OSError."""
        now = self._clock()
        most_s = self.bounds().keep_s
        file = StoredFile(
            id=new_file_id(),
            owner=upload.owner,
            filename=filename,
            purpose=purpose,
            num_bytes=upload.num_bytes,
            created_at=now,
            expires_at=now + (most_s if keep_s is None else min(keep_s, most_s)),
        )
        with self._lock:
            self._check_count(upload.owner, self._files.values(), "files")
            self._move_in(file, upload.path)
        return file

    def leave(self, upload: Upload) -> None:
        """Forget an upload; its bytes stay counted if it became a file."""
        with self._lock:
            self._uploads.remove(upload)
        if upload.path.exists():
            self.room.give_back(upload.owner, upload.num_bytes)
            with contextlib.suppress(OSError):
                upload.path.unlink()

    def adopt(self, path: Path, owner: str, id: str, filename: str) -> bool:
        """Turn the answers of a batch into a file; return False if there are none. Raises OSError. Idempotent."""
        with self._lock:
            if id in self._files:
                return True
            if not path.is_file() or not (num_bytes := path.stat().st_size):
                path.unlink(missing_ok=True)
                return False
            now = self._clock()
            file = StoredFile(
                id=id,
                owner=owner,
                filename=filename,
                purpose="batch_output",
                num_bytes=num_bytes,
                created_at=now,
                expires_at=now + self.bounds().keep_s,
            )
            self._move_in(file, path)
            self.room.hold(owner, num_bytes)
            return True

    def file(self, owner: str, id: str) -> StoredFile:
        """Return an owner's file. Raises NotFound."""
        return self._own(self._files, owner, id)

    def files(self, owner: str) -> list[StoredFile]:
        """Return an owner's files, newest first."""
        return _newest_first(file for file in list(self._files.values()) if file.owner == owner)

    def path_of(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self.folder.files / file_id

    def delete_file(self, owner: str, id: str) -> None:
        """Delete an owner's file. Raises NotFound, FileInUse and OSError."""
        with self._lock:
            file = self.file(owner, id)
            for batch in self._batches.values():
                if batch.is_open and batch.input_id == id:
                    raise FileInUse(batch.id)
            self._drop_file(file)

    # --- batches

    def create_batch(
        self,
        owner: str,
        *,
        input_id: str,
        endpoint: str,
        window: str,
        window_s: float,
        metadata: dict[str, str] | None,
    ) -> Batch:
        """Return a new batch. Raises NotFound for the input, StoreFull and OSError."""
        with self._lock:
            self.file(owner, input_id)
            self._check_count(owner, self._batches.values(), "batches", more=1)
            now = self._clock()
            batch = Batch(
                id=new_batch_id(),
                owner=owner,
                endpoint=endpoint,
                input_id=input_id,
                completion_window=window,
                created_at=now,
                expires_at=now + window_s,
                metadata=metadata,
            )
            write_record(self._record_of(batch), to_json(batch))
            self._batches[batch.id] = batch
            return batch

    def batch(self, owner: str, id: str) -> Batch:
        """Return an owner's batch. Raises NotFound."""
        return self._own(self._batches, owner, id)

    def batches(self, owner: str) -> list[Batch]:
        """Return an owner's batches, newest first."""
        return _newest_first(batch for batch in list(self._batches.values()) if batch.owner == owner)

    def open_batches(self) -> list[Batch]:
        """Return the batches of all owners that have not ended, oldest first."""
        return _newest_first(batch for batch in list(self._batches.values()) if batch.is_open)[::-1]

    def save(self, batch: Batch) -> bool:
        """Write the state of a batch, and return whether that succeeded; if not, `tidy` tries again."""
        with self._lock:
            try:
                write_record(self._record_of(batch), to_json(batch))
                self._unsaved.discard(batch.id)
            except OSError as error:
                if batch.id not in self._unsaved:
                    logger.error("the state of %s cannot be written: %s", batch.id, error.strerror or error)
                self._unsaved.add(batch.id)
            return batch.id not in self._unsaved

    def cancel_batch(self, owner: str, id: str) -> Batch:
        """Cancel a batch; one that has ended, or is ending, stays as it is. Raises NotFound."""
        with self._lock:
            batch = self.batch(owner, id)
            if batch.status in ("validating", "in_progress"):
                batch.enter("cancelling", self._clock())
                self.save(batch)
            return batch

    def answers_of(self, batch: Batch) -> tuple[Path, Path]:
        """Return the files of answers of an open batch: successes, and failures."""
        return self.folder.running / f"{batch.id}.output", self.folder.running / f"{batch.id}.errors"

    def tidy(self) -> None:
        """Delete expired records and files, and retry failed writes. Raises nothing."""
        now = self._clock()
        with self._lock:
            for id in list(self._unsaved):
                self.save(self._batches[id])
            in_use = {batch.input_id for batch in self._batches.values() if batch.is_open}
            for file in [file for file in self._files.values() if file.expires_at <= now and file.id not in in_use]:
                with contextlib.suppress(OSError):
                    self._drop_file(file)
            keep_s = self.bounds().keep_s
            for batch in [batch for batch in self._batches.values() if not batch.is_open]:
                if max(batch.times.values(), default=batch.created_at) + keep_s <= now:
                    with contextlib.suppress(OSError):
                        self._record_of(batch).unlink(missing_ok=True)
                        del self._batches[batch.id]

    # --- both

    def _own(self, kept: dict[str, R], owner: str, id: str) -> R:
        record = kept.get(id)
        if record is None or record.owner != owner:
            raise NotFound(id)
        return record

    def _check_count(self, owner: str, kept: Iterable[Record], what: str, *, more: int = 0) -> None:
        bounds = self.bounds()
        owners = [record.owner for record in kept]
        if what == "files":
            owners += [upload.owner for upload in self._uploads]
        most = bounds.share_of(owner, bounds.max_files)
        if len(owners) + more > bounds.max_files or owners.count(owner) + more > most:
            raise StoreFull(f"No more {what} can be kept; delete some, or wait until old ones expire.")

    def _move_in(self, file: StoredFile, content: Path) -> None:
        """Move a file into the store. Raises OSError.

        The record is written first: a record without content is ignored, and content never lacks its record.
        """
        write_record(self._record_of(file), to_json(file))
        try:
            os.replace(content, self.path_of(file.id))
        except OSError:
            with contextlib.suppress(OSError):
                self._record_of(file).unlink()
            raise
        self._files[file.id] = file

    def _drop_file(self, file: StoredFile) -> None:
        self.path_of(file.id).unlink(missing_ok=True)
        del self._files[file.id]
        self.room.give_back(file.owner, file.num_bytes)
        self._record_of(file).unlink(missing_ok=True)

    def _record_of(self, record: Record) -> Path:
        folder = self.folder.files if isinstance(record, StoredFile) else self.folder.batches
        return folder / f"{record.id}.json"


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _newest_first(records: Iterable[R]) -> list[R]:
    return sorted(records, key=lambda record: (record.created_at, record.id), reverse=True)


def page(records: Sequence[R], after: str | None, limit: int) -> tuple[list[R], bool]:
    """Return up to `limit` records after the one with the id `after`, and whether there are more.

    Raises NotFound if no record has that id.
    """
    begin = 0
    if after is not None:
        places = [place for place, record in enumerate(records) if record.id == after]
        if not places:
            raise NotFound(after)
        begin = places[0] + 1
    return list(records[begin : begin + limit]), begin + limit < len(records)
