"""RanksRunner: rank 0's runner, which repeats every call on the other ranks and on its own runner.

The others get a call before the own runner does: a forward pass waits for all ranks. Only `take` and `free`, which
concern each rank's own memory, come after. A call that fails ends the group: by then the others wait inside the same
computation, and MLX cannot interrupt them.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeVar

from mlx_backend.api.errors import EngineDead, ModelLoadError, SequenceFailed
from mlx_backend.api.interface import EngineConfig, LoadProgress, ModelInfo, RankStats
from mlx_backend.core.blocks import BlockStore
from mlx_backend.core.membership import Membership
from mlx_backend.core.step import Chunk, Draft, DraftRequest, PromptResult, ReadMasks, StepPlan, StepResult
from mlx_backend.planning.admission import Budget
from mlx_backend.planning.ranks_budget import RanksBudget
from mlx_backend.ranks import facts, messages
from mlx_backend.ranks.addresses import Tryout
from mlx_backend.ranks.channel import Channel, ChannelError
from mlx_backend.ranks.gathering import Gathering
from mlx_backend.ranks.holdings import Held, Holdings
from mlx_backend.ranks.pairing import Pairing
from mlx_backend.ranks.patience import Patience
from mlx_backend.ranks.peer import Peer
from mlx_backend.ranks.store import SharedStore
from mlx_backend.runners.base import Runner

_END_S = 3.0
"""Time for other ranks to end by themselves, so that they unwire their memory."""
_POLL_S = 0.05
Result = TypeVar("Result")


class RanksRunner:
    """`runners.base.Runner` over one runner in this process and one on each other rank.

    `build`: makes the own runner from its membership. `check`: raises ModelLoadError if the model cannot be split,
    before another process is started.
    """

    def __init__(
        self,
        config: EngineConfig,
        build: Callable[[Membership], Runner],
        *,
        check: Callable[[], None] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._check_split = check
        self._config, self._build, self._patience = config, build, patience or Patience()
        self._own: Runner | None = None
        self._blocks: SharedStore | None = None
        self._budget: Budget | None = None
        self._kv_share = Fraction(1)
        """Bytes of KV caches on the rank with the most, as a multiple of this one's."""
        self._pairing, self._holdings = Pairing(), Holdings()
        self._is_computing = False
        self._progress_at = time.monotonic()
        self._gathering = Gathering(config)
        self._others = self._gathering.processes
        self._peers: list[Peer] = []
        self._membership: Membership | None = None
        self._lost: str | None = None
        self._may_hang = False
        """Set once MLX connects: before that, anything that waits for a rank notices its loss by itself."""
        self._lock = threading.Lock()
        self._on_loss: Callable[[EngineDead], None] = lambda error: None
        self._load = LoadProgress()

    def on_loss(self, callback: Callable[[EngineDead], None]) -> None:
        """Set `callback`, called on another thread when a rank is lost. The device thread may hang then."""
        self._on_loss = callback

    @property
    def budget(self) -> Budget | None:
        """The budget that fits every rank."""
        return self._budget

    @property
    def blocks(self) -> BlockStore | None:
        return self._blocks

    # ---- loading ----

    def load(self, report: Callable[[LoadProgress], None]) -> ModelInfo:
        """Wait for the other ranks and load every share. Raises ModelLoadError."""
        if self._check_split is not None:
            self._check_split()
        try:
            self._own = self._meet(report)
        except ModelLoadError as error:
            self._send_all({"call": "refused", "why": str(error)})
            raise
        self._may_hang = True
        self._check(report)  # a rank that was lost meanwhile has reported nothing else
        self._send_all({"call": "load"})  # all ranks connect now: none waits long for another in MLX's own code
        info = self._own.load(lambda progress: self._report(report, progress))
        return self._agree(info, [said["facts"] for said in self._await("loaded", report)])

    def _meet(self, report: Callable[[LoadProgress], None]) -> Runner:
        """Wait until all ranks have joined and reach each other; return the own runner. Raises ModelLoadError."""
        self._membership = membership = self._gathering.gather(self._joined, lambda: self._check(report))
        self._peers.sort(key=lambda peer: peer.rank)
        self._holdings.size(1 + len(self._peers))
        with contextlib.closing(Tryout(membership)) as tryout:
            tryout.open()
            own = self._build(membership)
            self._await("ready", report)
            self._send_all({"call": "reach"})
            tryout.reach()
            self._await("reached", report)
        self._send_all({"call": "clear"})
        self._await("cleared", report)
        return own

    def _joined(self, rank: int, channel: Channel, begin: bytes) -> None:
        self._peers.append(Peer(rank, channel, self._lose, self._patience, self._counted))
        self._send(self._peers[-1], begin)

    def _report(self, report: Callable[[LoadProgress], None], progress: LoadProgress) -> None:
        self._load = progress
        report(progress)

    def _check(self, report: Callable[[LoadProgress], None]) -> None:
        """Give up loading if a rank is lost or the engine closes, in which case `report` raises."""
        if self._lost is not None:
            raise ModelLoadError(f"ranks: {self._lost}")
        report(self._load)

    def _await(self, kind: str, report: Callable[[LoadProgress], None]) -> list[dict[str, Any]]:
        """Return every other rank's message of this kind, once all have arrived."""
        while not all(kind in peer.said for peer in self._peers):
            self._check(report)
            time.sleep(_POLL_S)
        return [peer.said[kind] for peer in self._peers]

    def _agree(self, info: ModelInfo, others: list[dict[str, Any]]) -> ModelInfo:
        """Return the facts of all ranks. Raises ModelLoadError if they differ."""
        runner = self._runner
        own = facts.facts(info, runner.budget, runner.blocks)
        for peer, other in zip(self._peers, others, strict=True):
            wrong = facts.differences(own, other)
            if wrong:
                raise ModelLoadError(f"ranks: rank {peer.rank} found something else than rank 0: {'; '.join(wrong)}")
        every = [own, *others]
        budgets = [facts.read_budget(each["budget"]) for each in every if each["budget"] is not None]
        self._budget = RanksBudget(budgets) if budgets else None
        if own["token"]:
            self._kv_share = max(Fraction(each["token"], own["token"]) for each in every)
        if runner.blocks is not None:
            self._blocks = SharedStore(runner.blocks, [each["store"] for each in others], self._mirror)
        assert self._membership is not None, "known since the ranks have joined"
        return facts.shared_info(info, every, self._membership)

    # ---- the runner's calls ----

    def start(self, plan: StepPlan, read_masks: ReadMasks) -> None:
        self._mirror("start", plan=messages.mirrored(plan), collects=self._pairing.start(plan))
        self._compute(lambda: self._runner.start(plan, read_masks))

    def collect(self) -> StepResult:
        if self._pairing.collect():
            self._mirror("collect")
        return self._compute(self._runner.collect)

    def prefill(self, chunk: Chunk) -> PromptResult:
        self._mirror("prefill", chunk=chunk)
        return self._compute(lambda: self._runner.prefill(chunk))

    def draft(self, wanted: tuple[DraftRequest, ...]) -> tuple[Draft, ...]:
        """Draft nothing: a model of several ranks has no draft model."""
        return ()

    def idle(self) -> None:
        self._pairing.idle()
        self._mirror("idle")
        self._runner.idle()

    def kv_bytes(self) -> int:
        """Return the bytes of KV caches on the rank with the most, which counts beside the budget."""
        own = self._runner.kv_bytes()
        self._count(own)
        return math.ceil(own * self._kv_share)

    def device_bytes(self) -> tuple[int, int]:
        return self._runner.device_bytes()

    def rank_stats(self) -> tuple[RankStats, ...]:
        """Return a snapshot of every rank. Called on any thread."""
        with self._lock:
            held = self._holdings.newest()
        own = RankStats(
            rank=0,
            kv_bytes=held[0].kv,
            active_bytes=held[0].active,
            peak_bytes=held[0].peak,
            round_trip_s=None,
            progress_age_s=time.monotonic() - self._progress_at,
            is_busy=self._is_computing,
        )
        return (own, *(peer.stats(each) for peer, each in zip(self._peers, held[1:], strict=False)))

    def interrupt(self) -> None:
        """Interrupt waiting; if a rank is lost, end the others, since `close` may never be reached."""
        if self._lost is not None:
            self._others.end(_END_S)
        elif self._own is not None:
            self._own.interrupt()

    def close(self) -> None:
        """Make the other ranks leave, and release the model."""
        for peer in self._peers:
            peer.closing()
        if self._lost is None:
            for peer in self._peers:
                self._send(peer, messages.write({"call": "close"}))
        if self._own is not None and self._lost is None:
            self._own.close()
        self._others.end(_END_S if self._lost is None else 0.0)
        deadline = time.monotonic() + _END_S
        for peer in self._peers:
            if self._lost is None:  # closing a connection with unread bytes would take "close" back
                peer.gone.wait(max(0.0, deadline - time.monotonic()))
            peer.close()

    @property
    def _runner(self) -> Runner:
        assert self._own is not None, "loaded before"
        return self._own

    def _compute(self, call: Callable[[], Result]) -> Result:
        self._is_computing, self._progress_at = True, time.monotonic()
        try:
            found = call()
        except SequenceFailed as error:
            raise EngineDead(f"rank 0 failed, and the group with it: {error}") from error
        self._is_computing, self._progress_at = False, time.monotonic()
        return found

    def _count(self, kv: int) -> None:
        """Have every rank count its bytes, periodically."""
        now = time.monotonic()
        if not self._holdings.is_due(kv, now):
            return
        with self._lock:
            number = self._holdings.begin(Held(kv, *self._runner.device_bytes()), now)
        with contextlib.suppress(EngineDead):  # also called on a dead engine; other calls report that
            self._mirror("count", number=number)

    def _counted(self, rank: int, number: int, held: Held) -> None:
        with self._lock:
            self._holdings.answer(rank, number, held)

    # ---- the others ----

    def _mirror(self, name: str, **given: Any) -> None:
        """Make a call on every other rank. Raises EngineDead."""
        if self._lost is not None:
            raise EngineDead(self._lost)
        if name != "count":
            self._holdings.change()
        payload = messages.write({"call": name, **given})
        for peer in self._peers:
            self._send(peer, payload, counts=True)
        if self._lost is not None:
            raise EngineDead(self._lost)

    def _send_all(self, message: dict[str, Any]) -> None:
        for peer in self._peers:
            self._send(peer, messages.write(message))

    def _send(self, peer: Peer, payload: bytes, *, counts: bool = False) -> None:
        try:
            peer.send(payload, counts=counts)
        except ChannelError as error:
            self._lose(f"rank {peer.rank} is lost: {error}")

    def _lose(self, why: str) -> None:
        """End the group. Called on any thread."""
        with self._lock:
            if self._lost is not None:
                return
            self._lost = why
        for peer in self._peers:
            peer.close()
        if self._may_hang:
            self._on_loss(EngineDead(why))
