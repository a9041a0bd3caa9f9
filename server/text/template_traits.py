"""Detection of a chat template's traits with small conversations of made-up words.

A template that refuses a conversation, or omits one of its words, does not support it. Independent of any specific
template or tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.text.conversation import CallShape, Traits, prepare

Render = Callable[[list[dict[str, Any]]], str]
"""Renders a conversation to text, up to where the answer begins. May raise anything."""

_WORDS = ("firstword", "secondword", "thirdword", "fourthword", "fifthword")
_NAME, _VALUE, _OTHER = "aname", "avalue", "othername"
_SAID, _RESULT, _REASONING = "saidword", "aresult", "athought"
_SHAPES = tuple(CallShape(beside, as_text) for beside in ("content", "empty", "none") for as_text in (False, True))
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_NINE, _LONG = "000000000", "call_0123456789"


def find_traits(render: Render) -> Traits:
    """Return the traits of a template; the defaults if it accepts nothing at all."""
    probe = _Probe(render)
    if not probe.takes("user"):
        return Traits()
    shape = probe.call_shape()
    return Traits(
        calls=shape,
        one_call=shape is not None and not probe.shows_calls(shape, 2),
        nine_characters=probe.shows_result(shape) and not probe.shows_result(shape, _LONG),
        results=probe.shows_result(shape),
        system=probe.place_of_system(shape),
        alternates=not (probe.takes("user", "user") and probe.takes("user", "assistant", "assistant", "user")),
        user_first=not probe.takes("assistant", "user"),
        needs_user=probe.takes("system", "user") and not probe.takes("system"),
        reasoning_key=probe.reasoning_key(shape),
        answers_results=probe.wants_results_answered(shape),
    )


class _Probe:
    """Renders conversations and searches them for words."""

    def __init__(self, render: Render) -> None:
        self._render = render

    def takes(self, *roles: str) -> bool:
        """Return whether the template accepts messages of these roles in sequence, and writes each."""
        messages = [{"role": role, "content": word} for role, word in zip(roles, _WORDS, strict=False)]
        return self._shows(messages, *_WORDS[: len(roles)])

    def place_of_system(self, shape: CallShape | None) -> Any:
        """Return where a system message is accepted; also "nowhere" if it is omitted once there are results."""
        if not self.takes("system", "user"):
            return "nowhere"
        if shape is not None and self.shows_result(shape):
            asked = [{"role": "system", "content": _WORDS[0]}, _user(), _called(_NAME), _result(_NINE)]
            messages, _ = prepare(asked, Traits(calls=shape), _no_text)
            if self._shows(messages, _RESULT) and not self._shows(messages, _WORDS[0]):
                return "nowhere"
        is_anywhere = self.takes("system", "system", "user") and self.takes(
            "system", "user", "assistant", "system", "user"
        )
        return "anywhere" if is_anywhere else "first"

    def call_shape(self) -> CallShape | None:
        """Return the first shape in which a call and its accompanying text are written, or else a call alone."""
        for said in (_SAID, ""):
            for shape in _SHAPES:
                if self.shows_calls(shape, 1, said):
                    return shape
        return None

    def shows_calls(self, shape: CallShape, number: int, said: str = "") -> bool:
        names = (_NAME, _OTHER)[:number]
        messages, _ = prepare([_user(), _called(*names, said=said)], Traits(calls=shape), _no_text)
        return self._shows(messages, *names, _VALUE, said)

    def shows_result(self, shape: CallShape | None, id: str = _NINE) -> bool:
        if shape is None:
            return self._shows([_user(), {"role": "assistant", "content": "x"}, _result(id)], _RESULT)
        messages, _ = prepare([_user(), _called(_NAME, id=id), _result(id)], Traits(calls=shape), _no_text)
        return self._shows(messages, _RESULT)

    def wants_results_answered(self, shape: CallShape | None) -> bool:
        if not self.shows_result(shape):
            return False
        called = [_user(), _called(_NAME), _result(_NINE)]
        messages, _ = prepare(called, Traits(calls=shape), _no_text)
        user, answer = {"role": "user", "content": _WORDS[0]}, {"role": "assistant", "content": ""}
        return not self._shows([*messages, user], _WORDS[0]) and self._shows([*messages, answer, user], _WORDS[0])

    def reasoning_key(self, shape: CallShape | None) -> str:
        """Return the key from which the reasoning before a call is read; the usual key if none is written."""
        for key in _REASONING_KEYS:
            called = {**_called(_NAME), "reasoning_content": _REASONING}
            messages, _ = prepare([_user(), called, _result(_NINE)], Traits(calls=shape, reasoning_key=key), _no_text)
            if shape is not None and self._shows(messages, _REASONING):
                return key
        return _REASONING_KEYS[0]

    def _shows(self, messages: list[dict[str, Any]], *words: str) -> bool:
        try:
            text = self._render(messages)
        except Exception:  # noqa: BLE001 - a template raises anything for unsupported input
            return False
        return all(word in text for word in words)


def _user() -> dict[str, Any]:
    return {"role": "user", "content": "x"}


def _called(*names: str, id: str = _NINE, said: str = "") -> dict[str, Any]:
    calls = [{"id": id, "type": "function", "function": {"name": name, "arguments": {"x": _VALUE}}} for name in names]
    return {"role": "assistant", "content": said, "tool_calls": calls}


def _result(id: str) -> dict[str, Any]:
    return {"role": "tool", "content": _RESULT, "tool_call_id": id, "name": _NAME}


def _no_text(calls: Any) -> str:
    return ""
