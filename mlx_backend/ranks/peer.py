"""Peer: one other rank as seen from rank 0. A thread reads its messages and notices when it is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from mlx_backend.api.interface import RankStats
from mlx_backend.ranks import messages
from mlx_backend.ranks.channel import Channel, ChannelError
from mlx_backend.ranks.holdings import Held, read_held
from mlx_backend.ranks.patience import BEAT_S, Patience


class Peer:
    """`lose` is called once, on one of the peer's threads, with the reason of its loss; `counted` with each count."""

    def __init__(
        self,
        rank: int,
        channel: Channel,
        lose: Callable[[str], None],
        patience: Patience,
        counted: Callable[[int, int, Held], None],
    ) -> None:
        self.rank = rank
        self.said: dict[str, dict[str, Any]] = {}
        """The newest message of each kind."""
        self.num_sent = 0
        self.round_trip_s: float | None = None
        """Round trip in seconds of the last answered message."""
        self.gone = threading.Event()
        """Set once no more messages will come."""
        self._num_done = 0
        self._progress_at = time.monotonic()
        self._channel, self._lose, self._patience, self._counted = channel, lose, patience, counted
        self._is_closing = False
        for target in (self._read, self._watch):
            threading.Thread(target=target, name=f"rank {rank}", daemon=True).start()

    @property
    def is_busy(self) -> bool:
        """Whether it has uncompleted calls."""
        return self._num_done < self.num_sent

    @property
    def progress_age_s(self) -> float:
        """Seconds since it last completed a call."""
        return time.monotonic() - self._progress_at

    def stats(self, held: Held) -> RankStats:
        """Return a snapshot of a rank that holds this much."""
        return RankStats(
            rank=self.rank,
            kv_bytes=held.kv,
            active_bytes=held.active,
            peak_bytes=held.peak,
            round_trip_s=self.round_trip_s,
            progress_age_s=self.progress_age_s,
            is_busy=self.is_busy,
        )

    def send(self, payload: bytes, *, counts: bool = False) -> None:
        """Send a message; `counts`: it is a call to be completed. Raises ChannelError."""
        if counts:
            if not self.is_busy:
                self._progress_at = time.monotonic()
            self.num_sent += 1
        self._channel.send(payload)

    def closing(self) -> None:
        """Expect the peer to leave."""
        self._is_closing = True

    def close(self) -> None:
        self._is_closing = True
        self._channel.close()

    def _read(self) -> None:
        try:
            while True:
                message = messages.read(self._channel.receive())
                kind = message.get("say")
                if kind in ("failed", "leaves"):
                    self._lost(f"{kind}: {message.get('why')}")
                    return
                if kind == "echo":
                    self.round_trip_s = time.monotonic() - float(message["at"])
                if kind == "counted":
                    self._counted(self.rank, int(message["number"]), read_held(message["held"]))
                self.said[str(kind)] = message
                if message.get("done", 0) > self._num_done:
                    self._num_done, self._progress_at = message["done"], time.monotonic()
        except (ChannelError, ValueError, TypeError, KeyError) as error:
            self._lost(f"is lost: {error}")
        finally:
            self.gone.set()

    def _watch(self) -> None:
        while not self._is_closing:
            time.sleep(BEAT_S)
            try:
                self._channel.send(messages.write({"call": "beat", "at": time.monotonic()}))
            except ChannelError:
                return  # the reading thread reports it
            silent_s = time.monotonic() - self._channel.heard_at
            why = self._patience.loss(silent_s=silent_s, stalled_s=self.progress_age_s, is_busy=self.is_busy)
            if why is not None:
                self._lost(why)
                return

    def _lost(self, why: str) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._lose(f"rank {self.rank} {why}")
