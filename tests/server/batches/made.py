"""Lines and servers that tests of batches make up."""

from __future__ import annotations

import io
import json
from typing import Any

from server.batches.answers import Answer
from server.batches.lines import Line, LineLimits, read_lines


def request(custom_id: Any = "a", url: Any = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body or {"prompt": "hello"}}


def jsonl(*records: Any) -> bytes:
    """The records as lines; bytes are a line as it is."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    return b"".join(line + b"\n" for line in lines)


def read(content: bytes, limits: LineLimits | None = None, **options: Any) -> list[Line]:
    return list(read_lines(io.BytesIO(content), limits or LineLimits(), **options))


def echo(url: str, body: bytes) -> Answer:
    """An answer that depends on the request alone."""
    written = json.dumps({"url": url, "asked": json.loads(body), "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    return Answer(200, written.encode(), "req-1")
