"""What asks for a grammar on the wire, in both dialects: what it becomes, and what is refused with which name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.dialects.openai_grammar import decode_grammar
from server.text.grammar import ANY_OBJECT, GrammarSource
from tests.fake_engine import FakeEngine, spell
from tests.serving import client_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
OF_SCHEMA = GrammarSource.of_schema(SCHEMA)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"prompt": "hi"},
}


def json_schema(**given: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, **given}}


class Fields:
    """A body of which only these fields are set."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> None:
        return None


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, OF_SCHEMA),
        ({"response_format": {"type": "json_object", "schema": None}}, ANY_OBJECT),
        ({"response_format": json_schema()}, OF_SCHEMA),
        ({"response_format": json_schema(strict=True, description="d")}, OF_SCHEMA),
        ({"response_format": json_schema(strict=False)}, OF_SCHEMA),
        ({"guided_json": SCHEMA}, OF_SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, OF_SCHEMA),
        ({"guided_regex": "[a-z]+"}, GrammarSource("regex", "[a-z]+")),
        ({"guided_choice": ["a", "b"]}, GrammarSource.of_choices(("a", "b"))),
        ({"guided_grammar": 'start: "x"'}, GrammarSource("lark", 'start: "x"')),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, OF_SCHEMA),
        ({"structured_outputs": {"choice": ["a"]}}, GrammarSource.of_choices(("a",))),
        ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, GrammarSource("regex", "a")),
    ],
)
def test_what_is_asked_for(given: dict[str, Any], source: GrammarSource | None) -> None:
    wish = decode_grammar(Fields(**given))
    assert (wish and wish.source) == source
    assert wish is None or wish.param in given


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": json_schema(name="")}, "response_format"),
    ({"response_format": json_schema(name="no spaces")}, "response_format"),
    ({"response_format": json_schema(schema="{}")}, "response_format"),
    ({"response_format": json_schema(schema={"not": {}})}, "response_format"),
    ({"response_format": {"type": "json_object", "schema": "{}"}}, "response_format"),
    ({"response_format": json_schema(schema={"const": 2**53 + 1})}, "response_format"),
    ({"guided_json": '{"const": 0.10000000000000000001}'}, "guided_json"),
    ({"response_format": "json"}, "response_format"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": "[]"}, "guided_json"),
    ({"guided_json": {"patternProperties": {"a": {}}}}, "guided_json"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": [1]}, "guided_choice.0"),
    ({"guided_grammar": "start: nothing"}, "guided_grammar"),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"json": SCHEMA, "json_object": True}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"response_format": {"type": "json_object"}, "min_tokens": 2, "max_tokens": 5}, "min_tokens"),
    ({"response_format": {"type": "json_object"}, "allowed_token_ids": [5]}, "allowed_token_ids"),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("given", "param"), REFUSED, ids=lambda value: str(value)[:50])
async def test_what_cannot_be_is_a_400_that_names_it(path: str, given: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    async with client_of(engine) as client:
        answer = await client.post(path, json={**BODIES[path], **given})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert not engine.requests


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_engine_gets_the_grammar_and_the_end_token_with_it(path: str) -> None:
    engine = FakeEngine([spell("{}")])
    async with client_of(engine) as client:
        body = {**BODIES[path], "response_format": {"type": "json_object"}, "ignore_eos": True}
        assert (await client.post(path, json=body)).status_code == 200
        assert (await client.post(path, json=BODIES[path])).status_code == 200
    led, free = engine.requests
    assert led.grammar is not None
    assert led.stop_ids
    assert free.grammar is None


INEXACT = '{"minimum": 0.10000000000000000001}'


@pytest.mark.parametrize(
    ("path", "field", "param"),
    [
        (CHAT, f'"response_format": {{"type": "json_object", "schema": {INEXACT}}}', "response_format"),
        (COMPLETIONS, f'"guided_json": {INEXACT}', "guided_json"),
        (COMPLETIONS, '"structured_outputs": {"json": {"const": 1e400}}', "structured_outputs"),
        (CHAT, f'"tools": [{{"type": "function", "function": {{"name": "f", "parameters": {INEXACT}}}}}]', "tools"),
        (CHAT, f'"functions": [{{"name": "f", "parameters": {INEXACT}}}]', "functions"),
    ],
)
async def test_a_number_that_a_double_would_change(path: str, field: str, param: str) -> None:
    async def ask(client: httpx.AsyncClient, more: str) -> httpx.Response:
        body = json.dumps(BODIES[path])[:-1] + f', "temperature": 0.70000000000000000001, {more}}}'
        return await client.post(path, content=body, headers={"content-type": "application/json"})

    async with client_of(FakeEngine([spell("1")])) as client:
        refused = await ask(client, field)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert "cannot be held exactly" in refused.json()["error"]["message"]
        assert (await ask(client, '"user": "me"')).status_code == 200
        assert (await ask(client, '"guided_json": {"enum": [0.1, 1.5e-7]}, "max_tokens": 1')).status_code == 200
