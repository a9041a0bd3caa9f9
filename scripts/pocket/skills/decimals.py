"""Comparison of two decimals. The reasoning writes both with the same digits and compares from the left."""

from __future__ import annotations

from scripts.pocket.items import Item
from scripts.pocket.skills.base import Draw, asked
from scripts.pocket.skills.judge import first_number_is, says

_LARGER = (
    "Which is larger, {a} or {b}?",
    "Which is bigger, {a} or {b}?",
    "Which is bigger: {a} or {b}?",
    "Which number is larger, {a} or {b}?",
    "{a} or {b}?",
    "{a} or {b}, which is larger?",
)
_SMALLER = ("Which is smaller, {a} or {b}?", "Which number is smaller: {a} or {b}?")
Pair = tuple[str, str]


def padded(a: str, b: str) -> Pair:
    """Return both with the same number of digits before and after the point."""
    (a_whole, _, a_rest), (b_whole, _, b_rest) = a.partition("."), b.partition(".")
    wide, deep = max(len(a_whole), len(b_whole)), max(len(a_rest), len(b_rest))
    point = "." if deep else ""
    return (
        f"{a_whole.zfill(wide)}{point}{a_rest.ljust(deep, '0')}",
        f"{b_whole.zfill(wide)}{point}{b_rest.ljust(deep, '0')}",
    )


def comparison(a: str, b: str) -> str:
    """Return `9.80 vs 9.11: 9=9, 8>1`: the digits from the left, up to the first that differ."""
    left, right = padded(a, b)
    steps = []
    for one, other in zip(left.replace(".", ""), right.replace(".", ""), strict=True):
        steps.append(f"{one}{'=' if one == other else '>' if one > other else '<'}{other}")
        if one != other:
            break
    return f"{left} vs {right}: {', '.join(steps)}"


def _decimal(draw: Draw, whole: int) -> str:
    places = draw.one((0, 1, 1, 1, 2, 2, 2, 3))
    return str(whole) if places == 0 else f"{whole}.{draw.rng.randrange(10**places):0{places}d}"


def _pair(draw: Draw) -> Pair:
    whole = draw.rng.randrange(draw.one((10, 10, 100)))
    a = _decimal(draw, whole)
    if draw.chance(0.07):
        return a, a + ("0" if "." in a else ".0")
    if draw.chance(0.3) and "." in a:  # the same first digit after the point
        return a, a[: a.index(".") + 2] + str(draw.rng.randrange(100))
    return a, _decimal(draw, whole if draw.chance(0.75) else draw.rng.randrange(draw.one((10, 100))))


def material(pair: Pair) -> str:
    return "decimals " + " ".join(sorted(pair))


def draw_pair(draw: Draw) -> Pair:
    """Return two decimals of the split, in either order; they may be equal in value."""
    a, b = draw.fresh(lambda: _pair(draw), material)
    return (a, b) if draw.chance(0.5) else (b, a)


def make(draw: Draw, pair: Pair | None = None) -> Item:
    a, b = pair or draw_pair(draw)
    smaller = draw.chance(0.2)
    question = draw.one(_SMALLER if smaller else _LARGER).format(a=a, b=b)
    left, right = padded(a, b)
    reasoning = comparison(a, b)
    if left == right:
        return asked(draw, "decimals", question, f"{a} and {b} are equal.", says("equal"), reasoning)
    first = (left > right) != smaller
    one, other = (a, b) if first else (b, a)
    answer = f"{one} is {'smaller' if smaller else 'larger'} than {other}."
    return asked(draw, "decimals", question, answer, first_number_is(one), reasoning)
