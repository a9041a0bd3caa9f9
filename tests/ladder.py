"""A grammar for engine tests: each token is one of two above the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.tiny_models import VOCAB_SIZE

STEP = 7
END = 3


@dataclass
class Ladder:
    """Implements Grammar: a token is one of two above the one before; after `length` of them only END may follow."""

    length: int
    first_free: int = 0
    """This many initial tokens are unconstrained."""
    tells: bool = False
    """Whether its states report them in advance."""
    num_asked: int = 0

    def start(self) -> LadderState:
        return LadderState(self)

    def holds(self, output: list[int]) -> bool:
        state = self.start()
        for token_id in output:
            bits = state.allowed()
            if bits is not None and not bits[token_id // 8] >> token_id % 8 & 1:
                return False
            state.accept(token_id)
        return True


@dataclass
class LadderState:
    ladder: Ladder
    accepted: list[int] = field(default_factory=list)
    draft: tuple[int, ...] = ()

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    @property
    def num_free_tokens(self) -> int:
        return max(self.ladder.first_free - len(self.accepted), 0) if self.ladder.tells else 0

    @property
    def takes_drafts(self) -> bool:
        return self.num_free_tokens == 0

    def ask(self, draft_ids: Sequence[int] = ()) -> None:
        self.draft = tuple(draft_ids)

    def allowed_behind(self) -> tuple[bytes, ...]:
        ahead, found = LadderState(self.ladder, list(self.accepted)), []
        for token_id in self.draft:
            ahead.accept(token_id)
            found.append(ahead.allowed() or b"\xff" * ((VOCAB_SIZE + 31) // 32 * 4))
        return tuple(found)

    def send(self) -> None:
        """Do nothing: there is no process."""

    def close(self) -> None:
        """Do nothing: no resource is held."""

    def allowed(self) -> bytes | None:
        self.ladder.num_asked += 1
        if len(self.accepted) < self.ladder.first_free:
            return None
        last = self.accepted[-1] if self.accepted else 0
        may = [END] if len(self.accepted) >= self.ladder.length else [(last + i * STEP) % VOCAB_SIZE for i in (1, 2)]
        return sum(1 << token_id for token_id in set(may)).to_bytes((VOCAB_SIZE + 31) // 32 * 4, "little")
