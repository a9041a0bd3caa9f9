"""Read a Modelfile: its instructions in order, each with its line. Independent of their effects.

Names are case-insensitive. A value is the rest of the line, or the text between quotes; between triple quotes it may
span several lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from server.importing.problems import CannotImport

NAMES = frozenset(
    {
        *("from", "parameter", "template", "system", "message", "adapter", "license"),
        *("renderer", "parser", "draft", "requires"),
    }
)
_WITH_KEY = ("parameter", "message")
_INSTRUCTION = re.compile(r"([A-Za-z]+)(?:[ \t]+(.*))?", re.DOTALL)
MAX_BYTES = 4 << 20
MAX_INSTRUCTIONS = 10_000


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `key`: the parameter's name or the message's role; otherwise empty."""

    line: int
    name: str
    key: str
    value: str


def parse(text: str) -> list[Instruction]:
    """Return the instructions of a Modelfile, at least one of them FROM. Raises CannotImport, naming the line."""
    if len(text) > MAX_BYTES:
        raise CannotImport(f"it has {len(text)} characters; at most {MAX_BYTES} are read")
    found = []
    for instruction in _instructions(text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")):
        found.append(instruction)
        if len(found) > MAX_INSTRUCTIONS:
            raise CannotImport(f"it has more than {MAX_INSTRUCTIONS} instructions")
    if not any(each.name == "from" for each in found):
        raise CannotImport("it has no FROM, the model that it is about; is it a Modelfile?")
    return found


def _instructions(lines: list[str]) -> Iterator[Instruction]:
    place = 0
    while place < len(lines):
        line, written = place + 1, lines[place].strip()
        place += 1
        if not written or written.startswith("#"):
            continue
        found = _INSTRUCTION.fullmatch(written)
        name = found[1].lower() if found else ""
        if found is None or name not in NAMES:
            raise CannotImport(f"line {line}: {written[:40]!r} is no instruction of a Modelfile")
        key, rest = "", (found[2] or "").strip()
        if name in _WITH_KEY:
            key, _, rest = rest.partition(" ")
            key, rest = key.strip().lower(), rest.strip()
        value, place = _value(rest, lines, place, line)
        if not value and name != "license":
            raise CannotImport(f"line {line}: {name.upper()} {key} has no value".replace("  ", " "))
        yield Instruction(line, name, key, value)


def _value(rest: str, lines: list[str], place: int, line: int) -> tuple[str, int]:
    """Return (value, index of the next line): the first line that ends with quotes ends them. Raises CannotImport."""
    quote = next((each for each in ('"""', '"') if rest.startswith(each)), None)
    if quote is None:
        return rest, place
    pieces = [rest[len(quote) :]]
    while not pieces[-1].rstrip().endswith(quote):
        if place >= len(lines):
            raise CannotImport(f"line {line}: the quotes {quote} are not closed")
        pieces.append(lines[place])
        place += 1
    pieces[-1] = pieces[-1].rstrip().removesuffix(quote)
    return "\n".join(pieces), place
