"""The state of one prompt being prefilled and of one sequence being decoded: counters and a status.

No MLX. The device thread owns every object here; other threads may read the counters.
"""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mlx_backend.api.interface import (
    DraftedTokens,
    FinishReason,
    GenerationRequest,
    GrammarState,
    PromptEvent,
    TokenLogprobs,
)
from mlx_backend.core.step import Chunk, NewRow, PromptId, Restore, SequenceId


class Status(enum.Enum):
    """PENDING: waits for its prompt or for a row. RUNNING: decodes. ENDED: finished, aborted or failed."""

    PENDING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """One prompt, computed once for the n sequences that continue it.

    All tokens but the last are prefilled. The last is every sequence's first decode input, so that sampling has one
    place: the batched decode step. For an embedding, all tokens are prefilled. For a sequence that lost its row, the
    prompt includes the outputs it has had, which are computed again.
    """

    request: GenerationRequest
    id: PromptId
    output_ids: tuple[int, ...] = ()
    """Outputs that are computed with the prompt: empty, except for a sequence that lost its row."""
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    sequences: list[TokenSequence] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Log-probabilities of the prompt's tokens from the second on, as far as computed; empty if not requested."""
    embedding: bytes | None = None
    """The prompt's vector, once computed, if requested."""
    queued_at: float = field(default_factory=time.monotonic)
    queue_time_s: float | None = None
    """Seconds until its first admission; None while it waits."""
    num_preemptions: int = 0
    """Times that it, or the group it was split from, had to leave so that others could continue."""
    is_aged: bool = False
    """It was admitted before requests of a more urgent class because it had waited for long."""
    prompt_s: float = 0.0
    """Seconds that its chunks have taken."""
    num_lost_tokens: int = 0
    """Tokens at its beginning that were computed or restored before, and lost."""

    def admit(self) -> None:
        """Record the admission by the scheduler."""
        if self.queue_time_s is None:
            self.queue_time_s = time.monotonic() - self.queued_at

    def lose(self) -> None:
        """Reset the computed part after it was lost; the group waits again."""
        self.num_lost_tokens = max(self.num_lost_tokens, self.num_computed_tokens)
        self.num_computed_tokens = 0
        self.logprobs = []

    def num_new_tokens(self, chunk: Chunk) -> int:
        """Return how many of a chunk's tokens were never computed or restored before."""
        return max(0, chunk.stop - max(chunk.start, self.num_lost_tokens))

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + len(self.output_ids)

    @property
    def max_num_tokens(self) -> int:
        """Most tokens of prompt and output."""
        return self.num_prompt_tokens + self.request.max_tokens

    @property
    def num_remaining_tokens(self) -> int:
        num_decoded = 0 if self.request.embeds else 1
        return self.num_tokens - num_decoded - self.num_computed_tokens

    def token_ids(self, start: int, stop: int) -> tuple[int, ...]:
        """Return the tokens to compute, from position `start` on and before `stop`."""
        if stop <= self.num_prompt_tokens:
            return self.request.prompt_ids[start:stop]
        return (self.request.prompt_ids + self.output_ids)[start:stop]

    def chunk(self, start: int, stop: int, restore: Restore | None = None) -> Chunk:
        """Return the prompt's tokens [start, stop), for a runner."""
        following = self.token_ids(stop, stop + 1)
        return Chunk(
            prompt=self.id,
            start=start,
            token_ids=self.token_ids(start, stop),
            num_prompt_tokens=self.num_tokens,
            next_id=following[0] if following else None,
            num_top_logprobs=self.num_top_logprobs,
            embeds=self.request.embeds,
            restore=restore,
            adapter=self.request.adapter,
        )

    @property
    def num_top_logprobs(self) -> int | None:
        """Number of likely tokens to rank beside each of the prompt's; None: none, or all have been reported."""
        return None if all(s.knows_prompt for s in self.sequences) else self.request.num_prompt_logprobs

    @property
    def is_wanted(self) -> bool:
        """Whether a sequence still needs this prompt's KV cache."""
        return any(sequence.status is Status.PENDING for sequence in self.sequences)


@dataclass(slots=True, eq=False)
class TokenSequence:
    """One token stream. `index` is its place in the client's stream."""

    group: SequenceGroup
    id: SequenceId
    index: int
    ordinal: int
    """Its number among the n continuations of its prompt."""
    output_ids: list[int] = field(default_factory=list)
    num_started_tokens: int = 0
    """Outputs with a started step: one more than `output_ids` while a step is in flight."""
    status: Status = Status.PENDING
    key: int | None = None
    """64 random bits from which all its draws derive, once it has begun to decode."""
    has_row: bool = False
    """Whether the runner has a row for it."""
    grammar_state: GrammarState | None = None
    num_accepted: int = 0
    """Outputs that `grammar_state` has accepted."""
    drafted: DraftedTokens = field(default_factory=DraftedTokens)
    knows_prompt: bool = False
    """Whether its prompt has been computed, and its PromptEvent, if requested, was sent."""

    @property
    def request(self) -> GenerationRequest:
        return self.group.request

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the KV cache once every started step is done."""
        return self.group.num_prompt_tokens - 1 + self.num_started_tokens

    @property
    def max_num_tokens(self) -> int:
        return self.group.max_num_tokens

    def close_grammar(self) -> None:
        """Release its state in its grammar when it ends or starts again."""
        if self.grammar_state is not None:
            self.grammar_state.close()
            self.grammar_state = None

    @property
    def can_decode(self) -> bool:
        return self.status is Status.RUNNING and self.num_started_tokens < self.request.max_tokens

    def row(self, key: int) -> NewRow:
        """Return the description of the sequence that a runner needs when it begins to decode."""
        request = self.request
        return NewRow(
            id=self.id,
            prompt=self.group.id,
            ordinal=self.ordinal,
            prompt_ids=request.prompt_ids,
            output_ids=tuple(self.output_ids),
            max_num_tokens=self.max_num_tokens,
            sampling=request.sampling,
            key=key,
            stop_ids=request.stop_ids,
            min_tokens=request.min_tokens,
            mock=request.mock,
            adapter=request.adapter,
        )


_ids = itertools.count(1)


def next_id() -> int:
    """Return an id that no prompt and no sequence of this process has had. Safe in any thread."""
    return next(_ids)


def build_groups(requests: Iterable[GenerationRequest]) -> tuple[SequenceGroup, ...]:
    """Return a group for each request, with its n sequences, which are numbered throughout."""
    groups = []
    index = 0
    for request in requests:
        group = SequenceGroup(request, next_id())
        for ordinal in range(request.n):
            group.sequences.append(TokenSequence(group, next_id(), index, ordinal))
            index += 1
        groups.append(group)
    return tuple(groups)


def tell_prompt(group: SequenceGroup) -> Iterator[tuple[TokenSequence, PromptEvent]]:
    """Yield a computed prompt's event for each sequence, once; nothing if it was not requested."""
    if group.num_remaining_tokens > 0:
        return
    request, logprobs = group.request, tuple(group.logprobs)
    reason: FinishReason | None = None if request.max_tokens else "length"
    group.logprobs = []
    for sequence in group.sequences:
        is_told, sequence.knows_prompt = sequence.knows_prompt, True
        if sequence.status is Status.ENDED or is_told:
            continue
        if reason is not None or request.num_prompt_logprobs is not None:
            yield sequence, PromptEvent(sequence.index, logprobs, reason, group.embedding)
