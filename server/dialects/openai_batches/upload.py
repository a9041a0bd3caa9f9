"""An upload as it arrives: a form, its file written to disk in pieces. Parses multipart/form-data; uses no store."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message, Receive

from server.batches.disk import on_disk
from server.disconnect import ClientGone
from server.errors import InvalidRequest
from server.security.refusals import RequestTimeout

FILE = "file"
_PIECE_BYTES = 1 << 20
_LEAST_BYTES_PER_S = 16_384
"""Lowest allowed rate: a slower upload is ended because it would hold its place."""
_MOST_FIELD_BYTES = 1 << 14
_MOST_PARTS = 16
_MOST_NAME = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class Form:
    """Fields of a form, and the name of its file; the file itself is already written."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def read_form(receive: Receive, content_type: str, write: Callable[[bytes], None], *, timeout_s: float) -> Form:
    """Read an upload to its end; `write` receives its file in pieces, on a thread.

    Raises InvalidRequest, RequestTimeout, ClientGone, and what `write` raises.
    """
    reader = _Reader(_boundary(content_type))
    loop = asyncio.get_running_loop()
    until, num_bytes, has_more = loop.time() + timeout_s, 0, True
    while has_more:
        try:
            async with asyncio.timeout_at(until + num_bytes / _LEAST_BYTES_PER_S):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(timeout_s) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        body, has_more = message.get("body", b""), message.get("more_body", False)
        num_bytes += len(body)
        reader.feed(body)
        if reader.num_bytes >= _PIECE_BYTES or (reader.num_bytes and not has_more):
            content = reader.take()
            await on_disk(lambda content=content: write(content))  # type: ignore[misc]
    return reader.end()


class Body:
    """Body of a request, with whether there is more of it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.has_more = True

    async def receive(self) -> Message:
        message = await self._receive()
        self.has_more = message["type"] == "http.request" and bool(message.get("more_body"))
        return message

    async def drain(self, within_s: float) -> None:
        """Read and drop the rest for up to `within_s`: closing with unread bytes would lose the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.has_more:
                    await self.receive()


def clean_name(name: str) -> str:
    """Return the last part of a name sent by a client, without control characters."""
    last = _CONTROL.sub("", re.split(r"[/\\]", name)[-1]).strip()
    return last[:_MOST_NAME] if last not in ("", ".", "..") else "upload"


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest("A file is uploaded as multipart/form-data, with the fields 'purpose' and 'file'.")
    return boundary


class _Reader:
    """Parser of a form fed in pieces."""

    def __init__(self, boundary: bytes) -> None:
        """Raise InvalidRequest for a boundary that is not valid."""
        self._form = Form()
        self._content: list[bytes] = []
        self.num_bytes = 0
        """Bytes of the file that were read but not taken."""
        self._header, self._value, self._disposition = b"", b"", b""
        self._name, self._text = "", bytearray()
        self._num_parts, self._is_file, self._is_whole = 0, False, False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from None

    def feed(self, body: bytes) -> None:
        """Parse a piece of the body. Raises InvalidRequest."""
        try:
            if body:
                self._parser.write(body)
        except FormParserError as error:
            raise _malformed(error) from None

    def take(self) -> bytes:
        """Return the bytes of the file that have arrived since the last call."""
        content = b"".join(self._content)
        self._content, self.num_bytes = [], 0
        return content

    def end(self) -> Form:
        """Return the whole form. Raises InvalidRequest if it is cut off."""
        if not self._is_whole:
            raise InvalidRequest("The form ends before its last boundary.")
        return self._form

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MOST_PARTS:
            raise InvalidRequest(f"The form has more than {_MOST_PARTS} fields.")
        self._disposition, self._text = b"", bytearray()

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._name == FILE
        if not self._is_file:
            return
        if self._form.filename is not None:
            raise InvalidRequest("The form has more than one file.", param=FILE)
        self._form.filename = clean_name(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._content.append(data[start:end])
            self.num_bytes += end - start
            return
        self._text += data[start:end]
        if len(self._text) > _MOST_FIELD_BYTES:
            raise InvalidRequest(f"A field of the form has more than {_MOST_FIELD_BYTES} bytes.")

    def _end_part(self) -> None:
        if not self._is_file:
            self._form.fields[self._name[:_MOST_NAME]] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self._is_whole = True


def _malformed(error: FormParserError) -> InvalidRequest:
    return InvalidRequest(f"The body is not valid multipart/form-data: {error}.")
