"""The connection to a server, and the events of its streams. Independent of the fields of any API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import httpx2

TIMEOUT_S = 600.0
"""A server silent for this long has not answered."""
CONNECT_TIMEOUT_S = 10.0

END: Final = object()
"""Marker for the last event of a stream, `[DONE]`."""


def base_url(url: str) -> str:
    """Return the server's base URL for a URL as typed: with a scheme, and without the `/v1` that other clients need.

    Raises ValueError.
    """
    whole = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx2.URL(whole)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{url!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is no URL of a server; say http://HOST:PORT")
    return whole


def read_key(key: str | None) -> str | None:
    """Return the key itself; `@FILE` reads the first line of a file, which keeps the key out of the process list.

    Raises OSError and ValueError.
    """
    if key is None or not key.startswith("@"):
        return key
    lines = Path(key[1:]).expanduser().read_text(encoding="utf-8").splitlines()
    if not lines or not lines[0].strip():
        raise ValueError(f"{key[1:]} has no key in its first line")
    return lines[0].strip()


def settings(url: str, key: str | None = None) -> dict[str, Any]:
    """Return the settings of a client: nothing from the environment (proxies, passwords), unlimited connections.

    Raises ValueError.
    """
    return {
        "base_url": base_url(url),
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx2.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        "limits": httpx2.Limits(max_connections=None),
        "trust_env": False,
    }


def open_http(url: str, key: str | None = None) -> httpx2.AsyncClient:
    """Return a client for many concurrent requests."""
    return httpx2.AsyncClient(**settings(url, key))


def read_event(line: str) -> Any:
    """Return the content of a stream's line: an event, END, or None for a comment or nothing. Raises ValueError."""
    if not line.startswith("data:"):
        return None
    data = line.removeprefix("data:").strip()
    if data == "[DONE]":
        return END
    event = json.loads(data)
    if not isinstance(event, dict):
        raise ValueError("an event is no object")
    return event


def error_text(status: int, body: bytes) -> str:
    """Return one line describing an error response: OpenAI's message if there is one."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = body[:200].decode("utf-8", "replace")
    return f"HTTP {status}: {' '.join(str(message).split())}"
