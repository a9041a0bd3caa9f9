"""The log on standard error: a line per record, as text or as JSON; its level; and the levels of noisy libraries.

Adds only the request id to the content. Text from clients is not logged: it goes only to `prompt_log`, which is off by
default, and the messages of unexpected errors are left out of a request's traceback.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from server.log_writer import BackgroundLog, ConsoleLog, FileLog

LogFormat = Literal["console", "json"]

_FORMAT = "%(asctime)s %(levelname)-5s %(name)s: %(message)s"
_TIME = "%Y-%m-%d %H:%M:%S"

current_request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that the current task works on; empty outside of requests."""

QUIET = {
    "uvicorn.error": logging.WARNING,
    "uvicorn.access": logging.CRITICAL,  # the server writes its own line per request
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpcore2": logging.WARNING,
    "huggingface_hub": logging.WARNING,
    "transformers": logging.WARNING,
    "sse_starlette": logging.WARNING,
    "asyncio": logging.WARNING,
}
"""Libraries that log every connection or chunk, and their lowest level."""

_OFF = logging.CRITICAL + 1

prompt_log = logging.getLogger("pippin.prompts")
"""The only logger for text from clients."""
prompt_log.setLevel(_OFF)

_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) != "\t"}


def shows_prompts() -> bool:
    """Return whether the log may contain text from clients."""
    return prompt_log.isEnabledFor(logging.INFO)


class LineFormatter(logging.Formatter):
    """Formatter with one line per record: control characters in a message, which may come from a client, are escaped.

    A traceback keeps its lines. A line logged for a request ends with its id, unless it already contains the id.
    """

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # cached by another formatter, whose traceback may say more
        text = super().format(record)
        record.exc_text = None
        return text

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record).translate(_CONTROL)
        request_id = current_request_id.get()
        return line if request_id in line else f"{line} [{request_id}]"

    def formatException(self, ei: Any) -> str:
        return _describe_exception(super().formatException(ei), ei[1])


class JSONFormatter(logging.Formatter):
    """Formatter with one ASCII JSON object per record: time, level, logger, message, and `request_id` for a request.

    A record's `fields` are added; a traceback is in `exception`.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current_request_id.get():
            line["request_id"] = request_id
        line |= {name: value for name, value in fields.items() if name not in line}
        if record.exc_info and record.exc_info[1]:
            line["exception"] = _describe_exception(self.formatException(record.exc_info), record.exc_info[1])
        return json.dumps(line, default=str)


def _describe_exception(text: str, error: BaseException | None) -> str:
    """Return `text`, the whole traceback; for a request only frames and classes, as a message may quote it."""
    if error is None or shows_prompts() or not current_request_id.get():
        return text
    return "\n".join(line for each in _chain(error) for line in _without_message(each))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the causes of `error`, oldest first, and `error`."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _chain(before)
    yield error


def _without_message(error: BaseException) -> Iterator[str]:
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    yield f"{type(error).__module__}.{type(error).__qualname__} (its message may quote the request: see log_prompts)"


def configure_logging(
    level: str, form: LogFormat = "console", *, with_prompts: bool = False, file: str | None = None
) -> None:
    """Log from `level` (debug, info, warning or error) up to standard error or to `file`, replacing the previous log.

    `with_prompts`: also log text from clients. Raises OSError if the file cannot be opened.
    """
    root = logging.getLogger()
    log = ConsoleLog() if file is None else FileLog(Path(file).expanduser())
    for handler in _our_handlers():
        root.removeHandler(handler)
        handler.close()
    log.setFormatter(JSONFormatter() if form == "json" else LineFormatter(_FORMAT, _TIME))
    root.addHandler(log)
    set_level(level, with_prompts=with_prompts)
    logging.captureWarnings(form == "json")  # keeps warnings from appearing between the objects


def set_level(level: str, *, with_prompts: bool) -> None:
    """Set the levels of the log from now on."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    prompt_log.setLevel(logging.INFO if with_prompts else _OFF)
    if with_prompts:
        prompt_log.warning("log_prompts is true: this log holds what clients write, and whoever reads it reads that")


def is_structured() -> bool:
    """Return whether every line on standard error is a JSON object."""
    return any(isinstance(handler.formatter, JSONFormatter) for handler in _our_handlers())


def flush_logs() -> None:
    """Wait until logged lines are written, for a limited time."""
    for handler in _our_handlers():
        handler.flush()


def _our_handlers() -> list[BackgroundLog]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, BackgroundLog)]
