"""Conversion of tools to the functions offered to a model, and of calls back to the client's tools.

A custom tool is a function of one text. The tools of a namespace are functions with names that begin with the
namespace's. Tools that OpenAI runs itself are dropped; the answer reports them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from server.dialects.openai_calls import check_parameters
from server.dialects.openai_responses.reading import check_string, read_text, refuse
from server.errors import InvalidRequest, UnsupportedParameter
from server.json_text import read_json
from server.text.grammar import as_regex

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BUILT_IN = re.compile(
    r"(web_search|file_search|code_interpreter|computer|mcp|image_generation|local_shell|shell|apply_patch|tool_search"
    r"|programmatic_tool_calling)(_preview)?(_\d{4}_\d{2}_\d{2})?|computer_use_preview"
)
"""Types of tools that OpenAI runs, or that its own models are trained on."""
_KNOWN = frozenset({"type", "name", "description", "parameters", "strict", "format", "tools"})
_NO_PARAMETERS = {"type": "object", "properties": {}}
INPUT = "input"
"""The only parameter of a custom tool's function."""
_Key = tuple[str, str | None]
"""A tool's name and namespace."""


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool offered to the model, with its names for the client and for the model."""

    kind: Literal["function", "custom"]
    name: str
    namespace: str | None
    function: Mapping[str, Any]
    """In the form of chat templates."""

    @property
    def model_name(self) -> str:
        return str(self.function["name"])

    @property
    def key(self) -> _Key:
        return self.name, self.namespace

    @property
    def neutral(self) -> Mapping[str, Any]:
        """The tool in a job's form."""
        return {"type": "function", "function": self.function}

    def read_call(self, arguments: str) -> str:
        """Return a call's input for the client: the JSON of its arguments, or a custom tool's text."""
        if self.kind == "function":
            return arguments
        try:
            found = read_json(arguments)
        except ValueError:
            return arguments
        text = found.get(INPUT) if isinstance(found, dict) else None
        return text if isinstance(text, str) else arguments


@dataclass(frozen=True)
class Toolbox:
    """The tools of one request. `dropped`: names of dropped tools, for the answer's header."""

    offered: tuple[OfferedTool, ...] = ()
    dropped: tuple[str, ...] = ()
    echo: tuple[Mapping[str, Any], ...] = ()
    """Tools that were not dropped, as the answer repeats them."""

    @cached_property
    def _by_key(self) -> Mapping[_Key, OfferedTool]:
        """First tool of each name and namespace. A request may have thousands of tools, and of calls to them."""
        found: dict[_Key, OfferedTool] = {}
        for tool in self.offered:
            found.setdefault(tool.key, tool)
        return found

    @cached_property
    def _by_name(self) -> Mapping[str, OfferedTool]:
        """First tool of each name, whatever its namespace."""
        found: dict[str, OfferedTool] = {}
        for tool in self.offered:
            found.setdefault(tool.name, tool)
        return found

    def find(self, model_name: str) -> OfferedTool | None:
        """Return the tool with the model's name for it."""
        return next((tool for tool in self.offered if tool.model_name == model_name), None)

    def named(self, name: str, namespace: str | None) -> OfferedTool | None:
        """Return the tool with the client's name for it; without a namespace, from any."""
        return self._by_name.get(name) if namespace is None else self._by_key.get((name, namespace))

    def model_name(self, name: str, namespace: str | None) -> str:
        """Return the model's name for a tool of earlier turns, even one that is no longer offered."""
        tool = self._by_key.get((name, namespace))
        if tool is not None:
            return tool.model_name
        return name if namespace is None else _joined(namespace, name)


def decode_tools(tools: Sequence[Mapping[str, Any]], at: str = "tools") -> Toolbox:
    """Decode the tools of a request. Raises InvalidRequest."""
    offered: list[OfferedTool] = []
    taken: dict[str, _Key] = {}
    dropped: list[str] = []
    echo: list[Mapping[str, Any]] = []
    for position, tool in enumerate(tools):
        place = f"{at}.{position}"
        kind = read_text(tool, "type", place)
        if _BUILT_IN.fullmatch(kind):
            dropped.append(f"tools.{kind}")
            continue
        dropped += [f"tools.{name}" for name in sorted(map(str, tool.keys() - _KNOWN))]
        if kind == "namespace":
            found = list(_decode_namespace(tool, place, taken, dropped))
        elif kind in ("function", "custom"):
            found = [_decode_tool(tool, place, None, taken)]
        else:
            refuse(f"{place}.type", "Input should be 'function', 'custom', 'namespace', or a tool that OpenAI runs")
        offered += found
        echo.append(tool if kind != "function" else {**tool, **_echoed(tool)})
    return Toolbox(tuple(offered), tuple(dict.fromkeys(dropped)), tuple(echo))


def _echoed(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"parameters": tool.get("parameters"), "strict": tool.get("strict")}


def _decode_namespace(
    namespace: Mapping[str, Any], at: str, taken: dict[str, _Key], dropped: list[str]
) -> Iterator[OfferedTool]:
    name = _read_name(namespace, at)
    about = read_text(namespace, "description", at, default="")
    tools = namespace.get("tools")
    if not isinstance(tools, list):
        refuse(f"{at}.tools", "Input should be a list of tools")
    found: list[OfferedTool] = []
    for position, tool in enumerate(tools):
        place = f"{at}.tools.{position}"
        if not isinstance(tool, Mapping):
            refuse(place, "Input should be an object")
        if read_text(tool, "type", place) not in ("function", "custom"):
            refuse(f"{place}.type", "Input should be 'function' or 'custom'")
        dropped += [f"tools.{name}" for name in sorted(map(str, tool.keys() - _KNOWN))]
        # the namespace's description appears once, with the first tool
        found.append(_decode_tool(tool, place, name, taken, "" if found else about))
    yield from found


def _decode_tool(
    tool: Mapping[str, Any], at: str, namespace: str | None, taken: dict[str, _Key], about: str = ""
) -> OfferedTool:
    """Decode a tool. `taken`: the model's names for the tools before it, each with its tool."""
    name = _read_name(tool, at)
    model_name = _free(name if namespace is None else _joined(namespace, name), (name, namespace), taken)
    is_custom = tool["type"] == "custom"
    described = _decode_custom(tool, at) if is_custom else _decode_function(tool, at)
    description = "\n\n".join(filter(None, (about, described.pop("description", None))))
    function = {"name": model_name, **({"description": description} if description else {}), **described}
    return OfferedTool("custom" if is_custom else "function", name, namespace, function)


def _decode_function(tool: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Return description, parameters and `strict`, in this order, as far as they are given."""
    parameters, strict = tool.get("parameters"), tool.get("strict")
    if parameters is not None and not isinstance(parameters, dict):
        refuse(f"{at}.parameters", "Input should be an object")
    if not isinstance(strict, bool | None):
        refuse(f"{at}.strict", "Input should be true or false")
    try:
        checked = check_parameters(parameters)
    except ValueError as error:
        refuse(f"{at}.parameters", str(error))
    found: dict[str, Any] = {}
    if tool.get("description") is not None:
        found["description"] = read_text(tool, "description", at)
    found["parameters"] = checked or _NO_PARAMETERS
    if strict is not None:
        found["strict"] = strict
    return found


def _decode_custom(tool: Mapping[str, Any], at: str) -> dict[str, Any]:
    description = read_text(tool, "description", at, default="")
    given = tool.get("format")
    if given is not None and not isinstance(given, Mapping):
        refuse(f"{at}.format", "Input should be an object")
    kind = "text" if given is None else read_text(given, "type", f"{at}.format")
    text: dict[str, Any] = {"type": "string"}
    found: dict[str, Any] = {"description": description}
    if kind == "grammar":
        assert given is not None
        syntax = read_text(given, "syntax", f"{at}.format")
        if syntax not in ("lark", "regex"):
            refuse(f"{at}.format.syntax", "Input should be 'lark' or 'regex'")
        written = check_string(read_text(given, "definition", f"{at}.format"), f"{at}.format.definition")
        told = f"The input follows this {'Lark grammar' if syntax == 'lark' else 'regular expression'}:\n{written}"
        found["description"] = "\n\n".join(filter(None, (description, told)))
        if syntax == "regex":
            text["pattern"] = f"^(?:{as_regex(written)})$"
            found["strict"] = True
    elif kind != "text":
        refuse(f"{at}.format.type", "Input should be 'text' or 'grammar'")
    parameters = {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}
    strict = found.pop("strict", None)
    return {**found, "parameters": parameters, **({} if strict is None else {"strict": strict})}


def _read_name(tool: Mapping[str, Any], at: str) -> str:
    name = read_text(tool, "name", at)
    if not _NAME.fullmatch(name):
        refuse(f"{at}.name", "String should be 1 to 64 of a-z, A-Z, 0-9, _, ., -")
    return name


def _joined(namespace: str, name: str) -> str:
    return f"{namespace.rstrip('_')}__{name}"


def _free(name: str, key: _Key, taken: dict[str, _Key]) -> str:
    """Return `name`, numbered if another tool has it, and mark it as taken."""
    found, number = name, 2
    while taken.setdefault(found, key) != key:
        found, number = f"{name}_{number}", number + 1
    return found


# --- tools shown to the model


def choose(choice: str | Mapping[str, Any] | None, box: Toolbox) -> tuple[tuple[OfferedTool, ...], bool]:
    """Return the tools shown to the model, and whether it must call one. Raises InvalidRequest."""
    if choice in (None, "auto"):
        return box.offered, False
    if choice == "none":
        return (), False
    if choice == "required":
        return _some(box.offered), True
    assert isinstance(choice, Mapping)
    kind = read_text(choice, "type", "tool_choice")
    if kind in ("function", "custom"):
        return _named(choice, "tool_choice", box), True
    if kind != "allowed_tools":
        message = f"'tool_choice' cannot be '{kind}': it is not supported."
        if not _BUILT_IN.fullmatch(kind):
            refuse("tool_choice.type", "Input should be 'function', 'custom' or 'allowed_tools'")
        raise UnsupportedParameter("tool_choice", message)
    return _allowed(choice, box)


def _allowed(choice: Mapping[str, Any], box: Toolbox) -> tuple[tuple[OfferedTool, ...], bool]:
    mode, tools = read_text(choice, "mode", "tool_choice", default="auto"), choice.get("tools")
    if mode not in ("auto", "required"):
        refuse("tool_choice.mode", "Input should be 'auto' or 'required'")
    if not isinstance(tools, list):
        refuse("tool_choice.tools", "Input should be a list of tools")
    allowed: list[OfferedTool] = []
    for position, tool in enumerate(tools):
        at = f"tool_choice.tools.{position}"
        if not isinstance(tool, Mapping):
            refuse(at, "Input should be an object")
        kind = read_text(tool, "type", at)
        if not _BUILT_IN.fullmatch(kind):
            allowed += _named(tool, at, box)
    chosen = set(map(id, allowed))
    shown = tuple(tool for tool in box.offered if id(tool) in chosen)
    return (_some(shown), True) if mode == "required" else (shown, False)


def _some(offered: tuple[OfferedTool, ...]) -> tuple[OfferedTool, ...]:
    if not offered:
        raise InvalidRequest(
            "'tool_choice' needs 'tools' that this server can offer.", param="tool_choice", code="invalid_value"
        )
    return offered


def _named(choice: Mapping[str, Any], at: str, box: Toolbox) -> tuple[OfferedTool, ...]:
    name = read_text(choice, "name", at)
    namespace = None if choice.get("namespace") is None else read_text(choice, "namespace", at)
    found = box.named(name, namespace)
    if found is None:
        raise InvalidRequest(f"'{at}' names none of 'tools'.", param=at, code="invalid_value")
    return (found,)
