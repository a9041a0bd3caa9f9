"""Shutdown of a serving process: outstanding work, admission of new work, signals, and the final minute.

The first SIGTERM or SIGINT begins the drain: admitted requests finish, new work is answered 503, reads and probes
continue. A second one ends the process at once, by the signal itself (a shell reports 143 or 130). If memory is wired,
the second one only ends the drain, so that it is unwired, and the third one ends the process. SIGHUP reloads. Uvicorn
would close its port first, raise caught signals again and cut slow requests: here signals and order are our own.
Independent of engines and models: the caller passes the function that cuts late work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from server.error_answers import answer_error
from server.error_bodies import ErrorBodies
from server.errors import RETRY_AFTER_S, APIError
from server.logs import flush_logs

logger = logging.getLogger("pippin.lifecycle")

CLOSE_S = 60.0
"""Time after the drain to write the prefix cache and to release memory; then the process ends itself."""
_CUT_S = 20.0
"""Time for cut requests to report to their clients: a device finishes its computation first."""
_FLUSH_S = 5
"""Most time for slow clients to read the rest of a complete answer."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class ShuttingDown(APIError):
    """The server drains: it finishes admitted work and accepts nothing new."""

    status = 503
    code = "server_shutting_down"

    def __init__(self) -> None:
        super().__init__("The server is shutting down and takes no new requests; try again in a moment.")

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"}


class Lifecycle:
    """State of the server: the number of requests in progress, and whether it accepts new ones.

    `watchers` are called on the event loop with True when work begins and with False when none is left.
    """

    def __init__(self) -> None:
        self.num_open = 0
        self.watchers: list[Callable[[bool], None]] = []
        self.signal_number: int | None = None
        """Signal that began the drain."""
        self._draining_since: float | None = None
        self._is_hurried = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def is_draining(self) -> bool:
        return self._draining_since is not None

    def begin_drain(self, signal_number: int | None = None) -> None:
        """Accept no new work from now on. May be called in a signal handler."""
        if self._draining_since is None:
            self.signal_number = signal_number
            self._draining_since = time.monotonic()

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Track one request. Raises ShuttingDown if the server drains."""
        if self.is_draining:
            raise ShuttingDown
        self.num_open += 1
        if self.num_open == 1:
            self._is_idle.clear()
            self._tell(True)
        try:
            yield
        finally:
            self.num_open -= 1
            if self.num_open == 0:
                self._is_idle.set()
                self._tell(False)

    @property
    def is_hurried(self) -> bool:
        return self._is_hurried.is_set()

    def hurry(self) -> None:
        """End the wait of `drained`. Call it on the event loop."""
        self._is_hurried.set()

    async def drained(self, within_s: float) -> bool:
        """Return whether all work ended within `within_s` of the start of the drain. Returns early when hurried."""
        began = time.monotonic() if self._draining_since is None else self._draining_since
        waits = [asyncio.ensure_future(event.wait()) for event in (self._is_idle, self._is_hurried)]
        timeout_s = max(0.0, began + within_s - time.monotonic())
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        return self.num_open == 0

    async def idle(self, within_s: float) -> bool:
        """Return whether there is no work, now or within `within_s` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), max(0.0, within_s))
        return self.num_open == 0

    def _tell(self, is_busy: bool) -> None:
        for watcher in self.watchers:
            try:
                watcher(is_busy)
            except Exception:  # a failing watcher must not fail the request
                logger.exception("a watcher of the server's work failed")


class Admission:
    """Wrapper of the application that counts requests other than reads, and refuses them while the server drains."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, error_bodies: ErrorBodies) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._error_bodies = error_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _SAFE:
            await self._app(scope, receive, send)
            return
        try:
            with self._lifecycle.work():
                await self._app(scope, receive, send)
        except ShuttingDown as error:  # raised only here, before an answer began
            await answer_error(self._error_bodies, scope, error)(scope, receive, send)


class DrainingServer(uvicorn.Server):
    """A server that finishes admitted work before it closes its port.

    `drain_s` is called when needed, as a reload may change it; `cut` fails late work; `has_wired`: whether memory must
    be unwired before the process may end.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        *,
        drain_s: Callable[[], float],
        cut: Callable[[], Coroutine[Any, Any, None]],
        has_wired: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_s = drain_s
        self._cut = cut
        self.has_wired = has_wired
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last_resort: threading.Timer | None = None
        self._cutting: asyncio.Task[None] | None = None

    def run(self, sockets: list[Any] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            if self._last_resort is not None:
                self._last_resort.cancel()

    def stop(self, signal_number: int | None = None) -> None:
        """Begin to drain, then end. May be called in a signal handler and from any thread."""
        self._lifecycle.begin_drain(signal_number)
        self.should_exit = True

    def hurry(self) -> None:
        """Fail unfinished work now. May be called in a signal handler."""
        self.call_soon(self._lifecycle.hurry)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call the callback on the event loop, if it runs. May be called in a signal handler."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to do
                self._loop.call_soon_threadsafe(callback)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: see `owned_signals`."""
        yield

    async def startup(self, sockets: list[Any] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Drain with the port open, so that new clients get an answer; then let uvicorn close the rest."""
        self._lifecycle.begin_drain()  # a dead engine sends no signal
        drain_s = self._drain_s()
        self._last_resort = _end_after(drain_s + CLOSE_S)
        await self._drain(drain_s)
        for connection in list(self.server_state.connections):
            connection.transport.close()  # written data is still sent; a half-sent request is dropped
        self.config.timeout_graceful_shutdown = _FLUSH_S
        await super().shutdown(sockets)

    async def _drain(self, drain_s: float) -> None:
        lifecycle = self._lifecycle
        if lifecycle.signal_number is not None:
            name = signal.Signals(lifecycle.signal_number).name
            logger.info("%s: finishing %d requests, for up to %g s", name, lifecycle.num_open, drain_s)
        if await lifecycle.drained(drain_s):
            return
        after = "a second signal" if lifecycle.is_hurried else f"{drain_s:g} s"
        logger.warning("%d requests are not finished after %s, and fail", lifecycle.num_open, after)
        self._cutting = asyncio.create_task(self._cut())
        if not await lifecycle.idle(_CUT_S):
            logger.error("%d requests did not end, and are given up", lifecycle.num_open)


@contextlib.contextmanager
def owned_signals(server: DrainingServer, reload: Callable[[], None]) -> Iterator[None]:
    """Drain `server` on SIGTERM and SIGINT, call `reload` on its loop on SIGHUP; restore the handlers afterwards."""
    num_stops = 0

    def stop(number: int, frame: Any) -> None:
        nonlocal num_stops
        num_stops += 1
        if num_stops > 1:
            server.hurry()
        if num_stops > 1 or not server.has_wired():  # macOS may not release wired memory if the process just ends
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_DFL)  # lets the next signal work whatever Python is doing
        server.stop(number)

    def hang_up(number: int, frame: Any) -> None:
        if has_terminal and not sys.__stderr__.isatty():  # type: ignore[union-attr]
            stop(number, frame)  # the terminal window was closed
        else:
            server.call_soon(reload)

    has_terminal = sys.__stderr__ is not None and sys.__stderr__.isatty()
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: hang_up}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_after(seconds: float) -> threading.Timer:
    """End the process after `seconds`, unless cancelled: a stop that hangs would only be killed later."""
    timer = threading.Timer(seconds, _end_by_force, (seconds,))
    timer.daemon = True
    timer.start()
    return timer


def _end_by_force(seconds: float) -> None:
    logger.critical("the server did not end within %g s; it is ended by force, and wired memory may be lost", seconds)
    flush_logs()
    os._exit(1)
