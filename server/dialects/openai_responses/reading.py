"""Hand-written validation of items and tools, so that an error names the place within the body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from server.errors import InvalidRequest, UnsupportedParameter
from server.json_text import why_unwritable

_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Types of text parts, and the field that contains the text."""
_OTHER_PARTS = frozenset({"input_image", "input_file", "input_audio", "input_video", "image_url", "encrypted_content"})


def refuse(at: str, message: str, *, code: str = "invalid_value") -> NoReturn:
    raise InvalidRequest(f"Invalid value for '{at}': {message}.", param=at, code=code)


def read_text(owner: Mapping[str, Any], name: str, at: str, default: str | None = None) -> str:
    """Return the string under a name; required without a `default`. Raises InvalidRequest."""
    value = owner.get(name, default)
    value = default if value is None else value
    if value is None:
        message = f"The parameter '{at}.{name}' is required."
        raise InvalidRequest(message, param=f"{at}.{name}", code="missing_required_parameter")
    return check_string(value, f"{at}.{name}")


def check_string(value: Any, at: str) -> str:
    """Return `value` if it is a string that can be encoded. Raises InvalidRequest."""
    if not isinstance(value, str):
        refuse(at, "Input should be a valid string")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(at, "it is not valid Unicode (half of a surrogate pair)")
    return value


def read_content(value: Any, at: str) -> str:
    """Return the text of a content: a string, or text parts joined. Raises InvalidRequest."""
    if isinstance(value, str):
        return check_string(value, at)
    if not isinstance(value, list):
        refuse(at, "Input should be a string or a list of parts")
    return "".join(_read_part(part, f"{at}.{position}") for position, part in enumerate(value))


def _read_part(part: Any, at: str) -> str:
    if not isinstance(part, Mapping):
        refuse(at, "Input should be an object")
    kind = part.get("type")
    if isinstance(kind, str) and kind in _OTHER_PARTS:
        raise UnsupportedParameter(f"{at}.type", f"Parts of the type '{kind}' are not supported: text only.")
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        refuse(f"{at}.type", "Input should be 'input_text', 'output_text' or 'refusal'")
    return read_text(part, _TEXT_PARTS[kind], at)


def check_writable(fields: Iterable[tuple[str, Any]]) -> None:
    """Raise InvalidRequest for a field that an answer could not repeat: a lone surrogate, or a number out of range."""
    for name, value in fields:
        why = why_unwritable(value)
        if why is not None:
            refuse(name, why)
