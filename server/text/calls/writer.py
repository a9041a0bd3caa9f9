"""Calls in a model family's own syntax: for prompts, if the template cannot write them, and for descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.text.calls.form import CallForm, Pair
from server.text.calls.schemas import type_of
from server.text.calls.values import Number, write_exact


def write_calls(form: CallForm, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the section or sections of calls: (name, arguments) each. Arguments may contain `Number`s."""
    written = [_call(form, name, arguments, index) for index, (name, arguments) in enumerate(calls)]
    if form.between is None:
        return "\n".join(_section(form, each) for each in written)
    return _section(form, form.between.join(written))


def _section(form: CallForm, calls: str) -> str:
    listed = f"[{calls}]" if form.is_list else calls
    return f"{form.start}{form.before}{listed}{form.after}{form.end}"


def _call(form: CallForm, name: str, arguments: Mapping[str, Any], index: int) -> str:
    if form.style == "object":
        return write_exact(
            {name: arguments} if form.named_key else dict(zip(form.keys, (name, arguments), strict=True))
        )
    mid = form.mid.replace("{index}", str(index)).replace("{nl}", "\n")
    return f"{form.head}{name}{mid}{_arguments(form, arguments)}{form.tail}"


def _arguments(form: CallForm, arguments: Mapping[str, Any]) -> str:
    if form.style == "pairs":
        assert form.pair is not None
        return "".join(_pair(form.pair, key, value) for key, value in arguments.items())
    if form.style == "bare":
        return _bare(dict(arguments), form.quote)
    if form.style == "python":
        return ", ".join(f"{key}={write_exact(value)}" for key, value in arguments.items())
    return write_exact(dict(arguments))


def _pair(pair: Pair, key: str, value: Any) -> str:
    is_text = isinstance(value, str) and not isinstance(value, Number)
    flag = pair.text_flag if is_text else _flag_of(pair, value)
    head = pair.head.replace("{key}", key).replace("{flag}", flag).replace("{nl}", "\n")
    between = pair.between.replace("{nl}", "\n")
    return f"{head}{pair.frame}{value if is_text else write_exact(value)}{pair.frame}{pair.tail}{between}"


def _flag_of(pair: Pair, value: Any) -> str:
    return type_of(value) if type_of(value) in pair.other_flags else next(iter(pair.other_flags), "")


def _bare(value: Any, quote: str) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_bare(each, quote)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_bare(each, quote) for each in value) + "]"
    if isinstance(value, str) and not isinstance(value, Number):
        return f"{quote}{value}{quote}"
    return write_exact(value)
