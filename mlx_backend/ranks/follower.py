"""Ranks other than 0: join, and make the calls of rank 0's runner until rank 0 ends the group.

In every case the process ends: threads notice EOF on the channel and failures, and a computation that waits for another
rank cannot be interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_backend.api.errors import EngineError, ModelLoadError
from mlx_backend.api.interface import EngineConfig, LoadProgress
from mlx_backend.core.membership import Membership
from mlx_backend.model.checkpoint import open_checkpoint
from mlx_backend.model.fingerprint import difference, fingerprints
from mlx_backend.ranks import messages
from mlx_backend.ranks.addresses import Tryout
from mlx_backend.ranks.channel import Channel, ChannelError
from mlx_backend.ranks.facts import facts
from mlx_backend.ranks.holdings import Held
from mlx_backend.ranks.patience import BEAT_S, Patience
from mlx_backend.ranks.seats import Refused
from mlx_backend.runners.base import Runner

FAILED = 70
"""Exit code if this rank's own computation, or loading, failed."""
LEADER_LOST = 75
"""Exit code if rank 0 is lost, or cannot be reached; this rank may be started again."""
REFUSED = 77
"""Exit code if rank 0 refuses this process, or this process the model: another key, version, place, or other files."""

logger = logging.getLogger("pippin.ranks")

Build = Callable[[EngineConfig, Membership], Runner]
Find = Callable[[str], Path]
"""Returns the folder of the model with rank 0's name. Raises ModelLoadError."""


class Follower:
    """One rank, over a channel after its greeting. `build` makes its runner. `end`: ends the process.

    `rank`: the one to become; None: the one that rank 0 assigns to this host.
    """

    def __init__(
        self,
        channel: Channel,
        rank: int | None,
        build: Build,
        patience: Patience | None = None,
        end: Callable[[int], None] | None = None,
        find: Find = Path,
    ) -> None:
        self._channel, self._rank, self._build = channel, rank, build
        self._patience, self._end, self._find = patience or Patience(), end or _end, find
        self._inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        self._num_done = 0
        self._progress_at = time.monotonic()
        self._is_busy = False
        self._is_leaving = False

    def run(self) -> int:
        """Serve until rank 0 ends the group; return the exit code."""
        self._channel.send(messages.write({"say": "hello", "rank": self._rank, "versions": messages.versions()}))
        for target in (self._read, self._watch):
            threading.Thread(target=target, name="rank 0", daemon=True).start()
        try:
            return self._serve()
        except Refused as error:
            logger.error("refused: %s", error)
            self._is_leaving = True
            return REFUSED
        except (EngineError, RuntimeError, ValueError, TypeError, KeyError, MemoryError, OSError) as error:
            why = str(error)[:2000].removeprefix("ranks: ") or type(error).__name__
            logger.error("%s failed: %s", self._name, why)
            self._give_up(why)
            return FAILED

    def leave(self, why: str) -> None:
        """End the process, and the group with it, on request of this machine. Called on any thread."""
        if not self._is_leaving:
            self._give_up(why, "leaves")
            logger.info("%s ends: %s", self._name, why)
            self._end(0)

    def _serve(self) -> int:
        runner = self._prepare(self._next("begin"))
        self._next("load")
        info = runner.load(_ignore)
        self._say({"say": "loaded", "facts": facts(info, runner.budget, runner.blocks)})
        while (message := self._inbox.get())["call"] != "close":
            self._is_busy, self._progress_at = True, time.monotonic()
            if message["call"] == "count":
                self._count(runner, message["number"])
            else:
                _make(runner, message)
            self._num_done += 1
            self._is_busy = False
        self._is_leaving = True
        runner.close()
        logger.info("%s leaves: rank 0 has ended the group", self._name)
        return 0

    def _count(self, runner: Runner, number: int) -> None:
        """Report the held memory after the same calls as on rank 0."""
        held = Held(runner.kv_bytes(), *runner.device_bytes())
        self._say({"say": "counted", "number": number, "held": held._asdict()})

    def _prepare(self, begin: dict[str, Any]) -> Runner:
        """Build the runner, and check that the ranks reach each other."""
        membership = messages.read_membership(begin["membership"])
        self._rank = membership.rank
        logger.info("joined as rank %d of %d", membership.rank, membership.count)
        config = messages.read_config(begin["config"])
        if config.backend != "mock":
            config = replace(config, model_path=str(self._same_model(begin["model"], begin["files"])))
        with contextlib.closing(Tryout(membership)) as tryout:
            tryout.open()
            runner = self._build(config, membership)
            self._say({"say": "ready"})
            self._next("reach")
            tryout.reach()
            self._say({"say": "reached"})
            self._next("clear")
        self._say({"say": "cleared"})
        return runner

    def _same_model(self, name: str, files: Mapping[str, str]) -> Path:
        """Return the folder of a model with the same files as rank 0's. Raises Refused."""
        try:
            folder = self._find(name)
            wrong = difference(fingerprints(open_checkpoint(folder)), files)
        except (ModelLoadError, OSError) as error:
            why = f"{error} (on rank {self._rank}'s machine; `pippin join --model` names another folder)"
        else:
            if wrong is None:
                return folder
            why = f"{folder / wrong} on rank {self._rank}'s machine; copy rank 0's model, or fetch both again"
        self._give_up(why)
        raise Refused(why)

    def _next(self, name: str) -> dict[str, Any]:
        message = self._inbox.get()
        if message["call"] == "refused":
            raise Refused(message.get("why"))
        if message["call"] != name:
            raise ValueError(f"{message['call']} came where {name} was due")
        return message

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(messages.write(message))
        except ChannelError:
            self._leave("is lost")

    def _give_up(self, why: str, kind: str = "failed") -> None:
        """Report why this rank ends. Rank 0 then ends the connection, which no longer counts as a loss."""
        self._is_leaving = True
        with contextlib.suppress(ChannelError):
            self._channel.send(messages.write({"say": kind, "why": why}))

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
            self._say({"say": "beat", "done": self._num_done})
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
            logger.error("%s ends: rank 0 %s", self._name, why)
            self._end(LEADER_LOST)

    @property
    def _name(self) -> str:
        return "this process" if self._rank is None else f"rank {self._rank}"


def _make(runner: Runner, message: dict[str, Any]) -> None:
    """Make one of rank 0's calls."""
    name = message.pop("call")
    if name == "start":
        runner.start(message["plan"], lambda newest: ())
        if message["collects"]:  # of the previous step: rank 0 does the same next
            runner.collect()
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
