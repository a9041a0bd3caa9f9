"""Addition and subtraction up to three digits; one digit times up to two.

The reasoning goes digit by digit from the right, each line a small sum with its carry and the result so far:
`7+5+0=12 2`, `4+8+1=13 32`, `0+0+1=01 132` for 47 + 85.
"""

# ruff: noqa: RUF001, RUF003 - × is meant

from __future__ import annotations

from scripts.pocket.items import Item
from scripts.pocket.skills.base import Draw, asked
from scripts.pocket.skills.judge import last_number_is

Sum = tuple[int, str, int]
"""Operand, one of + - ×, operand."""

_ASK = ("What is {sum}?", "What is {sum}?", "{sum} = ?", "{sum}", "Calculate {sum}.", "How much is {sum}?")
_SPOKEN = {"+": "plus", "-": "minus", "×": "times"}


def value(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "×": a * b}[sign]


def _digits(a: int, b: int) -> list[tuple[int, int]]:
    """Return the digits of both from the right, the shorter padded with zeros."""
    wide = max(len(str(a)), len(str(b)))
    return [(int(one), int(other)) for one, other in zip(f"{a:0{wide}d}"[::-1], f"{b:0{wide}d}"[::-1], strict=True)]


def added(a: int, b: int) -> str:
    lines, carry, result = [], 0, ""
    for one, other in _digits(a, b):
        total = one + other + carry
        result = f"{total % 10}{result}"
        lines.append(f"{one}+{other}+{carry}={total:02d} {result}")
        carry = total // 10
    if carry:
        lines.append(f"0+0+1=01 1{result}")
    return "\n".join(lines)


def subtracted(a: int, b: int) -> str:
    """Return the steps. A line below zero borrows from the next: `2-5-0=-3 7`."""
    if a < b:
        return f"{a}<{b}\n{subtracted(b, a)}"
    lines, borrow, result = [], 0, ""
    for one, other in _digits(a, b):
        rest = one - other - borrow
        result = f"{rest % 10}{result}"
        lines.append(f"{one}-{other}-{borrow}={rest} {result}")
        borrow = int(rest < 0)
    return "\n".join(lines)


def multiplied(a: int, b: int) -> str:
    """Return the steps. One of the factors has one digit."""
    many, single = max(a, b), min(a, b)
    lines, carry, result = [], 0, ""
    for one in map(int, reversed(str(many))):
        total = one * single + carry
        result = f"{total % 10}{result}"
        lines.append(f"{one}*{single}+{carry}={total:02d} {result}")
        carry = total // 10
    if carry:
        lines.append(f"0*{single}+{carry}={carry:02d} {carry}{result}")
    return "\n".join(lines)


def steps(a: int, sign: str, b: int) -> str:
    return {"+": added, "-": subtracted, "×": multiplied}[sign](a, b)


def _operand(draw: Draw) -> int:
    return draw.rng.randrange(draw.one((10, 100, 100, 1000, 1000)))


def _sum(draw: Draw) -> Sum:
    sign = draw.one(("+", "+", "+", "-", "-", "-", "×", "×"))
    if sign == "×":
        pair = [draw.rng.randrange(10), draw.rng.randrange(draw.one((10, 100, 100)))]
        draw.rng.shuffle(pair)
        return pair[0], sign, pair[1]
    a, b = _operand(draw), _operand(draw)
    if sign == "-" and a < b and not draw.chance(0.1):
        a, b = b, a
    return a, sign, b


def material(sum_: Sum) -> str:
    """Return the operation, the same for both orders of the operands."""
    a, sign, b = sum_
    return f"{min(a, b)}{sign}{max(a, b)}"


def draw_sum(draw: Draw) -> Sum:
    return draw.fresh(lambda: _sum(draw), material)


def written(draw: Draw, a: int, sign: str, b: int) -> str:
    """Return it as a person may write it: 47 + 85, 47+85, 47 plus 85, 4 x 12."""
    way = draw.rng.random()
    if way < 0.1:
        return f"{a} {_SPOKEN[sign]} {b}"
    if sign == "×":
        sign = draw.one("×x*")
    return f"{a}{sign}{b}" if way < 0.25 else f"{a} {sign} {b}"


def make(draw: Draw, operation: Sum | None = None) -> Item:
    a, sign, b = operation or draw_sum(draw)
    question = draw.one(_ASK).format(sum=written(draw, a, sign, b))
    result = value(a, sign, b)
    return asked(draw, "arithmetic", question, f"{a} {sign} {b} = {result}.", last_number_is(result), steps(a, sign, b))
