"""Choice of an answer's parser, and the parser for unmarked output."""

from __future__ import annotations

from server.text.parsers.answer import ChatParser
from server.text.parsers.harmony import HarmonyParser
from server.text.parsers.parts import ChatFormat, OutputParser, Part, Start, Tools

__all__ = ["ChatParser", "RawText", "build_parser", "opens_reasoning"]


class RawText:
    """Parser of an output without markup."""

    markup: tuple[str, ...] = ()
    done = False

    def feed(self, text: str) -> list[Part]:
        return [Part("content", text, len(text))] if text else []

    def flush(self, *, is_cut: bool = False) -> list[Part]:
        return [Part("content", "", 0)]


def build_parser(
    format: ChatFormat,
    tools: Tools = (),
    *,
    begins: Start = "before",
    only_one: bool = False,
    is_held: bool = False,
) -> OutputParser:
    """Return the parser of one choice for a model's answer format.

    `is_held`: a grammar enforces the model's own call form, and nothing else counts as a call.
    """
    if format.is_harmony:
        return HarmonyParser(tools, begins=begins, only_one=only_one)
    return ChatParser(format, tools, begins=begins, only_one=only_one, is_held=is_held)


def opens_reasoning(format: ChatFormat, prompt: str) -> bool:
    """Return whether the model's answer to a rendered prompt begins within reasoning."""
    return format.think_start is not None and prompt.rstrip().endswith(format.think_start)
