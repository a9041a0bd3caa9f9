"""Conversion of tools to those offered to a model, with the table of tools that Anthropic's server runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.dialects.anthropic_messages.blocks import Ignored, check_writable, invalid
from server.dialects.anthropic_messages.schema import Tool, ToolChoice

Tools = tuple[Mapping[str, Any], ...]

_SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "advisor_", "mcp_toolset")
"""Prefixes of the types of tools that Anthropic's server runs."""
_NO_EFFECT = frozenset({"cache_control", "allowed_callers", "eager_input_streaming", "input_examples"})


def decode_tools(given: Sequence[Tool] | None, choice: ToolChoice | None, ignored: Ignored) -> tuple[Tools, bool]:
    """Return the tools offered to the model, and whether it must call one. Raises InvalidRequest."""
    found = (_decode(number, tool, ignored) for number, tool in enumerate(given or ()))
    tools = tuple(tool for tool in found if tool is not None)
    if choice is not None:
        for name in choice.model_extra or ():
            ignored.add(f"tool_choice.{name}")
    if choice is None or choice.type == "auto":
        return tools, False
    if choice.type == "none":
        return (), False
    if not tools:
        raise invalid("tool_choice", "'tool_choice' needs 'tools' that this server can offer.")
    if choice.type == "any":
        return tools, True
    named = tuple(tool for tool in tools if tool["function"]["name"] == choice.name)
    if not named:
        raise invalid("tool_choice.name", "'tool_choice.name' names none of 'tools'.")
    return named, True


def _decode(number: int, tool: Tool, ignored: Ignored) -> Mapping[str, Any] | None:
    """Return the decoded tool; None for a dropped tool, which the header reports."""
    place = f"tools.{number}"
    if tool.type not in (None, "custom"):
        if tool.type.startswith(_SERVER_TOOLS):
            ignored.add(f"tools.{tool.type}")
            return None
        shown = repr(tool.type)
        message = f"{shown} is not supported; give the tool an 'input_schema' and no type"
        raise invalid(f"{place}.type", f"Invalid value for '{place}.type': {message}.")
    for name in (tool.model_extra or {}).keys() - _NO_EFFECT:
        ignored.add(f"tools.{name}")
    if tool.name is None:
        raise invalid(f"{place}.name", f"The parameter '{place}.name' is required.")
    if tool.input_schema is None:
        raise invalid(f"{place}.input_schema", f"The parameter '{place}.input_schema' is required.")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = _check_schema(tool.input_schema, f"{place}.input_schema")
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _check_schema(schema: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """Return the schema of an object, with empty properties if it has none."""
    check_writable(schema, place)
    if schema.get("type", "object") != "object":
        raise invalid(f"{place}.type", f"Invalid value for '{place}.type': Input should be 'object'.")
    known = schema if "type" in schema else {"type": "object", **schema}
    properties = schema.get("properties")
    if properties is None:
        return {**known, "properties": {}}
    if not isinstance(properties, Mapping):
        raise invalid(f"{place}.properties", f"Invalid value for '{place}.properties': Input should be an object.")
    return known
