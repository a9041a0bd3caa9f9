"""The log on the console: its format, its level, and which libraries are asked to be quiet.

Knows nothing of what is logged, but for which request.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TextIO

_FORMAT = "%(asctime)s %(levelname)-5s %(name)s: %(message)s"
_TIME = "%Y-%m-%d %H:%M:%S"

current_request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the current task works for; empty outside of any."""

QUIET = {
    "uvicorn.error": logging.WARNING,
    "uvicorn.access": logging.CRITICAL,  # the server writes its own line per request
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "huggingface_hub": logging.WARNING,
    "transformers": logging.WARNING,
    "sse_starlette": logging.WARNING,
    "asyncio": logging.WARNING,
}
"""Libraries that log every connection or chunk, and what they may still say."""

_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) != "\t"}


class LineFormatter(logging.Formatter):
    """One line per record: control characters of a message, which a client may have written, are escaped.

    A traceback keeps its lines. A line that is written for a request ends with its id, unless it has it already.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record).translate(_CONTROL)
        request_id = current_request_id.get()
        return line if request_id in line else f"{line} [{request_id}]"


class ConsoleLog(logging.StreamHandler[TextIO]):
    """The one handler that `configure_logging` owns; standard error."""


def configure_logging(level: str) -> None:
    """Log to standard error from `level` (debug, info, warning or error) up. Calling it again replaces it."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, ConsoleLog)]:
        root.removeHandler(handler)
    console = ConsoleLog()
    console.setFormatter(LineFormatter(_FORMAT, _TIME))
    root.addHandler(console)
    root.setLevel(level.upper())
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
