"""The division of a batch's rows into groups of similar length. Pure; no MLX.

A group's rows share one array per layer, as wide as its longest row. The rows of all groups grow by one token per step,
so their padding stays what it was when they joined. Another group saves bytes and costs each layer a few launches, so
there are few groups, and they change only if that saves much.

Bounds: let `least` be the fewest bytes in which `max_groups` groups can hold the rows. A batch never holds more than
`_allowed(least)`, or than one group would. Both grow with every row's length, so a bound for the lengths that rows may
reach also holds on the way there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

MAX_GROUPS = 8
_SLACK_BYTES = 256 << 20
"""Padding that does not justify a group: an M3 Ultra reads it in a third of a millisecond, and a group's launches in a
model of 36 layers take about one."""
_SLACK_SHARE = 16
"""Share of the whole (one in this many) that does not justify a group either. A plan exceeds what is held by no more:
with 32 rows by 2.5 % on average and 5.1 % at most, for about one group more than an eighth would take (7 instead of 6).
"""

RowBytes = Callable[[int], int]
"""Bytes of a row allocated for this many tokens, all layers together; never less for more tokens."""


def size_of(groups: Sequence[Sequence[int]], row_bytes: RowBytes) -> int:
    """Return the bytes of groups of rows of these lengths, each padded to its longest."""
    return sum(len(lengths) * row_bytes(max(lengths)) for lengths in groups if lengths)


def most_bytes(lengths: Sequence[int], row_bytes: RowBytes, max_groups: int = MAX_GROUPS) -> int:
    """Return the most bytes that hold rows of these lengths, or of shorter ones."""
    if not lengths:
        return 0
    together, apart = _together(lengths, row_bytes), sum(map(row_bytes, lengths))
    if together <= _allowed(apart) or max_groups == 1:
        return together
    return min(together, _allowed(_cuts(lengths, row_bytes, max_groups)[-1][0]))


def divide(lengths: Sequence[int], row_bytes: RowBytes, max_groups: int = MAX_GROUPS) -> list[int]:
    """Return the group of each row: the fewest groups that hold little more than the least, the shortest rows first."""
    if not lengths:
        return []
    if max_groups == 1 or _together(lengths, row_bytes) <= _tight(sum(map(row_bytes, lengths))):
        return [0] * len(lengths)
    options = _cuts(lengths, row_bytes, max_groups)
    most = _tight(options[-1][0])
    tops = next(tops for size, tops in options if size <= most)
    return [next(number for number, top in enumerate(tops) if row_bytes(length) <= top) for length in lengths]


def regroup(
    lengths: Sequence[int], held: Sequence[int | None], row_bytes: RowBytes, max_groups: int = MAX_GROUPS
) -> list[int]:
    """Return the group of each row, where most rows have one already; groups keep their numbers.

    `held`: the current group of each row; None for a row that joins. Rows stay in their group unless the batch would
    hold too much, or fewer groups would do.
    """
    present = sorted({number for number in held if number is not None})
    wanted = divide(lengths, row_bytes, max_groups)
    num_wanted = len(set(wanted))
    if present and len(present) <= num_wanted:
        for most in range(len(present), num_wanted + 1):
            placed = _placed(lengths, held, row_bytes, most)
            groups = [[n for n, at in zip(lengths, placed, strict=True) if at == number] for number in set(placed)]
            if size_of(groups, row_bytes) <= most_bytes(lengths, row_bytes, max_groups):
                return placed
    return _renamed(wanted, held)


def _together(lengths: Sequence[int], row_bytes: RowBytes) -> int:
    return len(lengths) * row_bytes(max(lengths))


def _allowed(least: int) -> int:
    return least + max(_SLACK_BYTES, least // _SLACK_SHARE)


def _tight(least: int) -> int:
    """Return the most that a new division holds: less than is allowed, so that it does not change again soon."""
    return least + max(_SLACK_BYTES, least // _SLACK_SHARE) // 2


def _cuts(lengths: Sequence[int], row_bytes: RowBytes, max_groups: int) -> list[tuple[int, list[int]]]:
    """Return (bytes, bytes of the longest row of each group) for the best division into one group, two, and so on.

    A division into neighbours by length is the best of all: a shortest path over the sorted sizes of rows.
    """
    counts = Counter(map(row_bytes, lengths))
    sizes = sorted(counts)
    before = [0]
    for size in sizes:
        before.append(before[-1] + counts[size])
    ends = range(1, len(sizes) + 1)
    best: list[tuple[int, list[int]]] = [(before[end] * sizes[end - 1], [sizes[end - 1]]) for end in ends]
    found = [best[-1]]
    for _ in range(min(max_groups, len(sizes)) - 1):
        extended = list(best)
        for end in ends[1:]:
            top, rows = sizes[end - 1], before[end]
            total, cut = min((best[cut - 1][0] + (rows - before[cut]) * top, cut) for cut in range(1, end))
            if total < best[end - 1][0]:
                extended[end - 1] = (total, [*best[cut - 1][1], top])
        best = extended
        found.append(best[-1])
    return found


def _placed(lengths: Sequence[int], held: Sequence[int | None], row_bytes: RowBytes, max_groups: int) -> list[int]:
    """Return the group of each row: joining rows go where they add least, the longest first; the others stay."""
    groups: dict[int, list[int]] = {}
    for length, number in zip(lengths, held, strict=True):
        if number is not None:
            groups.setdefault(number, []).append(length)
    placed = dict(enumerate(held))
    for place in sorted((p for p, number in placed.items() if number is None), key=lambda p: -lengths[p]):
        choices = {n: size_of([[*g, lengths[place]]], row_bytes) - size_of([g], row_bytes) for n, g in groups.items()}
        if len(groups) < max_groups:
            choices[_unused(groups)] = row_bytes(lengths[place])
        number = min(choices, key=lambda n: (choices[n], n not in groups))
        groups.setdefault(number, []).append(lengths[place])
        placed[place] = number
    return [number for number in placed.values() if number is not None]


def _unused(numbers: dict[int, list[int]]) -> int:
    return next(number for number in range(len(numbers) + 1) if number not in numbers)


def _renamed(wanted: Sequence[int], held: Sequence[int | None]) -> list[int]:
    """Number new groups like the old ones that most of their rows are in, so that few rows move."""
    shared = Counter((new, old) for new, old in zip(wanted, held, strict=True) if old is not None)
    names: dict[int, int] = {}
    for (new, old), _ in shared.most_common():
        if new not in names and old not in names.values():
            names[new] = old
    for new in sorted(set(wanted)):
        if new not in names:
            names[new] = next(number for number in range(len(wanted) + MAX_GROUPS) if number not in names.values())
    return [names[new] for new in wanted]
