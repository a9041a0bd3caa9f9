"""Lines of a batch's input, read in bounded memory: requests in OpenAI's batch format, and broken lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO

from server.batches.order import prefix_of
from server.json_text import read_json

ENDPOINTS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"),
    *("/v1/rerank", "/v1/score"),
)
"""Endpoints that a line may use."""
MAX_NUMBER = 1 << 24
"""Most lines of a file, blank ones included: state is kept by line number."""
MAX_ID_LENGTH = 512
_MARK_BYTES = 6
_PIECE_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineLimits:
    """Limits of an input."""

    max_line_bytes: int = 16 << 20
    max_lines: int = MAX_NUMBER


DEFAULT_LIMITS = LineLimits()


class TooManyLines(ValueError):
    """The input has more lines than a batch may have."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the input has more than {most} lines; split it")


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request of the input."""

    number: int
    """The line's number in the file, from 1."""
    mark: str
    """Digest of the line: 12 hexadecimal digits."""
    custom_id: str
    url: str
    body: bytes
    """JSON to send."""
    prefix: str
    """Beginning of the prompt; lines that share a prefix sort next to each other."""


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """One line that cannot be sent, and why."""

    number: int
    mark: str
    custom_id: str | None
    code: str
    message: str
    param: str | None = None

    @property
    def prefix(self) -> str:
        """Empty: broken lines come first."""
        return ""

    @property
    def body(self) -> bytes:
        return b""


Line = RequestLine | BrokenLine


class _Broken(Exception):
    def __init__(self, code: str, message: str, param: str | None = None, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param, self.custom_id = code, param, custom_id


def read_lines(stream: BinaryIO, limits: LineLimits = DEFAULT_LIMITS, *, endpoint: str | None = None) -> Iterator[Line]:
    """Yield every line except blank ones, in the order of the file. Raises TooManyLines and OSError.

    `endpoint`: the only endpoint that lines may use.
    """
    seen: set[int] = set()
    for num_lines, (number, mark, raw) in enumerate(_raw_lines(stream, limits.max_line_bytes), 1):
        if num_lines > limits.max_lines:
            raise TooManyLines(limits.max_lines)
        try:
            if raw is None:
                raise _Broken("line_too_long", f"it has more than {limits.max_line_bytes} bytes")
            yield _read_line(number, mark, raw, seen, endpoint)
        except _Broken as error:
            message = f"Line {number} cannot be sent: {error}."
            yield BrokenLine(number, mark, error.custom_id, error.code, message, error.param)


def count_lines(stream: BinaryIO) -> int:
    """Return the number of lines that are not blank. Raises TooManyLines."""
    return sum(1 for _ in _raw_lines(stream, _PIECE_BYTES))


def _raw_lines(stream: BinaryIO, most: int) -> Iterator[tuple[int, str, bytes | None]]:
    """Yield number, digest and bytes of each line that is not blank; None for the bytes of a line beyond `most`."""
    number = 0
    while raw := stream.readline(most + 2):
        number += 1
        if number > MAX_NUMBER:
            raise TooManyLines(MAX_NUMBER)
        is_whole = raw.endswith(b"\n") or len(raw) < most + 2
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if is_whole and len(raw.rstrip(b"\r\n")) <= most:
            if raw := raw.strip():
                yield number, blake2b(raw, digest_size=_MARK_BYTES).hexdigest(), raw
            continue
        digest = blake2b(raw.rstrip(b"\r\n"), digest_size=_MARK_BYTES)
        while not raw.endswith(b"\n") and (raw := stream.readline(_PIECE_BYTES)):
            digest.update(raw.rstrip(b"\r\n"))
        yield number, digest.hexdigest(), None


def _read_line(number: int, mark: str, raw: bytes, seen: set[int], endpoint: str | None) -> RequestLine:
    fields = _read_object(raw)
    custom_id = _read_id(fields, seen)
    try:
        url, body = _read_target(fields, endpoint), _read_body(fields)
        if url == "/v1/responses":
            body = {"store": False, **body}  # the answer is in the output; a server's response store is small
        written = json.dumps(body, allow_nan=False).encode()
    except _Broken as error:
        error.custom_id = custom_id
        raise
    except (ValueError, RecursionError):
        reason = "its body has a number that JSON does not have, or is nested too deeply"
        raise _Broken("invalid_json", reason, "body", custom_id) from None
    return RequestLine(number, mark, custom_id, url, written, prefix_of(url, body))


def _read_object(raw: bytes) -> dict[str, Any]:
    try:
        fields = read_json(raw.decode())
    except UnicodeDecodeError:
        raise _Broken("invalid_json", "it is not text in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _Broken("invalid_json", f"it is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _Broken("invalid_json", "it is not a JSON object")
    return fields


def _read_id(fields: dict[str, Any], seen: set[int]) -> str:
    custom_id = fields.get("custom_id")
    if custom_id is None:
        raise _Broken("missing_custom_id", "it has no 'custom_id'", "custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_LENGTH:
        raise _Broken(
            "invalid_custom_id", f"'custom_id' must be a text of 1 to {MAX_ID_LENGTH} characters", "custom_id"
        )
    key = int.from_bytes(blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    if key in seen:
        message = "an earlier line has the same 'custom_id'"
        raise _Broken("duplicate_custom_id", message, "custom_id", custom_id)
    seen.add(key)
    return custom_id


def _read_target(fields: dict[str, Any], endpoint: str | None) -> str:
    if fields.get("method", "POST") != "POST":
        raise _Broken("invalid_method", "'method' must be POST", "method")
    url = fields.get("url")
    if not isinstance(url, str) or url not in ENDPOINTS:
        raise _Broken("invalid_url", f"'url' must be one of {', '.join(ENDPOINTS)}", "url")
    if endpoint is not None and url != endpoint:
        raise _Broken("mismatched_endpoint", f"'url' is {url}, the batch is for {endpoint}", "url")
    return url


def _read_body(fields: dict[str, Any]) -> dict[str, Any]:
    body = fields.get("body")
    if not isinstance(body, dict):
        raise _Broken("invalid_body", "'body' must be an object", "body")
    if body.get("stream"):
        raise _Broken(
            "unsupported_parameter", "an answer in a batch is not streamed; leave 'stream' out", "body.stream"
        )
    return body
