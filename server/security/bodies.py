"""Request bodies, read completely before use: in time, declared as JSON, and not nested too deeply.

Independent of the JSON's meaning. The envelope limits the size of one body; the total is limited here, because parsing
a body takes several times its bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.types import Message, Receive

from server.errors import InvalidRequest
from server.json_text import is_deeper, outside_texts, structure_of
from server.security.refusals import RequestTimeout, TooManyBodies

_LONG_BYTES = 256 * 1024
"""A longer body is checked on another thread, so that streams on the event loop do not wait."""
_NUMBERS_PER_ITEM = 20
JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"


class BodyRoom:
    """Bytes of the bodies of all requests in progress."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.num_bytes = 0


class BodyPlace:
    """Share of one request in the total, until released."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Add bytes. Raises TooManyBodies, except for the only body in progress."""
        is_alone = self._room.num_bytes == self._num_bytes
        if not is_alone and self._room.num_bytes + num_bytes > self._room.most:
            raise TooManyBodies
        self._room.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def let_go(self) -> None:
        self._room.num_bytes -= self._num_bytes
        self._num_bytes = 0


async def read_body(receive: Receive, timeout_s: float, place: BodyPlace) -> bytes | None:
    """Return the complete body; None if the client disconnected. Raises RequestTimeout and TooManyBodies."""
    chunks = []
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                chunks.append(message.get("body", b""))
                place.take(len(chunks[-1]))
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        raise RequestTimeout(timeout_s) from None


def replay(body: bytes, receive: Receive) -> Receive:
    """Return `receive` as if the body had not been read yet."""
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Message:
        return next(messages, None) or await receive()

    return receive_again


async def check_body(body: bytes, content_type: str, max_depth: int, max_items: int) -> None:
    """Raise InvalidRequest if it is not declared as JSON, is nested deeper than `max_depth`, or has too many items."""
    if not body:
        return
    if not _is_json(content_type):
        # A page of another site may send text/plain without a preflight request; it may not send JSON.
        raise InvalidRequest("The request body must be a JSON object, sent with 'Content-Type: application/json'.")
    if b"\0" in body:  # UTF-16 or 32, which would parse as JSON and escape these checks
        raise InvalidRequest("The request body is not valid JSON: it is not UTF-8 text.")
    if len(body) > _LONG_BYTES:
        await asyncio.to_thread(_check_structure, body, max_depth, max_items)
    else:
        _check_structure(body, max_depth, max_items)


def _check_structure(body: bytes, max_depth: int, max_items: int) -> None:
    """Check the number of items and the depth: items, far more than length, determine the cost of parsing JSON."""
    structure = structure_of(body)
    num_texts = structure.count(b'"') // 2
    outside = outside_texts(structure) if num_texts <= max_items else b""
    num_items = num_texts + outside.count(b"[") + outside.count(b"{")
    if num_items > max_items or outside.count(b",") > _NUMBERS_PER_ITEM * max_items:
        raise InvalidRequest(
            f"The request body has more than {max_items} strings, lists and objects, "
            f"or more than {_NUMBERS_PER_ITEM * max_items} numbers.",
            code="too_many_items",
        )
    if is_deeper(outside, max_depth):
        raise InvalidRequest(f"The request body is nested deeper than {max_depth} levels.", code="too_deep")


def is_unlabelled(content_type: str) -> bool:
    """Return whether it does not describe the body, or is curl's default for any text."""
    return content_type.partition(";")[0].strip().lower() in ("", _FORM)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))
