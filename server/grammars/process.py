"""Server side of a grammar process: a compiled grammar, and the state of each sequence in it.

Implements `interface.Grammar` for the device thread, which owns a process once it is compiled. Imports no llguidance
and is independent of requests.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import weakref
from collections.abc import Sequence

from mlx_backend.api.errors import GrammarFailed, GrammarLost
from server.grammars import wire
from server.grammars.limits import OUT_OF_MEMORY
from server.grammars.wire import Ask, Death, Kind, Mask
from server.text.reasoning import Reasoning, ReasoningState

_ANSWER_S = 10.0
"""A process silent for this long has been stopped from outside: its own limits are much shorter."""


class GrammarProcess:
    """One compiled grammar. Masks are requested and read on the device thread; `end` is thread-safe."""

    def __init__(self, sock: socket.socket, used_bytes: int) -> None:
        """`sock`: blocking from now on."""
        sock.settimeout(_ANSWER_S)
        self._sock = sock
        self._close = weakref.finalize(self, sock.close)
        self._used_bytes = used_bytes
        self._ids = itertools.count()
        self._asks: list[Ask] = []
        self._masks: dict[int, Mask] = {}
        self._failure: GrammarFailed | None = None
        self.num_users = 0
        """Requests that hold it. Counted on the event loop."""

    @property
    def num_bytes(self) -> int:
        """Memory of the process that it shares with no other."""
        return self._used_bytes

    @property
    def is_alive(self) -> bool:
        return self._failure is None

    def new_id(self) -> int:
        """Return an id for a new sequence."""
        return next(self._ids)

    def ask(self, state_id: int, token_ids: Sequence[int], draft_ids: Sequence[int]) -> None:
        """Request the next mask of a sequence, after the tokens written since its last request.

        Also requests the mask after each token of a draft.
        """
        self._asks.append(Ask(state_id, token_ids, draft_ids))

    def send(self) -> None:
        """Send the pending requests, those of all sequences in one frame."""
        if self._asks:
            asks, self._asks = self._asks, []
            self._send(wire.frame(Kind.ASK, wire.pack_asks(asks)))

    def answer(self, state_id: int) -> Mask:
        """Return the requested mask, waiting for it if necessary. Raises GrammarFailed."""
        self.send()
        while state_id not in self._masks:
            if self._failure is not None:
                raise self._failure
            self._read()
        mask = self._masks.pop(state_id)
        if mask.failure is not None:
            raise GrammarFailed(f"the grammar cannot be followed any further: {mask.failure}")
        return mask

    def drop(self, state_id: int) -> None:
        """Discard a sequence that has ended."""
        self._masks.pop(state_id, None)
        self._send(wire.frame(Kind.DROP, wire.pack_drop(state_id)))

    def end(self) -> None:
        """End the process. The device thread may be reading: the descriptor stays open as long as this object."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the process; the device thread no longer reads."""
        self._close()

    def _send(self, frame: bytes) -> None:
        if self._failure is None:
            with contextlib.suppress(OSError):  # the reason shows when the answer is read
                self._sock.sendall(frame)

    def _read(self) -> None:
        try:
            kind, body = wire.receive(self._sock)
        except TimeoutError:
            self._failure = GrammarLost(f"the grammar's process did not answer within {_ANSWER_S:g} s")
            self.end()
        except (wire.Closed, OSError):
            self._failure = GrammarLost("the grammar's process has ended")
        else:
            self._take(kind, body)

    def _take(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.ANSWER:
            self._used_bytes, masks = wire.unpack_answer(body)
            self._masks.update((mask.state_id, mask) for mask in masks)
        elif kind is Kind.DIED:
            self._failure = _failure_of(wire.unpack_died(body))


def describe_death(death: Death) -> str | None:
    """Return the limit that a process reached, for its client; None if it died of something else."""
    status = death.status
    if status is None:
        return None
    if os.WIFEXITED(status):
        return "memory" if os.WEXITSTATUS(status) == OUT_OF_MEMORY else None
    return {
        signal.SIGPROF: "time",
        signal.SIGABRT: "memory",  # Rust, on a failed allocation
        signal.SIGSEGV: "stack",
        signal.SIGBUS: "stack",  # macOS, at the guard page
    }.get(signal.Signals(os.WTERMSIG(status)))


def _failure_of(death: Death) -> GrammarFailed:
    limit = describe_death(death)
    if limit is None:
        return GrammarLost("the grammar's process has ended")
    return GrammarFailed(f"the grammar cannot be followed any further: a step needs more {limit} than it may have")


class Grammar:
    """A compiled grammar, which may begin after reasoning. Implements `interface.Grammar`.

    Without a `process`, what follows the reasoning is unconstrained.
    """

    def __init__(self, process: GrammarProcess | None, reasoning: Reasoning | None) -> None:
        self._process, self._reasoning = process, reasoning

    def start(self) -> GrammarState:
        return GrammarState(self._process, self._reasoning)

    def release(self) -> None:
        """Release the grammar at a request's end; its process may then be ended. Called once, on the event loop."""
        if self._process is not None:
            self._process.num_users -= 1


class GrammarState:
    """State of one sequence in its grammar. Implements `interface.GrammarState`."""

    def __init__(self, process: GrammarProcess | None, reasoning: Reasoning | None) -> None:
        self._process = process
        self._id = -1 if process is None else process.new_id()
        self._reasoning = None if reasoning is None else ReasoningState(reasoning, is_strict=process is not None)
        self._unsent: list[int] = []
        self._is_asked = False
        self._behind: tuple[bytes, ...] = ()

    @property
    def num_free_tokens(self) -> int:
        return 0 if self._process is not None or self._reasoning is None else self._reasoning.num_free_tokens

    def accept(self, token_id: int) -> None:
        if self._reasoning is not None and self._reasoning.accept(token_id):
            return
        if self._process is not None:
            self._unsent.append(token_id)

    @property
    def takes_drafts(self) -> bool:
        return self._process is not None and (self._reasoning is None or self._reasoning.is_over)

    def ask(self, draft_ids: Sequence[int] = ()) -> None:
        if self._process is not None and not self._is_asked and not self._is_in_reasoning:
            self._process.ask(self._id, self._unsent, draft_ids if self.takes_drafts else ())
            self._unsent, self._is_asked = [], True

    def send(self) -> None:
        if self._process is not None:
            self._process.send()

    def allowed(self) -> bytes | None:
        reasoning = self._reasoning
        forced = None if reasoning is None else reasoning.forced_id
        if self._process is None or self._is_in_reasoning:
            return None if forced is None else _bit(forced)
        self.ask()
        self._is_asked = False
        mask = self._process.answer(self._id)
        bits, self._behind = mask.bits, mask.behind
        if reasoning is None:
            return bits
        if forced is not None and _has(bits, forced):
            return _bit(forced)
        reasoning.release()
        return bits if reasoning.first_id is None else _with(bits, reasoning.first_id)

    def allowed_behind(self) -> tuple[bytes, ...]:
        behind, self._behind = self._behind, ()
        return behind

    def close(self) -> None:
        if self._process is not None:
            self._process.drop(self._id)

    @property
    def _is_in_reasoning(self) -> bool:
        return self._reasoning is not None and self._reasoning.is_within


def _bit(token_id: int) -> bytes:
    return _with(bytes(4 * (token_id // 32 + 1)), token_id)


def _has(bits: bytes, token_id: int) -> bool:
    place, bit = divmod(token_id, 8)
    return bool(bits[place] >> bit & 1)


def _with(bits: bytes, token_id: int) -> bytes:
    place, bit = divmod(token_id, 8)
    return bits[:place] + bytes([bits[place] | 1 << bit]) + bits[place + 1 :]
