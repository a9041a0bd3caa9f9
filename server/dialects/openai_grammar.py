"""Decode the constraints on an answer, in OpenAI's and vLLM's names, into the source of a grammar.

Handles names and forms; the compiler decides whether a grammar is supported.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request

from server.errors import InvalidRequest
from server.json_text import WrittenNumber, has_float, inexact_number, read_json
from server.service.job import GrammarWish
from server.text.grammar import ANY_OBJECT, MOST_CHARS, GrammarSource, inexact

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def decode_grammar(fields: Any) -> GrammarWish | None:
    """Return the one grammar that the fields request, or None. Raises InvalidRequest if they request several."""
    wishes = []
    if fields.response_format is not None:
        wishes.append(_wish("response_format", _of_response_format(fields.response_format)))
    for name, decode in _GUIDED.items():
        value = getattr(fields, f"guided_{name}")
        if value is not None:
            wishes.append(_wish(f"guided_{name}", decode(f"guided_{name}", value)))
    if fields.structured_outputs is not None:
        wishes.append(_wish("structured_outputs", _of_structured_outputs(fields.structured_outputs)))
    found = [wish for wish in wishes if wish is not None]
    if len(found) > 1:
        raise _invalid(found[1].param, f"'{found[0].param}' and '{found[1].param}' cannot be combined.")
    return found[0] if found else None


def _wish(param: str, source: GrammarSource | None) -> GrammarWish | None:
    return None if source is None else GrammarWish(source, param)


def _of_response_format(value: Mapping[str, Any]) -> GrammarSource | None:
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        if schema is None:
            return ANY_OBJECT
        if not isinstance(schema, Mapping):
            raise _invalid("response_format", "'response_format.schema' must be an object.")
        return GrammarSource.of_schema(schema)
    if kind != "json_schema":
        raise _invalid("response_format", "'response_format.type' must be 'text', 'json_object' or 'json_schema'.")
    described = value.get("json_schema")
    if not isinstance(described, Mapping):
        raise _invalid("response_format", "'response_format.json_schema' must be an object.")
    name, schema = described.get("name"), described.get("schema")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _invalid("response_format", "'response_format.json_schema.name' must be 1 to 64 of a-z, A-Z, 0-9, _, -.")
    if not isinstance(schema, Mapping):
        raise _invalid("response_format", "'response_format.json_schema.schema' must be an object.")
    return GrammarSource.of_schema(schema)


def _of_structured_outputs(value: Mapping[str, Any]) -> GrammarSource | None:
    given = {name: each for name, each in value.items() if each is not None}
    unknown = sorted(given.keys() - _GUIDED.keys() - {"json_object"})
    if unknown:
        raise _invalid("structured_outputs", f"'structured_outputs.{unknown[0]}' is not supported.")
    if given.pop("json_object", False):
        return ANY_OBJECT if not given else _too_many()
    if len(given) > 1:
        return _too_many()
    return next((_GUIDED[name](f"structured_outputs.{name}", each) for name, each in given.items()), None)


def _too_many() -> GrammarSource:
    raise _invalid("structured_outputs", "'structured_outputs' may name one kind of grammar.")


def _of_json(param: str, value: Any) -> GrammarSource:
    if isinstance(value, str):
        if len(value) > MOST_CHARS:
            raise _invalid(param, f"'{param}' has {len(value)} characters; at most {MOST_CHARS} are supported.")
        try:
            number = inexact_number(read_json(value, parse_float=WrittenNumber))
            value = read_json(value)
        except ValueError as error:
            raise _invalid(param, f"'{param}' is not JSON ({error}).") from None
        if number is not None:
            raise _inexact(param, number)
    if not isinstance(value, Mapping):
        raise _invalid(param, f"'{param}' must be a schema: an object, or the JSON of one.")
    return GrammarSource.of_schema(value)


def _of_choice(param: str, value: Any) -> GrammarSource:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise _invalid(param, f"'{param}' must be a list of strings, none of them empty.")
    return GrammarSource.of_choices(tuple(value))


def _of_regex(param: str, value: Any) -> GrammarSource:
    return GrammarSource("regex", _text(param, value))


def _of_lark(param: str, value: Any) -> GrammarSource:
    return GrammarSource("lark", _text(param, value))


def _text(param: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _invalid(param, f"'{param}' must be a string, and not empty.")
    return value


_GUIDED: Mapping[str, Callable[[str, Any], GrammarSource]] = {
    "json": _of_json,
    "regex": _of_regex,
    "choice": _of_choice,
    "grammar": _of_lark,
}


def schemas_of(fields: Any) -> dict[str, Any]:
    """Return the fields that may contain schemas, by name."""
    names = ("response_format", "guided_json", "structured_outputs")
    return {name: getattr(fields, name) for name in names if getattr(fields, name) is not None}


async def check_numbers(request: Request, fields: Mapping[str, Any]) -> None:
    """Raise InvalidRequest if a schema in the body contains a number that a double would change.

    `fields`: the parsed fields with schemas. The raw body is read only if they contain numbers with a point or an
    exponent. Integers are checked with the grammar.
    """
    names = [name for name, value in fields.items() if has_float(value)]
    if not names:
        return
    written = await asyncio.to_thread(json.loads, await request.body(), parse_float=WrittenNumber)
    for name in names:
        number = inexact_number(written.get(name))
        if number is not None:
            raise _inexact(name, number)


def _inexact(param: str, number: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}': {inexact(number)}.", param=param, code="unsupported_grammar")


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
