"""What a rank other than 0 does: the calls of rank 0's runner, one after the other, until it is told to leave.

However it ends, the process ends: EOF on the channel and a failure are noticed by threads, and a computation that
waits for another rank cannot be called back.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from mlx_backend.api.errors import EngineError
from mlx_backend.api.interface import EngineConfig, LoadProgress
from mlx_backend.core.membership import Membership
from mlx_backend.ranks import messages
from mlx_backend.ranks.channel import Channel, ChannelError
from mlx_backend.ranks.facts import facts
from mlx_backend.ranks.patience import BEAT_S, Patience
from mlx_backend.runners.base import Runner

FAILED = 70
"""Exit code where this rank's own computation, or loading, failed."""
LEADER_LOST = 75
"""Exit code where rank 0 is lost: it may be started again."""

logger = logging.getLogger("pippin.ranks")

Build = Callable[[EngineConfig, Membership], Runner]


class Follower:
    """One rank, over a channel that has been greeted. `build` makes its runner. `end`: ends the process."""

    def __init__(
        self,
        channel: Channel,
        rank: int,
        build: Build,
        patience: Patience | None = None,
        end: Callable[[int], None] | None = None,
    ) -> None:
        self._channel, self._rank, self._build = channel, rank, build
        self._patience, self._end = patience or Patience(), end or _end
        self._inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        self._num_done = 0
        self._progress_at = time.monotonic()
        self._is_busy = False
        self._is_leaving = False
        self._held: dict[str, int] = {}
        """Bytes that it held when it was last noted."""
        self._is_noting = False

    def run(self) -> int:
        """Serve until told to leave; the exit code."""
        self._channel.send(messages.write({"say": "hello", "rank": self._rank, "versions": messages.versions()}))
        for target in (self._read, self._watch):
            threading.Thread(target=target, name="rank 0", daemon=True).start()
        try:
            return self._serve()
        except (EngineError, RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
            logger.error("rank %d failed: %s", self._rank, error)
            self._say({"say": "failed", "why": str(error)[:2000] or type(error).__name__})
            self._is_leaving = True
            return FAILED

    def _serve(self) -> int:
        begin = self._next("begin")
        config = messages.read_config(begin["config"])
        runner = self._build(config, Membership(self._rank, tuple(begin["addresses"]), config.ranks.parallel))
        self._say({"say": "ready"})
        self._next("load")
        info = runner.load(_ignore)
        self._say({"say": "loaded", "facts": facts(info, runner.budget, runner.blocks)})
        self._note(runner)
        while (message := self._inbox.get())["call"] != "close":
            if message["call"] == "note":
                self._note(runner)
                continue
            self._is_busy, self._progress_at = True, time.monotonic()
            _make(runner, message)
            self._num_done += 1
            self._is_busy = False
        self._is_leaving = True
        runner.close()
        return 0

    def _note(self, runner: Runner) -> None:
        """Note what is held, on the thread that computes; the next beat says it."""
        self._is_noting = False
        active, peak = runner.device_bytes()
        self._held = {"kv": runner.kv_bytes(), "active": active, "peak": peak}

    def _next(self, name: str) -> dict[str, Any]:
        message = self._inbox.get()
        if message["call"] != name:
            raise ValueError(f"{message['call']} came where {name} was due")
        return message

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(messages.write(message))
        except ChannelError:
            self._leave("is lost")

    def _read(self) -> None:
        try:
            while True:
                message = messages.read(self._channel.receive())
                if message["call"] == "beat":
                    self._say({"say": "echo", "at": message.get("at")})
                else:
                    self._inbox.put(message)
        except (ChannelError, ValueError, KeyError) as error:
            self._leave(f"is lost: {error}")

    def _watch(self) -> None:
        while not self._is_leaving:
            time.sleep(BEAT_S)
            self._say({"say": "beat", "done": self._num_done, "held": self._held})
            if self._held and not self._is_noting:
                self._is_noting = True
                self._inbox.put({"call": "note"})
            now = time.monotonic()
            is_busy = self._is_busy
            stalled_s = now - self._progress_at
            why = self._patience.loss(
                silent_s=now - self._channel.heard_at, stalled_s=stalled_s if is_busy else 0.0, is_busy=is_busy
            )
            if why is not None:
                self._leave(why)

    def _leave(self, why: str) -> None:
        if not self._is_leaving:
            self._is_leaving = True
            logger.error("rank %d ends: rank 0 %s", self._rank, why)
            self._end(LEADER_LOST)


def _make(runner: Runner, message: dict[str, Any]) -> None:
    """Make one call of rank 0's."""
    name = message.pop("call")
    if name == "start":
        runner.start(message["plan"], lambda newest: ())
    elif name == "take":
        assert runner.blocks is not None, "rank 0 has found the caches alike"
        refs = runner.blocks.take(message["source"], message["spans"])
        if tuple(ref.id for ref in refs) != message["ids"]:
            raise ValueError("blocks have other numbers than on rank 0")
    elif name == "free":
        assert runner.blocks is not None, "rank 0 has found the caches alike"
        runner.blocks.free(message["block"])
    elif name in ("collect", "prefill", "idle"):
        getattr(runner, name)(*message.values())
    else:
        raise ValueError(f"an unknown call, {name!r}")


def _ignore(progress: LoadProgress) -> None:
    pass


def _end(code: int) -> None:
    """End the process now: another thread may wait in a computation that never ends."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)
