"""Rows in groups: a layer's cache holds the rows of each group in separate arrays.

Linear layers run over all rows at once; only attention runs group by group, in the function with which
`attention.install` replaces mlx-lm's. The batch is in the order of its groups, so a group's hidden states are a slice.
A batch of one group passes the model exactly what that group's rows would, without an extra operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.kv_cache.grouping import RowBytes
from mlx_backend.kv_cache.rows import RowLengths, Rows


@dataclass(slots=True, eq=False)
class Group:
    """Rows [first, first + len(rows)) of the batch."""

    rows: list[Row] = field(default_factory=list)
    lengths: RowLengths = field(default_factory=RowLengths)
    first: int = 0
    num_places: int = 0
    num_columns: int = 0
    """Rows, and columns of each, for which its arrays have room."""

    def capacity_bytes(self, row_bytes: RowBytes) -> int:
        """Return the bytes of its arrays."""
        return self.num_places * row_bytes(self.num_columns)

    first_token: int = 0

    @property
    def num_tokens(self) -> int:
        """Rows of the model's arrays that belong to this group: one per row, or per token if each token is a row."""
        return len(self.rows) if self._unfolded is None else sum(self._unfolded)

    @property
    def _unfolded(self) -> list[int] | None:
        """Tokens of each row, if they come to the model as separate rows."""
        return None if self.lengths.is_wide else self.lengths.counts

    def flatten(self, array: mx.array) -> mx.array:
        """Return keys or values [rows, heads, tokens, dim] as [tokens of all rows, heads, 1, dim], without padding."""
        counts = self.lengths.counts
        if counts is None or not self.lengths.is_wide:
            return array
        num_rows, heads, most, dim = array.shape
        flat = array.swapaxes(1, 2).reshape(num_rows * most, heads, 1, dim)
        places = [row * most + place for row, count in enumerate(counts) for place in range(count)]
        return flat if len(places) == num_rows * most else flat[mx.array(places, dtype=mx.uint32)]

    def of(self, array: mx.array) -> mx.array:
        """Return the group's part of an array [tokens of the step, …]."""
        return array[self.first_token : self.first_token + self.num_tokens]

    def fold(self, tokens: mx.array) -> mx.array:
        """Return queries [tokens, heads, 1, dim] as [rows, heads, most tokens of a row, dim].

        Rows are padded with copies of their last token.
        """
        counts = self._unfolded
        if counts is None:
            return tokens
        most, first, places = max(counts), 0, list[int]()
        for count in counts:
            places += [first + min(place, count - 1) for place in range(most)]
            first += count
        _, heads, _, dim = tokens.shape
        folded = tokens if len(places) == first else tokens[mx.array(places, dtype=mx.uint32)]
        return folded.reshape(len(counts), most, heads, dim).swapaxes(1, 2)

    def unfold(self, rows: mx.array) -> mx.array:
        """Return folded rows as [tokens, heads, 1, dim]."""
        counts = self._unfolded
        if counts is None:
            return rows
        num_rows, heads, most, dim = rows.shape
        flat = rows.swapaxes(1, 2).reshape(num_rows * most, heads, 1, dim)
        if num_rows * most == sum(counts):
            return flat
        places = [row * most + place for row, count in enumerate(counts) for place in range(count)]
        return flat[mx.array(places, dtype=mx.uint32)]


class RowGroups:
    """The groups of a batch, by number; shared by the caches of all layers."""

    def __init__(self) -> None:
        self.by_number: dict[int, Group] = {}
        self._offset: int | mx.array | None = None

    @property
    def all(self) -> list[Group]:
        return list(self.by_number.values())

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.all for row in group.rows]

    @property
    def offset(self) -> int | mx.array:
        """Position of the step's tokens in batch order: an int if all are equal, else int32 [tokens]."""
        if self.is_drafted:
            if self._offset is None:
                positions = [position for group in self.all for position in group.lengths.positions]
                self._offset = mx.array(positions, dtype=mx.int32)
            return self._offset
        if len(self.by_number) == 1:
            return self.all[0].lengths.offset
        if self._offset is None:
            values = [length for group in self.all for length in group.lengths.values]
            self._offset = values[0] if min(values) == max(values) else mx.array(values, dtype=mx.int32)
        return self._offset

    @property
    def is_drafted(self) -> bool:
        """Whether rows have several tokens in this step, each of which is a row to the model."""
        return any(group.lengths.counts is not None and not group.lengths.is_wide for group in self.by_number.values())

    def changed(self) -> None:
        """Forget derived values after rows have come, gone, moved or grown."""
        self._offset = None
        first = first_token = 0
        for group in self.all:
            group.first, group.first_token = first, first_token
            first += len(group.rows)
            first_token += group.num_tokens


@dataclass(frozen=True, slots=True, eq=False)
class GroupedColumns:
    """Keys, or values, of several groups. Not an array: a model that computes with them itself fails at once."""

    parts: tuple[Any, ...]
    """The part of each group, as the model gets it from a batch: an array, or the form that attention takes instead."""
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GroupedMask:
    """The mask of each group, as its rows make it."""

    parts: tuple[mx.array | None, ...]
    """Bool [rows, 1, n, tokens], or an addend to the scores of latents, [rows, heads, n, tokens]; n: the most tokens
    that the step gives a row."""


class GroupedRows:
    """One layer's cache of keys and values: the rows of each group, of the kind of an empty single cache."""

    def __init__(
        self, template: Any, groups: RowGroups, build: Callable[[Any, RowLengths], Rows], *, hides_masks: bool = False
    ) -> None:
        """`build`: makes the rows of a group from the template and the group's lengths.

        `hides_masks`: the model computes with the mask, so attention adds those of groups itself, from `group_masks`.
        """
        self._template, self._groups, self._build, self._hides_masks = template, groups, build, hides_masks
        self.members: dict[Group, Rows] = {}

    # ---- called by the model, in a decode step ----

    @property
    def offset(self) -> int | mx.array:
        return self._groups.offset

    def make_mask(self, num_tokens: int, return_array: bool = False, window_size: int | None = None) -> Any:
        masks = tuple(self.members[g].make_mask(1, return_array, window_size) for g in self._groups.all)
        if len(masks) == 1 and not self._groups.is_drafted:
            return masks[0]
        return None if self._hides_masks or all(mask is None for mask in masks) else GroupedMask(masks)

    def group_masks(self) -> tuple[mx.array | None, ...]:
        """Return the mask of each group for the step's tokens."""
        return tuple(self.members[group].make_mask(1) for group in self._groups.all)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Write the step's tokens; return the columns in use. keys, values: [tokens, heads, 1, dim]."""
        groups = tuple(self._groups.all)
        if len(groups) == 1 and not self._groups.is_drafted:
            return self._write(groups[0], keys, values)
        pairs = [self._write(group, group.of(keys), group.of(values)) for group in groups]
        return (
            GroupedColumns(tuple(pair[0] for pair in pairs), groups),
            GroupedColumns(tuple(pair[1] for pair in pairs), groups),
        )

    def _write(self, group: Group, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        pair: tuple[Any, Any] = self.members[group].update_and_fetch(group.flatten(keys), group.flatten(values))
        return pair

    @property
    def keys(self) -> mx.array:
        """Stand-in for the array that an mlx-lm pipeline makes depend on the states that it has sent."""
        return mx.zeros(())

    @keys.setter
    def keys(self, value: mx.array) -> None:
        """Do nothing: a step's logits depend on the sent states, too, and are always computed."""

    # ---- called by the batch, between steps ----

    def member(self, group: Group) -> Rows:
        """Return the group's rows, built empty for a new group."""
        if group not in self.members:
            self.members[group] = self._build(self._template, group.lengths)
        return self.members[group]

    def close(self, group: Group) -> None:
        """Drop a group without rows."""
        self.members.pop(group, None)

    @property
    def nbytes(self) -> int:
        return sum(member.nbytes for member in self.members.values())
