"""Tools of all kinds to functions, and which of them the model is shown."""

from __future__ import annotations

from typing import Any

import pytest

from server.dialects.openai_responses.tools import Toolbox, choose, decode_tools
from server.errors import InvalidRequest

FUNCTION = {"type": "function", "name": "find", "description": "Finds", "parameters": {"type": "object"}}
CUSTOM = {"type": "custom", "name": "shell", "description": "Runs it"}


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "strict": False, "parameters": {}, **more}


def space(name: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": f"All of {name}", "tools": list(tools)}


def names(box: Toolbox) -> list[str]:
    return [tool.model_name for tool in box.offered]


def test_a_function_is_what_a_chat_has() -> None:
    (tool,) = decode_tools([{**FUNCTION, "strict": True}]).offered
    assert tool.neutral == {
        "type": "function",
        "function": {"name": "find", "description": "Finds", "parameters": {"type": "object"}, "strict": True},
    }
    assert list(tool.function) == ["name", "description", "parameters", "strict"]


def test_a_custom_tool_takes_one_text() -> None:
    (tool,) = decode_tools([CUSTOM]).offered
    assert tool.function["parameters"] == {
        "type": "object",
        "properties": {"input": {"type": "string"}},
        "required": ["input"],
        "additionalProperties": False,
    }
    assert "strict" not in tool.function


def test_a_regular_expression_holds_and_a_lark_grammar_is_told() -> None:
    def of(syntax: str, definition: str) -> Any:
        form = {"type": "grammar", "syntax": syntax, "definition": definition}
        (tool,) = decode_tools([{**CUSTOM, "format": form}]).offered
        return tool.function

    regex, lark = of("regex", "a/b|c"), of("lark", "start: X")
    assert regex["parameters"]["properties"]["input"]["pattern"] == r"^(?:a\/b|c)$" and regex["strict"] is True
    assert lark["description"].startswith("Runs it\n\n") and lark["description"].endswith("start: X")
    assert "strict" not in lark


def test_a_namespace_is_flattened_and_restored() -> None:
    box = decode_tools([space("files", named("find"), named("cut")), space("mcp__web__", named("find"))])
    assert names(box) == ["files__find", "files__cut", "mcp__web__find"]
    descriptions = [tool.function.get("description") for tool in box.offered]
    assert descriptions == ["All of files", None, "All of mcp__web__"]
    found = box.find("mcp__web__find")
    assert found is not None and (found.name, found.namespace) == ("find", "mcp__web__")
    assert box.model_name("find", "files") == "files__find"
    assert box.model_name("gone", "files") == "files__gone"


def test_names_that_become_the_same_stay_apart() -> None:
    box = decode_tools([named("a__b"), space("a", named("b")), space("a_", named("b"))])
    assert names(box) == ["a__b", "a__b_2", "a__b_3"]
    assert [box.model_name("b", each) for each in ("a", "a_")] == ["a__b_2", "a__b_3"]


def test_tools_that_openai_runs_are_left_out_and_named() -> None:
    kinds = ("web_search", "web_search_preview", "web_search_2025_08_26", "computer_use_preview", "mcp", "local_shell")
    box = decode_tools([{"type": kind} for kind in kinds] + [FUNCTION])
    assert names(box) == ["find"]
    assert box.dropped == tuple(f"tools.{kind}" for kind in kinds)
    assert [tool["type"] for tool in box.echo] == ["function"]


def test_fields_that_nobody_knows_are_named() -> None:
    assert decode_tools([{**FUNCTION, "defer_loading": True}]).dropped == ("tools.defer_loading",)


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({}, "tools.0.type"),
        ({"type": "functon", "name": "a"}, "tools.0.type"),
        ({"type": 1}, "tools.0.type"),
        ({"type": "function"}, "tools.0.name"),
        (named("a b"), "tools.0.name"),
        (named("a", parameters=[]), "tools.0.parameters"),
        (named("a", parameters={"type": "array"}), "tools.0.parameters"),
        (named("a", strict="yes"), "tools.0.strict"),
        (named("a", description=1), "tools.0.description"),
        ({**CUSTOM, "format": "text"}, "tools.0.format"),
        ({**CUSTOM, "format": {"type": "grammar", "syntax": "ebnf"}}, "tools.0.format.syntax"),
        ({**CUSTOM, "format": {"type": "grammar", "syntax": "regex"}}, "tools.0.format.definition"),
        ({**CUSTOM, "format": {"type": "json"}}, "tools.0.format.type"),
        ({"type": "namespace", "name": "a"}, "tools.0.tools"),
        (space("a", {"type": "web_search"}), "tools.0.tools.0.type"),
        ({"type": "namespace", "name": "a", "tools": [1]}, "tools.0.tools.0"),
    ],
)
def test_a_tool_that_is_wrong_is_refused_with_its_place(tool: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        decode_tools([tool])
    assert error.value.param == param


BOX = decode_tools([FUNCTION, CUSTOM, {"type": "web_search"}])


@pytest.mark.parametrize(
    ("choice", "shown", "must_call"),
    [
        (None, ["find", "shell"], False),
        ("auto", ["find", "shell"], False),
        ("none", [], False),
        ("required", ["find", "shell"], True),
        ({"type": "function", "name": "find"}, ["find"], True),
        ({"type": "custom", "name": "shell"}, ["shell"], True),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "find"}]}, ["find"], False),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "shell"}]},
            ["shell"],
            True,
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}, [], False),
    ],
)
def test_which_tools_the_model_is_shown(choice: Any, shown: list[str], must_call: bool) -> None:
    offered, must = choose(choice, BOX)
    assert ([tool.name for tool in offered], must) == (shown, must_call)


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "web_search"}, "tool_choice"),
        ({"type": "anything"}, "tool_choice.type"),
        ({}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "function", "name": "other"}, "tool_choice"),
        ({"type": "allowed_tools", "mode": "all", "tools": []}, "tool_choice.mode"),
        ({"type": "allowed_tools"}, "tool_choice.tools"),
        ({"type": "allowed_tools", "tools": [{"type": "function", "name": "x"}]}, "tool_choice.tools.0"),
        ({"type": "allowed_tools", "mode": "required", "tools": []}, "tool_choice"),
    ],
)
def test_a_choice_that_is_wrong_is_refused_with_its_place(choice: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        choose(choice, BOX)
    assert error.value.param == param
