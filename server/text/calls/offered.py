"""Tools that a request offers, as needed to parse calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.text.calls.arguments import Argument
from server.text.calls.schemas import Schema, required_of, types_of_argument, value_of_json, value_of_text
from server.text.calls.values import write_exact

PREFIX = re.compile(r"(functions|function|tools|default_api)[.:]")
"""Prefix that models write before a name."""
_NUMBER = re.compile(r":\d+$")


class OfferedTools:
    """Offered tools by name."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        functions = [tool["function"] for tool in tools]
        self._schemas: dict[str, Schema] = {each["name"]: each.get("parameters") or {} for each in functions}
        self.names = tuple(self._schemas)

    def resolve(self, name: str) -> str | None:
        """Return the offered name that a model's name stands for: that name, without a prefix or a number."""
        name = name.strip()
        bare = PREFIX.sub("", name, count=1)
        options = (name, bare, _NUMBER.sub("", bare))
        return next((option for option in options if option in self._schemas), None)

    def required_of(self, name: str | None) -> frozenset[str]:
        return required_of(self._schemas.get(name or "", {}))

    def knows(self, name: str | None, key: str) -> bool:
        """Return whether a tool's schema names an argument."""
        properties = self._schemas.get(name or "", {}).get("properties")
        return isinstance(properties, Mapping) and key in properties

    def written(self, name: str | None, arguments: Sequence[Argument]) -> str:
        """Return the arguments as JSON, each with the type that the schema gives it."""
        schema = self._schemas.get(name or "", {})
        typed = {}
        for argument in arguments:
            types = types_of_argument(argument.key, schema)
            if argument.kind == "text":
                typed[argument.key] = argument.raw
            elif argument.kind == "unknown":
                typed[argument.key] = value_of_text(argument.raw, types)
            else:
                typed[argument.key] = value_of_json(argument.value, argument.raw, types)
        return write_exact(typed)
