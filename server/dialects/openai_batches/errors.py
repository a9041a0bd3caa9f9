"""Errors of files and batches, as clients receive them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.batches import store
from server.batches.room import StoreFull
from server.errors import APIError, InvalidRequest


class NotEnabled(InvalidRequest):
    """No folder is configured for files."""

    status = 404
    code = "batches_not_enabled"

    def __init__(self) -> None:
        super().__init__(
            "This server keeps no files and runs no batches: it is started without a folder for them. "
            "Start it with --batches-dir FOLDER, or set batches.dir."
        )


class NoSuchRecord(InvalidRequest):
    """No file or batch of this id belongs to this key."""

    status = 404

    def __init__(self, what: str, id: str, param: str) -> None:
        super().__init__(f"No {what} found with id '{id[:80]}'.", param=param, code=f"{what}_not_found")


class StillInUse(InvalidRequest):
    """A batch that has not ended needs the file."""

    status = 409
    code = "file_in_use"


class UploadTooLarge(InvalidRequest):
    """The file is larger than `batches.max_file_mb`."""

    status = 413
    code = "request_too_large"


class NoRoom(APIError):
    """The files of the server, or of the key, have reached their limit."""

    status = 507
    type = "invalid_request_error"
    code = "storage_full"


class DiskFull(APIError):
    """The disk has no room."""

    status = 507
    code = "disk_full"

    def __init__(self) -> None:
        super().__init__("The server's disk is full: nothing was kept of this request.")


class UploadsBusy(APIError):
    """Too many uploads are in progress."""

    status = 429
    type = "requests"
    code = "too_many_uploads"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


@contextmanager
def as_api_errors() -> Iterator[None]:
    """Raise errors of the store as errors of the API, except NotFound, which the routes handle."""
    try:
        yield
    except StoreFull as error:
        raise NoRoom(str(error)) from None
    except store.FileTooLarge as error:
        raise UploadTooLarge(str(error), param="file") from None
    except store.FileInUse as error:
        raise StillInUse(str(error), param="file_id") from None
    except store.TooManyUploads as error:
        raise UploadsBusy(str(error)) from None
    except OSError as error:
        if store.is_disk_full(error):
            raise DiskFull from None
        raise
