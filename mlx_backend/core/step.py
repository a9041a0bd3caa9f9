"""The data that crosses between the engine and a runner: frozen, keyed by ids.

A plan can be written down, sent to another process or replayed: it depends on no clock, no chance and no live object.
The ids of prompts and sequences are unique while the engine lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlx_backend.api.interface import MockText, SamplingParams, TokenLogprobs

PromptId = int
SequenceId = int
BlockId = int


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A block of KV cache that the runner holds: `nbytes` bytes."""

    id: BlockId
    nbytes: int


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, stop) of a sequence. `with_state`: also the state after them of caches that cannot be cut."""

    start: int
    stop: int
    with_state: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, stop) of a block that begins at `block_start`; all are positions in the sequence."""

    block: BlockId
    block_start: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Blocks restored instead of computing a chunk. `with_state`: the last one's state completes the prompt's."""

    pieces: tuple[Piece, ...]
    with_state: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens of one prompt, from position `start` on, to be computed or restored into the prompt's KV cache."""

    prompt: PromptId
    start: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    """Tokens that the prompt's KV cache may come to hold before a sequence continues it."""
    next_id: int | None = None
    """The token that follows the chunk; None at the prompt's end."""
    num_top_logprobs: int | None = None
    """Likely tokens to rank beside each of the prompt's; None: no log-probabilities."""
    embeds: bool = False
    """Whether to return the prompt's vector, with its last chunk."""
    restore: Restore | None = None
    adapter: str = ""
    """The adapter that it is computed with; empty: none."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """A sequence that begins to decode: everything that a runner needs until it ends.

    It continues the KV cache of `prompt`, which holds all of its tokens but the last.
    """

    id: SequenceId
    prompt: PromptId
    ordinal: int
    """Its place among the n continuations of its prompt."""
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...] = ()
    """Outputs that it already has, if it is computed again."""
    max_num_tokens: int
    """Most tokens of prompt and output."""
    sampling: SamplingParams
    key: int
    """64 random bits from which all its draws derive."""
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    mock: MockText | None = None
    adapter: str = ""
    """The adapter that it decodes with; empty: none."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may follow a row's newest one, verified in the same step and kept as far as they are drawn."""

    id: SequenceId
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRequest:
    """Tokens of a row that the draft model prefills, and how many more it is to draft behind them.

    It holds the row's first `start` tokens, prompt and output; what it held beyond them is dropped.
    """

    id: SequenceId
    start: int
    token_ids: tuple[int, ...]
    """The row's tokens from position `start` on, one at least; up to its newest one where any is drafted."""
    num_drafts: int = 0

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One step of the engine: rows that leave, join and decode, then the chunks of prompts, one after the other."""

    ended: tuple[SequenceId, ...] = ()
    """Sequences with rows that leave."""
    new_rows: tuple[NewRow, ...] = ()
    decodes: tuple[SequenceId, ...] = ()
    """Every row that decodes: new ones, and all others that have not ended."""
    masked: tuple[SequenceId, ...] = ()
    """Rows of `decodes` with a grammar that restricts the drawn token."""
    dropped: tuple[PromptId, ...] = ()
    """Prompts with a KV cache that no sequence continues once the new rows have joined."""
    chunks: tuple[Chunk, ...] = ()
    spare_bytes: int = 0
    """Bytes that the rows' KV caches may hold beyond what the rows take: places for new rows."""
    drafts: tuple[Draft, ...] = ()
    """Drafts for some of `decodes`, each with at least one token. The step before one with drafts must be collected."""

    @property
    def changes(self) -> bool:
        """Whether a runner has anything to do for this plan before its chunks."""
        return bool(self.decodes or self.ended or self.dropped)


@dataclass(frozen=True, slots=True)
class RowTokens:
    """The tokens that a step gave one row, at least one, in order; `logprobs` of each, or none at all."""

    id: SequenceId
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """The tokens of a step's rows."""

    rows: tuple[RowTokens, ...]


@dataclass(frozen=True, slots=True)
class PromptResult:
    """A chunk's result beside its KV cache: log-probabilities of the tokens after each of its own, and a vector."""

    logprobs: tuple[TokenLogprobs, ...] = ()
    embedding: bytes | None = None
    """Little-endian float32, with the prompt's last chunk, if requested."""


Newest = tuple[tuple[SequenceId, int | None], ...]
"""Rows and the token that the previous step drew for each; None if there was no such step."""
MaskBits = tuple[tuple[SequenceId, int, bytes], ...]
"""Rows, the number of the token in the step, and one bit for each token of the vocabulary that may be drawn there.

The bits are in little-endian words of 32. A token of a row that is not listed is unrestricted.
"""
ReadMasks = Callable[[Newest], MaskBits]
