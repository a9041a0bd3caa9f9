"""RowBatch: the KV caches of all layers for the sequences that decode together.

`set_rows` sets the rows of the next step; the batch works out which rows leave, which join, and their groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.kv_cache.allocation import allocated
from mlx_backend.kv_cache.build import build_rows, build_states, fork
from mlx_backend.kv_cache.grouping import MAX_GROUPS, RowBytes, regroup
from mlx_backend.kv_cache.groups import Group, GroupedRows, RowGroups
from mlx_backend.kv_cache.rows import RowLengths, States
from mlx_backend.kv_cache.spec import CacheKind, can_group, kinds_of, leaves

_ONE_EACH: Mapping[Row, int] = MappingProxyType({})
_UNUSED_STEPS = 256
"""Steps after which an unused place is given up: as seldom as columns are added."""


class MemberList:
    """A layer with several caches, as mlx-lm's CacheList presents it to a model."""

    def __init__(self, members: Sequence[Any]) -> None:
        self.caches = tuple(members)

    def __getitem__(self, index: int) -> Any:
        return self.caches[index]


class RowBatch:
    """Rows of any kind in the table. `caches` goes to the model, one member per layer.

    The place of a row that left is kept for the next one while `spare_bytes` allow it.
    """

    def __init__(
        self,
        template: Sequence[Any],
        row_bytes: RowBytes | None = None,
        max_groups: int = MAX_GROUPS,
        kinds: Sequence[CacheKind] | None = None,
        max_drafts: int = 0,
    ) -> None:
        """`template`: the empty caches of one sequence of this model, mlx-lm's or ours.

        `row_bytes`: bytes of a row by its number of tokens, used to group rows; None: no groups. `kinds`: kinds of the
        caches, those of a layer with several in order; None: by their classes. `max_drafts`: drafts per row and step.
        """
        self._max_drafts = max_drafts
        self._counts: Mapping[Row, int] = {}
        """Tokens that the step gives each row, where it is not one."""
        self._kinds = list(kinds or kinds_by_class(template))
        self._groups = RowGroups()
        self._leaves: list[GroupedRows | States] = []
        self.caches: list[Any] = [self._build(cache) for cache in template]
        self._columns = [leaf for leaf in self._leaves if isinstance(leaf, GroupedRows)]
        self._states = [leaf for leaf in self._leaves if not isinstance(leaf, GroupedRows)]
        self._row_bytes: RowBytes = row_bytes or (lambda num_tokens: 0)
        self._max_groups = max_groups if row_bytes is not None and can_group(self._kinds) else 1
        self.spare_bytes = 0
        """Bytes that may be held beyond those that the rows take."""
        self._unused_steps = 0
        self._written: list[mx.array] = []
        """Arrays into which a row was moved, and which may not be computed yet."""

    def _build(self, cache: Any) -> Any:
        if hasattr(cache, "caches"):
            return MemberList([self._build(member) for member in cache.caches])
        kind = self._kinds[len(self._leaves)]
        if kind.is_state:
            leaf: GroupedRows | States = build_states(cache, self._groups)
        else:
            leaf = GroupedRows(cache, self._groups, build_rows, hides_masks=kind.is_latent)
        self._leaves.append(leaf)
        return leaf

    @property
    def rows(self) -> list[Row]:
        """The rows in the order of the batch, which is that of their groups."""
        return self._groups.rows

    @property
    def num_groups(self) -> int:
        return len(self._groups.by_number)

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self._leaves)

    @property
    def unused_bytes(self) -> int:
        """Bytes held beyond those that the rows take."""
        return self._unused({})

    def _unused(self, coming: Mapping[int, Sequence[int]]) -> int:
        """Return the bytes held beyond those that the rows, and the `coming` ones, take."""
        unused = 0
        for number, group in self._groups.by_number.items():
            num_rows, num_tokens = self._sizes(group, coming.get(number, ()))
            unused += group.capacity_bytes(self._row_bytes) - num_rows * self._row_bytes(num_tokens)
        return unused

    def leaves_of(self, row: Row) -> Iterator[tuple[Any, int]]:
        """Yield, for every cache of every layer in order, the object that holds the row, and the row's place in it."""
        group = next(group for group in self._groups.all if row in group.rows)
        within = group.rows.index(row)
        for leaf in self._leaves:
            if isinstance(leaf, GroupedRows):
                yield leaf.member(group), within
            else:
                yield leaf, group.first + within

    # ---- between steps ----

    def set_rows(self, rows: Sequence[Row], counts: Mapping[Row, int] = _ONE_EACH) -> None:
        """Replace `rows` by the given ones, in an order that the batch chooses. New rows give up their `caches`.

        `counts`: tokens that the next step gives each row, where it is not one.
        """
        self._counts = counts
        before = self.rows
        wanted, present = set(rows), set(before)
        for group in self._groups.all:
            self._drop(group, wanted)
        self._written = []
        joining = [row for row in rows if row not in present]
        singles = {row: _leaves_of(row.caches) for row in joining}
        self._settle(singles)
        self._arrange(before, singles)
        self._unused_steps = 0
        self._expect()

    def _expect(self) -> None:
        """Make the caches expect as many tokens per row as the step gives it."""
        if self._counts:
            most = max(self._counts.values()) if self.is_wide else None
            for group in self._groups.all:
                group.lengths.expect([self._count(row) for row in group.rows], most)
            self._groups.changed()
        for states in self._states:
            states.expect([self._count(row) for row in self.rows] if self._counts else None)

    @property
    def is_wide(self) -> bool:
        """Whether a step's tokens come by row, [rows, most tokens of a row]: a state takes them one by one."""
        return bool(self._states)

    def states(self) -> list[list[mx.array | None]]:
        """Return the states of all rows, for `restore_states`."""
        return [states.held() for states in self._states]

    def restore_states(self, held: list[list[mx.array | None]]) -> None:
        """Restore the states from before a step, after some of its tokens were refused."""
        for states, arrays in zip(self._states, held, strict=True):
            states.restore(arrays)

    def _count(self, row: Row) -> int:
        return self._counts.get(row, 1)

    def _drop(self, group: Group, wanted: set[Row]) -> None:
        """Drop rows with as few moves as possible: the last row goes first if it leaves as well."""
        while leaving := [row for row in group.rows if row not in wanted]:
            self._leave(group, leaving[-1] if leaving[-1] is group.rows[-1] else leaving[0])

    def prepare(self, counts: Mapping[Row, int] = _ONE_EACH) -> None:
        """Make room for the next step's tokens. Rows may change their order. `counts`: as in `set_rows`."""
        self._counts = counts
        self._unused_steps += 1
        if all(self._longest(group) <= group.num_columns for group in self._groups.all):
            if self._unused_steps > _UNUSED_STEPS or self.spare_bytes < self.unused_bytes:
                self._fit(0 if self._unused_steps > _UNUSED_STEPS else self.spare_bytes, {})
            self._expect()
            return
        before = self.rows
        self._settle({})
        if self.rows != before:
            self._arrange(before, {})
        self._expect()

    def advance(self, taken: Mapping[Row, int] = _ONE_EACH) -> None:
        """Count a step's tokens: one per row, or as many as `taken` gives.

        Called once the step's forward pass is built or, if it verifies drafts, once the number of accepted ones is
        known.
        """
        for group in self._groups.all:
            group.lengths.advance([taken[row] for row in group.rows] if taken else None)
        self._groups.changed()

    def _longest(self, group: Group, coming: Sequence[int] = ()) -> int:
        """Return the tokens of the longest row, in the group or `coming`, once the step's are written."""
        if not self._counts:
            return max(group.lengths.longest + 1, *coming, 1)
        held = zip(group.rows, group.lengths.values, strict=True)
        return max([*(length + self._count(row) for row, length in held), *coming], default=0)

    def _after(self, row: Row) -> int:
        """Return the tokens of a row once the step's are written."""
        return row.num_computed_tokens + self._count(row)

    def _arrange(self, before: list[Row], joining: dict[Row, list[Any] | None]) -> None:
        """Bring the states into the order of the batch, which had the rows `before`."""
        self._groups.changed()
        places = {row: place for place, row in enumerate([*before, *joining])}
        order = [places[row] for row in self.rows]
        for number, leaf in enumerate(self._leaves):
            if not isinstance(leaf, GroupedRows):
                leaf.arrange(order, [None if single is None else single[number] for single in joining.values()])

    def _settle(self, joining: dict[Row, list[Any] | None]) -> None:
        """Put every row into its group: rows that join, and rows that the others are better off without."""
        rows = [*self.rows, *joining]
        if not rows:
            return
        held = {row: number for number, group in self._groups.by_number.items() for row in group.rows}
        lengths = [self._after(row) for row in rows]
        numbers = regroup(lengths, [held.get(row) for row in rows], self._row_bytes, self._max_groups)
        target = dict(zip(rows, numbers, strict=True))
        moving = [row for row in rows if held.get(row, target[row]) != target[row]]
        for row in moving:
            self._move(row, self._groups.by_number[held[row]], target[row])
        self._written = []
        joins = {n: {row: joining[row] for row in joining if target[row] == n} for n in dict.fromkeys(numbers)}
        # Done before the others join, with room for them: a row that takes another's place would copy the group twice.
        self._fit(self.spare_bytes, {n: [self._after(row) for row in joins[n]] for n in joins})
        for number, singles in joins.items():
            self._join(number, singles)

    def _join(self, number: int, joining: dict[Row, list[Any] | None]) -> None:
        """Make room in a group for its next tokens and for the `joining` rows, and add these."""
        group = self._group(number)
        self._reserve(group, *self._sizes(group, [self._after(row) for row in joining]))
        for row, single in joining.items():
            for place, leaf in enumerate(self._leaves):
                if isinstance(leaf, GroupedRows):
                    leaf.member(group).join(None if single is None else single[place], row.num_computed_tokens)
            self._enter(group, row)
            row.caches = None

    def _move(self, row: Row, source: Group, number: int) -> None:
        """Move a row to another group: copy it, take it out, put it in."""
        place, length = source.rows.index(row), row.num_computed_tokens
        taken = [leaf.member(source).take(place, length) for leaf in self._columns]
        mx.eval([moved.arrays for moved in taken if moved is not None])
        self._leave(source, row)
        group = self._group(number)
        self._reserve(group, *self._sizes(group, [self._after(row)]))
        for leaf, moved in zip(self._columns, taken, strict=True):
            leaf.member(group).join(moved, length)
        self._enter(group, row)

    def _group(self, number: int) -> Group:
        return self._groups.by_number.setdefault(number, Group(lengths=RowLengths(self._max_drafts)))

    def _enter(self, group: Group, row: Row) -> None:
        group.rows.append(row)
        group.lengths.join(row.num_computed_tokens)

    def _leave(self, group: Group, row: Row) -> None:
        """Drop a row; the last row of its group takes its place."""
        place, last = group.rows.index(row), len(group.rows) - 1
        if place != last:
            mx.eval(self._written)  # else the row that was moved before would be held twice beside this one
            mx.eval([leaf.member(group).copy_last() for leaf in self._columns])
        written = [array for leaf in self._columns for array in leaf.member(group).leave(place)]
        self._written = written or self._written
        group.lengths.leave(place)
        group.rows[place] = group.rows[last]
        group.rows.pop()
        if not group.rows:
            for leaf in self._columns:
                leaf.close(group)
            self._groups.by_number = {n: g for n, g in self._groups.by_number.items() if g is not group}
        self._groups.changed()

    # ---- memory ----

    def _reserve(self, group: Group, num_rows: int, num_tokens: int) -> None:
        if num_rows > group.num_places:
            spare = (1 << (num_rows - 1).bit_length()) - num_rows
            affordable = self.spare_bytes // max(self._row_bytes(num_tokens), 1) if self._row_bytes(1) else 0
            group.num_places = num_rows + min(spare, affordable)
        group.num_columns = max(group.num_columns, allocated(num_tokens))
        moved = [array for leaf in self._columns for array in leaf.member(group).reserve(group.num_places, num_tokens)]
        if moved:
            mx.eval(moved)  # else the old arrays of the next group would be held beside these

    def _fit(self, spare_bytes: int, coming: Mapping[int, Sequence[int]]) -> None:
        """Hold no more than `spare_bytes` beyond what the rows take; `coming`: as in `_sizes`, per group."""
        if spare_bytes and self._unused(coming) <= spare_bytes:
            return
        for number, group in self._groups.by_number.items():
            num_rows, num_tokens = self._sizes(group, coming.get(number, ()))
            if num_rows < group.num_places or allocated(num_tokens) < group.num_columns:
                group.num_places = min(num_rows, group.num_places)
                group.num_columns = min(allocated(num_tokens), group.num_columns)
                for leaf in self._columns:
                    leaf.member(group).fit(num_rows, num_tokens)
        self._unused_steps = 0

    def _sizes(self, group: Group, coming: Sequence[int]) -> tuple[int, int]:
        """Return the number of the group's rows after others have joined, and the tokens of the longest after the step.

        `coming`: tokens of each joining row after the step.
        """
        return len(group.rows) + len(coming), self._longest(group, coming)


def kinds_by_class(caches: Sequence[Any]) -> list[CacheKind]:
    """Return the kinds of single caches; the general kind where several share a class."""
    return [kinds_of(leaf)[-1] for cache in caches for leaf in leaves(cache)]


def _leaves_of(caches: Sequence[Any] | None) -> list[Any] | None:
    return None if caches is None else [leaf for cache in caches for leaf in leaves(cache)]


class SingleBatch:
    """Batch of a model with an unbatchable KV cache: one row, in single caches, and no drafts."""

    spare_bytes = unused_bytes = 0
    num_groups = 1

    def __init__(self, make_caches: Callable[[], list[Any]]) -> None:
        self._make_caches = make_caches
        self.rows: list[Row] = []
        self.caches: list[Any] = []

    def set_rows(self, rows: Sequence[Row], counts: Mapping[Row, int] = _ONE_EACH) -> None:
        (row,) = rows
        if self.rows == [row]:
            return
        if row.caches is None:
            self.caches = self._make_caches()
        else:
            self.caches = row.caches if row.is_last else [fork(cache) for cache in row.caches]
        row.caches = None
        self.rows = [row]

    def prepare(self, counts: Mapping[Row, int] = _ONE_EACH) -> None:
        """Do nothing: single caches make room themselves."""

    def advance(self, taken: Mapping[Row, int] = _ONE_EACH) -> None:
        """Do nothing: single caches count for themselves."""

    def leaves_of(self, row: Row) -> Iterator[tuple[Any, int | None]]:
        """Yield every cache of every layer in order; each belongs to the row alone."""
        for cache in self.caches:
            for leaf in leaves(cache):
                yield leaf, None

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches if not cache.empty())
