"""A request's body, read whole before anything looks at it: in time, as JSON by its header, and not too deep.

Knows nothing of what the JSON means. How long one body may be is the envelope's to say, how long all are together is
counted here: what is made of a body takes several times its bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.types import Message, Receive

from server.errors import InvalidRequest
from server.json_text import is_deeper, outside_texts, structure_of
from server.security.refusals import RequestTimeout, TooManyBodies

_LONG_BYTES = 256 * 1024
"""A longer body is looked through on another thread: the event loop belongs to the streams."""
_NUMBERS_PER_ITEM = 20
JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"


class BodyRoom:
    """The bytes of the bodies of all requests in progress."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.num_bytes = 0


class BodyPlace:
    """What one request has of the room, until it lets go."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Raises TooManyBodies; not for the only body that there is."""
        is_alone = self._room.num_bytes == self._num_bytes
        if not is_alone and self._room.num_bytes + num_bytes > self._room.most:
            raise TooManyBodies
        self._room.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def let_go(self) -> None:
        self._room.num_bytes -= self._num_bytes
        self._num_bytes = 0


async def read_body(receive: Receive, timeout_s: float, place: BodyPlace) -> bytes | None:
    """All of it; None when the client has left. Raises RequestTimeout and TooManyBodies."""
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
    """`receive`, as if the body had not been read yet."""
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Message:
        return next(messages, None) or await receive()

    return receive_again


async def check_body(body: bytes, content_type: str, max_depth: int, max_items: int) -> None:
    """Raise InvalidRequest for what is not sent as JSON, is nested deeper than `max_depth`, or has too much in it."""
    if not body:
        return
    if not _is_json(content_type):
        # A page of another site may send text/plain without asking first; it may not send this.
        raise InvalidRequest("The request body must be a JSON object, sent with 'Content-Type: application/json'.")
    if b"\0" in body:  # UTF-16 or 32, which would be read as JSON and not be seen through here
        raise InvalidRequest("The request body is not valid JSON: it is not text in UTF-8.")
    if len(body) > _LONG_BYTES:
        await asyncio.to_thread(_check_structure, body, max_depth, max_items)
    else:
        _check_structure(body, max_depth, max_items)


def _check_structure(body: bytes, max_depth: int, max_items: int) -> None:
    """What it costs to read JSON depends on how many things are in it, far more than on how long it is."""
    structure = structure_of(body)
    num_texts = structure.count(b'"') // 2
    outside = outside_texts(structure) if num_texts <= max_items else b""
    num_items = num_texts + outside.count(b"[") + outside.count(b"{")
    if num_items > max_items or outside.count(b",") > _NUMBERS_PER_ITEM * max_items:
        raise InvalidRequest(
            f"The request body has more than {max_items} texts, lists and objects in it, "
            f"or more than {_NUMBERS_PER_ITEM * max_items} numbers.",
            code="too_many_items",
        )
    if is_deeper(outside, max_depth):
        raise InvalidRequest(f"The request body is nested deeper than {max_depth} levels.", code="too_deep")


def is_unlabelled(content_type: str) -> bool:
    """Whether it says nothing of the body, or what curl says of every text that it is given."""
    return content_type.partition(";")[0].strip().lower() in ("", _FORM)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))
