"""Descriptions of tools and of the call syntax for prompts, if the model's template has none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.text.calls.form import CallForm
from server.text.calls.values import Number
from server.text.calls.writer import write_calls

_NAME, _ARGUMENTS = "NAME", "ARGUMENTS"


def describe_tools(form: CallForm, tools: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a system message: the tools, the form of a call, and when to call."""
    lines = (json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return "\n".join(
        (
            "You can call functions. These are the functions, each with the JSON schema of its arguments:",
            *lines,
            f"To call one, end your answer with exactly this, where {_NAME} is the name of the function and",
            f"{_ARGUMENTS} a JSON object with its arguments:",
            _example(form),
            "To call several, write one call after the other. Call a function only if its result is needed.",
        )
    )


def _example(form: CallForm) -> str:
    """Return a call with placeholders for its name and arguments."""
    if form.style == "object":
        return write_calls(form, [(_NAME, Number(_ARGUMENTS))])  # type: ignore[list-item]
    return f"{form.start}{form.before}{form.head}{_NAME}{form.mid}{_ARGUMENTS}{form.tail}{form.after}{form.end}"
