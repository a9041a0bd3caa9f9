"""DeepSeek's calls, which mlx-lm does not read: those of V3 and R1, those of V3.1, and those of V3.2.

The first two stand between `<｜tool▁calls▁begin｜>` and `<｜tool▁calls▁end｜>`, each call between
`<｜tool▁call▁begin｜>` and `<｜tool▁call▁end｜>`. V3 and R1 write `function<｜tool▁sep｜>NAME` and the arguments in a
fenced block of JSON, V3.1 writes `NAME<｜tool▁sep｜>{…}`. Their templates write calls and results of earlier turns, and
nothing of the tools there are: that is said here, for the system's message. V3.2 writes
`<｜DSML｜invoke name="NAME">` and its parameters one by one, each with a word on whether it is a text or JSON; its
tools are told in the system's message, where there is one. Knows characters only.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from server.json_text import read_json
from server.text.parsers.parts import CallSyntax, ChatFormat, Tools

START, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
TAGS = (START, END, CALL, SEP, CALL_END)

DSML = "｜DSML｜"
"""In the tags of V3.2."""
DSML_START, DSML_END = f"<{DSML}function_calls>", f"</{DSML}function_calls>"

FENCED = CallSyntax(call=f"{CALL}function{SEP}{{name}}\n```json\n{{arguments}}\n```{CALL_END}", between="\n")
BARE = CallSyntax(call=f"{CALL}{{name}}{SEP}{{arguments}}{CALL_END}", between="")

INVOKED = CallSyntax(
    before="\n",
    call=f'<{DSML}invoke name="{{name}}">\n{{arguments}}</{DSML}invoke>',
    pair=f'<{DSML}parameter name="{{key}}" string="{{flag}}">{{value}}</{DSML}parameter>\n',
    between="\n",
    after="\n",
)

_FENCED_BODY = re.compile(rf"function\s*{SEP}\s*(\S+)\s*```(?:json)?(.*?)(?:```\s*)?", re.DOTALL)
_INVOKE = re.compile(rf'<{DSML}invoke name="([^"]+)">(.*?)</{DSML}invoke>', re.DOTALL)
_PARAMETER = re.compile(rf'<{DSML}parameter name="([^"]+)" string="(true|false)">(.*?)</{DSML}parameter>', re.DOTALL)
_BARE_BODY = re.compile(rf"(\S+?)\s*{SEP}(.*)", re.DOTALL)


def format_of(template: object, think_start: str | None, think_end: str | None) -> ChatFormat:
    """By the chat template's text, which tells the two ways apart."""
    text = template if isinstance(template, str) else ""
    syntax = FENCED if "```json" in text else BARE
    return ChatFormat(
        think_start=think_start,
        think_end=think_end,
        tool_start=START,
        tool_end=END,
        parse_tool_call=parse_tool_call,
        inside=(CALL, SEP, CALL_END),
        syntax=syntax,
        describe_tools=None if re.search(r"\btools\b", text) else partial(describe_tools, syntax),
    )


def dsml_format(think_start: str | None, think_end: str | None) -> ChatFormat:
    """V3.2's."""
    return ChatFormat(
        think_start=think_start,
        think_end=think_end,
        tool_start=DSML_START,
        tool_end=DSML_END,
        parse_tool_call=parse_invocations,
        inside=(DSML,),
        syntax=INVOKED,
        describe_tools=lambda tools: "",
    )


def parse_invocations(text: str, tools: Tools) -> list[dict[str, Any]]:
    """V3.2's calls between the outer tags. Raises ValueError."""
    found = [
        {"name": name, "arguments": {key: _value(flag, value) for key, flag, value in _PARAMETER.findall(body)}}
        for name, body in _INVOKE.findall(text)
    ]
    if not found:
        raise ValueError("there is no call")
    return found


def _value(flag: str, value: str) -> Any:
    return value if flag == "true" else read_json(value)


def parse_tool_call(text: str, tools: Tools) -> list[dict[str, Any]]:
    """The calls between the outer tags, written either way. Raises ValueError."""
    calls = []
    for body in text.split(CALL)[1:]:
        body = body.partition(CALL_END)[0].strip()
        found = _FENCED_BODY.fullmatch(body) or _BARE_BODY.fullmatch(body)
        if found is None:
            raise ValueError("a call is a name and its arguments")
        calls.append({"name": found[1], "arguments": read_json(found[2])})
    if not calls:
        raise ValueError("there is no call")
    return calls


def describe_tools(syntax: CallSyntax, tools: Tools) -> str:
    """What a system's message has to say of the tools, and of how to call them."""
    lines = (json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    call = syntax.call.format(name="NAME", arguments="ARGUMENTS")
    return "\n".join(
        (
            "You can call functions. These there are, each with the JSON schema of its arguments:",
            *lines,
            "To call one, end your answer with exactly this, NAME its name and ARGUMENTS a JSON object:",
            f"{START}{call}{END}",
            f"Several calls follow one another, each from {CALL} to {CALL_END}.",
        )
    )
