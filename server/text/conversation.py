"""Rewriting of messages into a form that a given chat template accepts, without losing any content.

Templates differ: some write a call's arguments as an object, some concatenate them to a string; some accept no system
message, or only as the first; some require alternating turns, or call ids of nine characters. A template's `Traits`
describe this; `template_traits` detects them. Independent of any specific template.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Messages = Sequence[Mapping[str, Any]]
WriteCalls = Callable[[Sequence[tuple[str, Mapping[str, Any]]]], str]
"""Writes calls (name, arguments) in the model's own format."""

_NINE = re.compile(r"[A-Za-z0-9]{9}")
_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_BETWEEN = "\n\n"
SYSTEM_MOVED = "takes one system message, the first: those that follow are added to it"
NO_SYSTEM = "takes no system message: its text begins the first message of the user"
TURNS_MERGED = "takes turns in alternation alone: messages of one role that follow one another are one"
USER_ADDED = "wants a message of the user, or wants one first: an empty one is added"
CALLS_SPLIT = "writes one call of a message alone: each call becomes a message of its own"
IDS_RENAMED = "takes ids of calls of nine characters alone: they are renamed"
CALLS_AS_TEXT = "writes no calls of earlier turns: they are in the content, as the model writes them"
RESULTS_ANSWERED = "wants results of calls answered before the user goes on: an empty answer is added"
RESULTS_AS_TEXT = "takes no results of calls: they are messages of the user"


@dataclass(frozen=True, slots=True)
class CallShape:
    """Accepted form of a message's calls; `beside`: content allowed beside them, else calls stand alone."""

    beside: Literal["content", "empty", "none"] = "content"
    as_text: bool = False
    """Arguments are passed as JSON text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Properties of the conversations that a template accepts."""

    calls: CallShape | None = CallShape()
    """None: the template writes no calls."""
    one_call: bool = False
    """Only the first call of a message is written."""
    nine_characters: bool = False
    """Call ids must have nine characters."""
    results: bool = True
    system: Literal["anywhere", "first", "nowhere"] = "anywhere"
    alternates: bool = False
    user_first: bool = False
    needs_user: bool = False
    reasoning_key: str = "reasoning_content"
    """Message key from which the template reads the reasoning of a message with calls."""
    answers_results: bool = False
    """A user message may not directly follow the results of calls."""


def prepare(
    messages: Messages, traits: Traits, write_calls: WriteCalls, told: str | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the conversation in the form the template accepts, and the changes made.

    `told`: text to add to the system message, which is created if absent.
    """
    changes: list[str] = []
    prepared = [dict(message) for message in messages]
    if told is not None:
        prepared = _with_system(prepared, told)
    prepared = _with_calls(prepared, traits, write_calls, changes)
    prepared = _with_system_in_place(prepared, traits, changes)
    roles = [message.get("role") for message in prepared]
    if traits.user_first and roles and roles[roles[0] == "system" :][:1] == ["assistant"]:
        prepared.insert(roles.index("assistant"), {"role": "user", "content": ""})
        changes.append(USER_ADDED)
    elif traits.needs_user and "user" not in roles:
        prepared.append({"role": "user", "content": ""})
        changes.append(USER_ADDED)
    if traits.answers_results and traits.results:
        answered = list(_answered(prepared))
        changes += [RESULTS_ANSWERED] if len(answered) > len(prepared) else []
        prepared = answered
    if traits.alternates:
        merged = _merged(prepared, traits.calls or CallShape())
        changes += [TURNS_MERGED] if len(merged) < len(prepared) else []
        prepared = merged
    return [_with_reasoning(message, traits.reasoning_key) for message in prepared], changes


# --- calls and their results


def _with_calls(
    messages: list[dict[str, Any]], traits: Traits, write_calls: WriteCalls, changes: list[str]
) -> list[dict[str, Any]]:
    if traits.calls is None and any(message.get("tool_calls") for message in messages):
        changes.append(CALLS_AS_TEXT)
        messages = [_calls_as_text(message, write_calls) for message in messages]
    if not traits.results and any(message.get("role") == "tool" for message in messages):
        changes.append(RESULTS_AS_TEXT)
        messages = [_result_as_text(message) for message in messages]
    if traits.nine_characters:
        renamed = [_with_short_ids(message) for message in messages]
        changes += [IDS_RENAMED] if renamed != messages else []
        messages = renamed
    if traits.one_call and any(len(message.get("tool_calls") or ()) > 1 for message in messages):
        changes.append(CALLS_SPLIT)
        messages = list(_one_call_each(messages))
    shape = traits.calls or CallShape()
    return [each for message in messages for each in _apart(message, shape)]


def _calls_as_text(message: dict[str, Any], write_calls: WriteCalls) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = [call["function"] for call in message["tool_calls"]]
    written = write_calls([(call["name"], _object_of(call.get("arguments"))) for call in calls])
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**others, "content": "\n".join(filter(None, (message.get("content"), written)))}


def _object_of(arguments: Any) -> Mapping[str, Any]:
    if isinstance(arguments, Mapping):
        return arguments
    return {"arguments": arguments} if arguments else {}


def _result_as_text(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("role") != "tool":
        return message
    return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("tool_calls"):
        calls = [{**call, "id": _short_id(call.get("id"))} for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}
    if message.get("role") == "tool":
        return {**message, "tool_call_id": _short_id(message.get("tool_call_id"))}
    return message


def _short_id(given: Any) -> str:
    """Return a nine-character id that is the same for the same `given`."""
    if isinstance(given, str) and _NINE.fullmatch(given):
        return given
    digest = hashlib.sha256(str(given).encode("utf-8", "replace")).digest()
    return "".join(_ID_CHARACTERS[byte % len(_ID_CHARACTERS)] for byte in digest[:9])


def _one_call_each(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each call in a message of its own, followed by its result."""
    at = 0
    while at < len(messages):
        message, at = messages[at], at + 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            yield message
            continue
        results = []
        while at < len(messages) and messages[at].get("role") == "tool":
            results.append(messages[at])
            at += 1
        for place, call in enumerate(calls):
            of_first = message if place == 0 else {"role": message["role"], "content": ""}
            yield {**of_first, "tool_calls": [call]}
            answers = [each for each in results if each.get("tool_call_id") == call.get("id")]
            answers = answers or results[:1] if place < len(calls) - 1 or not results else results
            yield from answers
            results = [each for each in results if not any(each is answer for answer in answers)]
        yield from results


def _apart(message: dict[str, Any], shape: CallShape) -> Iterator[dict[str, Any]]:
    if not message.get("tool_calls"):
        yield message
        return
    calls = [_call(call, shape) for call in message["tool_calls"]]
    if shape.beside == "content":
        yield {**message, "tool_calls": calls}
        return
    if message.get("content"):
        yield {key: value for key, value in message.items() if key != "tool_calls"}
    yield {**message, "content": None if shape.beside == "none" else "", "tool_calls": calls}


def _call(call: Mapping[str, Any], shape: CallShape) -> dict[str, Any]:
    function = dict(call["function"])
    if shape.as_text and not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments"), ensure_ascii=False)
    elif not shape.as_text:  # a value that is not an object becomes one argument: a template would fail on text
        function["arguments"] = dict(_object_of(function.get("arguments")))
    return {**call, "function": function}


# --- roles and their order


def _with_system(messages: list[dict[str, Any]], told: str) -> list[dict[str, Any]]:
    if not messages or messages[0].get("role") != "system":
        return [{"role": "system", "content": told}, *messages]
    return [{**messages[0], "content": _joined(messages[0].get("content"), told)}, *messages[1:]]


def _with_system_in_place(messages: list[dict[str, Any]], traits: Traits, changes: list[str]) -> list[dict[str, Any]]:
    systems = [message for message in messages if message.get("role") == "system"]
    if traits.system == "anywhere" or not systems or (traits.system == "first" and systems == messages[:1]):
        return messages
    said = _joined(*(message.get("content") for message in systems))
    others = [message for message in messages if message.get("role") != "system"]
    if traits.system == "first":
        changes.append(SYSTEM_MOVED)
        return [{**systems[0], "content": said}, *others]
    changes.append(NO_SYSTEM)
    place = next((place for place, message in enumerate(others) if message.get("role") == "user"), None)
    if place is None:
        return [{"role": "user", "content": said}, *others]
    user = {**others[place], "content": _joined(said, others[place].get("content"))}
    if place == 0:
        return [user, *others[1:]]
    return [{"role": "user", "content": said}, *others]


def _answered(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    role = None
    for message in messages:
        if role in ("tool", "call") and message.get("role") == "user":
            yield {"role": "assistant", "content": ""}
        role = "call" if message.get("tool_calls") else message.get("role")
        yield message


def _merged(messages: list[dict[str, Any]], shape: CallShape) -> list[dict[str, Any]]:
    """Return alternating turns. Calls that stand alone are no turns; text preceding them moves behind them."""
    merged: list[dict[str, Any]] = []
    place: int | None = None  # index of the last turn
    for message in messages:
        role, is_call = message.get("role"), bool(message.get("tool_calls"))
        if shape.beside != "content" and (is_call or role == "tool"):
            merged.append(message)
            continue
        last = {} if place is None else merged[place]
        is_next_to = place == len(merged) - 1
        may_follow = is_next_to or (shape.beside != "content" and role == "assistant")
        is_turn = role in ("user", "assistant") and last.get("role") == role and not last.get("tool_calls")
        if place is not None and is_turn and may_follow:
            del merged[place]
            message = _one_of(last, message)
        merged.append(message)
        place = len(merged) - 1
    return merged


def _one_of(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    reasonings = _joined(first.get("reasoning_content"), second.get("reasoning_content"))
    reasoning = {"reasoning_content": reasonings} if reasonings else {}
    said = _joined(first.get("content"), second.get("content"))
    content = None if second.get("content") is None and not said else said
    return {**first, **second, **reasoning, "content": content}


def _with_reasoning(message: dict[str, Any], key: str) -> dict[str, Any]:
    if key == "reasoning_content" or not message.get("reasoning_content"):
        return message
    return {**message, key: message["reasoning_content"]}


def _joined(*texts: str | None) -> str:
    return _BETWEEN.join(filter(None, texts))
