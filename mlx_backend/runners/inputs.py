"""Inputs of a decode step: each row's newest token, which may not be on the host yet."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_backend.core.row import Row


def newest_tokens(rows: Sequence[Row], previous: Sequence[Row], drawn: mx.array | None) -> mx.array:
    """Return the token of each row, [rows], uint32: from the step before if the row was in it, else from the host.

    `drawn`: the tokens of the rows of the step before, `previous`, which may not be computed yet; None: there was none.
    """
    if rows == previous and drawn is not None:
        return drawn
    places = {row: place for place, row in enumerate(previous)} if drawn is not None else {}
    joined = [row for row in rows if row not in places]
    places |= {row: len(previous) + place for place, row in enumerate(joined)}
    known = mx.array([row.last_token for row in joined], dtype=mx.uint32)
    tokens = known if drawn is None else mx.concatenate([drawn.astype(mx.uint32), known])
    base = len(previous) if drawn is None else 0
    return tokens[mx.array([places[row] - base for row in rows], dtype=mx.int32)]
