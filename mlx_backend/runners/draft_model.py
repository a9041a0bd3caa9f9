"""DraftModel: a smaller model that drafts for the rows of a batch, over KV caches of its own.

Each request states what to prefill and how much to draft; the draft model stores no token. A row's prompt is prefilled
in chunks, into single caches, until the row drafts for the first time: then it joins the batch, in which all rows that
draft are computed together, a step for each token. Rejected tokens lie past a row's length when it continues, and are
overwritten.

A token is drawn with the row's own sampling parameters and with the random key that the target model has at that place.
So both draw the same wherever their probabilities are alike, with a temperature, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlx_backend.core.row import Row
from mlx_backend.core.step import Draft, DraftRequest, NewRow, SequenceId
from mlx_backend.kv_cache.batch import RowBatch
from mlx_backend.sampling.sampler import BatchSampler

MOST_PASS_TOKENS = 16
"""Most tokens of a row that one pass over the batch takes; a row goes back by fewer."""


@dataclass(slots=True, eq=False)
class DraftRow(Row):
    """A row as the draft model holds it."""

    num_held: int = 0
    """Number of tokens, prompt and output, in its KV cache."""

    @property
    def num_computed_tokens(self) -> int:
        return self.num_held


class DraftModel:
    """The draft model. `vocab_size`: that of the target model; its logits may be padded differently."""

    def __init__(
        self,
        model: Any,
        make_caches: Callable[[], list[Any]],
        make_batch: Callable[[], RowBatch],
        vocab_size: int,
    ) -> None:
        self._model, self._make_caches, self._make_batch, self._vocab_size = model, make_caches, make_batch, vocab_size
        self.reset()

    def reset(self) -> None:
        """Drop everything held of any row."""
        self._batch = self._make_batch()
        self._rows: dict[SequenceId, DraftRow] = {}
        self._sampler, self._sampled_rows = BatchSampler(), list[Row]()

    def leave(self, ids: Collection[SequenceId]) -> None:
        """Drop everything held of these rows."""
        gone = {self._rows.pop(each) for each in ids if each in self._rows}
        staying = [row for row in self._batch.rows if row not in gone]
        if not staying:
            self._batch = self._make_batch()
        elif len(staying) < len(self._batch.rows):
            self._batch.set_rows(staying)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the KV caches."""
        single = (cache for row in self._rows.values() for cache in row.caches or ())
        return int(self._batch.nbytes) + sum(int(cache.nbytes) for cache in single if not cache.empty())

    def draft(self, wanted: Sequence[DraftRequest], rows: Mapping[SequenceId, Row]) -> tuple[Draft, ...]:
        """Implement `runners.base.Runner.draft`; `rows`: those that decode, by id. Raises what MLX raises."""
        found = {each: row for each in wanted if (row := self._find(each, rows)) is not None}
        drafting = {row: each for each, row in found.items() if each.num_drafts}
        for each, row in found.items():
            own = each.token_ids[:-MOST_PASS_TOKENS] if each.num_drafts else each.token_ids
            if own:
                self._prefill(row, own)
        drafts = self._draft(drafting) if drafting else {}
        return tuple(Draft(row.id, drafts.get(row, ())) for row in found.values())

    def _find(self, wanted: DraftRequest, rows: Mapping[SequenceId, Row]) -> DraftRow | None:
        """Return the row of a request, trimmed to where the request begins; None if it is not held that far."""
        source, held = rows.get(wanted.id), self._rows.get(wanted.id)
        if held is not None and (source is None or wanted.start == 0 or not self._can_go_on(held, wanted.start)):
            self.leave([wanted.id])
            held = None
        if source is None or (held is None and wanted.start):
            return None
        if held is None:
            held = self._rows[wanted.id] = DraftRow(_for_drafts(source.new), 0, self._make_caches())
        if held.num_held > wanted.start:
            back = {row: 0 for row in self._batch.rows} | {held: wanted.start - held.num_held}
            self._batch.advance(back)
            held.num_held = wanted.start
        return held

    def _can_go_on(self, row: DraftRow, start: int) -> bool:
        is_single = row.caches is not None
        return row.num_held == start if is_single else 0 <= row.num_held - start < MOST_PASS_TOKENS

    # ---- prefill ----

    def _prefill(self, row: DraftRow, token_ids: Sequence[int]) -> None:
        """Compute tokens into a row's cache. Only the cache is evaluated."""
        if row.caches is not None:
            self._model(mx.array(token_ids)[None], cache=row.caches)
            mx.eval([cache.state for cache in row.caches])
            row.num_held += len(token_ids)
            return
        for first in range(0, len(token_ids), MOST_PASS_TOKENS):
            mx.eval(self._pass({row: token_ids[first : first + MOST_PASS_TOKENS]}))

    def _pass(self, tokens: Mapping[Row, Sequence[int]]) -> mx.array:
        """Compute some tokens of rows of the batch. Return the logits after each row's last, in the batch's order."""
        self._batch.prepare({row: len(tokens.get(row, _NOTHING)) for row in self._batch.rows})
        rows = self._batch.rows
        given = [tokens.get(row, _NOTHING) for row in rows]
        inputs = mx.array([token for each in given for token in each], dtype=mx.uint32)
        logits = self._model(inputs[:, None], cache=self._batch.caches)[:, -1]
        self._advance({row: len(tokens.get(row, ())) for row in rows})
        lasts, end = list[int](), 0
        for each in given:
            end += len(each)
            lasts.append(end - 1)
        return logits if len(lasts) == end else logits[mx.array(lasts, dtype=mx.uint32)]

    def _advance(self, taken: Mapping[Row, int]) -> None:
        """Count the tokens of a pass; a row that took none keeps its length; its next token is written there."""
        self._batch.advance(taken)
        for row, num_tokens in taken.items():
            assert isinstance(row, DraftRow)
            row.num_held += num_tokens

    # ---- drafting ----

    def _draft(self, wanted: Mapping[DraftRow, DraftRequest]) -> dict[DraftRow, tuple[int, ...]]:
        """Draft for rows, all in the same steps. All drafts are read together at the end."""
        for row in wanted:
            if row.caches is not None:  # one at a time: its place in the batch is made beside what it holds already
                if not row.num_held:
                    row.caches = None
                self._batch.set_rows([*self._batch.rows, row])
        for row, each in wanted.items():
            row.num_started_tokens = each.stop - len(row.prompt_ids)
        logits = self._pass({row: each.token_ids[-MOST_PASS_TOKENS:] for row, each in wanted.items()})
        drawn = list[tuple[list[Row], mx.array]]()
        most = max(each.num_drafts for each in wanted.values())
        for place in range(most):
            rows = self._batch.rows
            tokens = self._draw(rows, logits)
            drawn.append((rows, tokens))
            if place + 1 < most:
                logits = self._step(rows, tokens, {row for row, each in wanted.items() if place + 1 < each.num_drafts})
        mx.eval([tokens for _, tokens in drawn])
        found: dict[DraftRow, list[int]] = {row: [] for row in wanted}
        for rows, tokens in drawn:
            places = {row: place for place, row in enumerate(rows)}
            read = tokens.tolist()
            for row, own in found.items():
                own.append(read[places[row]])
        return {row: tuple(own[: wanted[row].num_drafts]) for row, own in found.items()}

    def _draw(self, rows: Sequence[Row], logits: mx.array) -> mx.array:
        """Draw a token for each row as the target model draws there."""
        if rows != self._sampled_rows:
            self._sampler, self._sampled_rows = BatchSampler(), list(rows)
            self._sampler.set_rows(rows, self._vocab_size)
        tokens = self._sampler.draw(_fitted(logits, self._vocab_size)).tokens
        mx.async_eval(tokens)
        return tokens

    def _step(self, before: Sequence[Row], drawn: mx.array, going_on: Collection[Row]) -> mx.array:
        """Compute the tokens that were `drawn` for the rows `before`; those that do not continue do not keep theirs."""
        for row in before:
            row.num_started_tokens += 1
        self._batch.prepare()
        rows = self._batch.rows
        if rows != before:
            drawn = drawn[mx.array([before.index(row) for row in rows], dtype=mx.uint32)]
        logits: mx.array = self._model(drawn[:, None], cache=self._batch.caches)[:, -1]
        self._advance({row: int(row in going_on) for row in rows})
        return logits


_NOTHING = (0,)
"""Token of a row that takes none: each row has one in every pass."""


def _for_drafts(new: NewRow) -> NewRow:
    """Return the row without what depends on earlier tokens, and without log-probabilities."""
    sampling = replace(
        new.sampling,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        dry_multiplier=0.0,
        bad_words=(),
        num_logprobs=None,
    )
    return replace(new, sampling=sampling)


def _fitted(logits: mx.array, vocab_size: int) -> mx.array:
    """Return logits as wide as the target model's: its random numbers depend on their number."""
    width = logits.shape[-1]
    if width >= vocab_size:
        return logits[:, :vocab_size]
    return mx.pad(logits, ((0, 0), (0, vocab_size - width)), constant_values=-float("inf"))
