"""GrammarCompiler: turns a grammar's source into a process that follows it, within limits of time and memory.

Each grammar is first compiled with a small limit, several at once; one that needs more is compiled again behind the
others of its kind. So a cheap grammar never waits for an expensive one. Belongs to the event loop; imports no
llguidance and is independent of requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from server.grammars import wire
from server.grammars.limits import Limits
from server.grammars.process import Grammar, GrammarProcess, describe_death
from server.grammars.spawn import HostFailed, HostGone, HostProcess
from server.grammars.wire import Kind, Vocabulary
from server.text.grammar import GrammarError, GrammarSource, explain
from server.text.reasoning import Reasoning
from server.text.tokenizer import Tokenizer

logger = logging.getLogger("pippin.grammars")

COMPILE_S = 5.0
MEMORY_BYTES = 1 << 30
LEAST_MEMORY_BYTES = 96 << 20
_LEAST_QUICK_BYTES = 8 << 20
_QUICK_S = 0.05
_QUICK_AT_ONCE = 4
_QUICK_WAIT_S = 2.0
"""Quick attempts still running after this time are retried with the large limit. If a memory limit meets a bug of the
compiler, the process may deadlock and use no processor time.
"""
_MOST_QUICK, _MOST_THOROUGH = 64, 16
"""Most attempts running and waiting, of each kind; further ones are refused for now."""
_STEP_S = 0.1
"""Processor time of one step of one sequence. Other sequences wait for it."""
_SLACK = 12
"""Most wall time of a compilation on a busy machine, as a multiple of its processor time."""
_MOST_KEPT = 64
"""Most compiled grammars kept for later; those in use may exceed it."""
_MOST_REFUSED = 256
_LONG_CHARS = 20_000
"""A longer source is prepared on another thread, so that streams on the event loop do not wait."""

OUTCOMES = ("compiled", "cached", "refused", "limit", "abandoned", "failed")
"""Outcomes of a compilation. `limit`: of time, memory or stack; `abandoned`: the client disconnected first."""


class GrammarsBusy(Exception):
    """The grammar cannot be compiled now, for lack of memory or of a slot; a later attempt may succeed."""


@dataclass(frozen=True, slots=True)
class GrammarBudget:
    """Seconds of processor time for one grammar; bytes for all of a model's, at least LEAST_MEMORY_BYTES."""

    compile_s: float = COMPILE_S
    memory_bytes: int = MEMORY_BYTES

    @property
    def process_bytes(self) -> int:
        """Bytes for one grammar."""
        return self.memory_bytes // 3

    @property
    def quick(self) -> Limits:
        """Limits of the first attempt, of which `_QUICK_AT_ONCE` may run at once."""
        compile_bytes = max(self.memory_bytes // (8 * _QUICK_AT_ONCE), _LEAST_QUICK_BYTES)
        return Limits(min(_QUICK_S, self.compile_s), _STEP_S, compile_bytes, self.process_bytes)

    @property
    def thorough(self) -> Limits:
        """Limits of the second attempt, of which one may run at a time."""
        return Limits(self.compile_s, _STEP_S, self.process_bytes, self.process_bytes)

    @property
    def kept_bytes(self) -> int:
        """Bytes for compiled grammars: the remainder after running attempts."""
        return self.memory_bytes - self.process_bytes - _QUICK_AT_ONCE * self.quick.compile_bytes


@dataclass(slots=True)
class GrammarStats:
    """Counters of one model's grammars."""

    num_processes: int = 0
    num_bytes: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    """Compilations by outcome; a cache hit counts as `cached`."""


class _Work:
    """A compilation with waiting requests. When the last of them leaves, it is cancelled."""

    def __init__(self, task: asyncio.Task[GrammarProcess]) -> None:
        self.task = task
        self.num_waiting = 0

    def end(self) -> None:
        """Cancel the compilation, or release its process, after the last waiting request has left."""
        if not self.task.done():
            self.task.cancel()
        elif not self.task.cancelled() and self.task.exception() is None:
            self.task.result().num_users -= 1


class _LimitReached(Exception):
    """An attempt has reached a limit: `time`, `memory` or `stack`."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class _NotLetRun(HostFailed):
    """An attempt exceeded its wall time without using up its processor time."""


class _Lane:
    """Compilations of one kind, with limits on those running and those waiting; one tenant may have half of them."""

    def __init__(self, num_at_once: int, most: int) -> None:
        self._places = asyncio.Semaphore(num_at_once)
        self._most = most
        self.num_waiting = 0
        """Includes those running."""
        self._by_tenant = Counter[str]()

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """Hold a slot. Raises GrammarsBusy."""
        is_full = self.num_waiting >= self._most or (bool(tenant) and self._by_tenant[tenant] >= self._most // 2)
        if is_full:
            raise GrammarsBusy("Too many grammars are being compiled; please try again later.")
        self.num_waiting += 1
        self._by_tenant[tenant] += 1
        try:
            async with self._places:
                yield
        finally:
            self.num_waiting -= 1
            self._by_tenant[tenant] -= 1
            self._by_tenant += Counter()  # drop tenants with none


class GrammarCompiler:
    """The grammars of one tokenizer: those being compiled, and the compiled ones in use or kept for later."""

    def __init__(self, tokenizer: Tokenizer, budget: GrammarBudget | None = None) -> None:
        self._tokenizer = tokenizer
        self._budget = budget or GrammarBudget()
        self._host = HostProcess(self._read_vocabulary)
        self._kept: OrderedDict[bytes, GrammarProcess] = OrderedDict()
        self._working: dict[bytes, _Work] = {}
        self._refused: OrderedDict[bytes, str] = OrderedDict()
        self._quick = _Lane(_QUICK_AT_ONCE, _MOST_QUICK)
        self._thorough = _Lane(1, _MOST_THOROUGH)
        self._outcomes = dict.fromkeys(OUTCOMES, 0)

    def warm_up(self) -> None:
        """Start the host, so that the first grammar does not wait for it. Thread-safe. Raises nothing."""
        try:
            self._host.start()
        except HostFailed as error:
            logger.warning("grammars cannot be compiled for now: %s", error)

    async def compile(self, source: GrammarSource, reasoning: Reasoning | None = None, tenant: str = "") -> Grammar:
        """Return the compiled grammar; the caller must `release` it. Cancelling ends the compilation.

        `tenant`: limited to half of the slots, so that other tenants can compile. Raises GrammarError and GrammarsBusy.
        """
        is_led = reasoning is not None
        if len(source.text) > _LONG_CHARS:
            encoded = await asyncio.to_thread(_encode, source, is_led)
        else:
            encoded = _encode(source, is_led)
        return Grammar(await self._find(encoded, tenant), reasoning)

    def stats(self) -> GrammarStats:
        """Return a snapshot of the counters."""
        alive = [process for process in self._kept.values() if process.is_alive]
        return GrammarStats(len(alive), sum(process.num_bytes for process in alive), dict(self._outcomes))

    def close(self) -> None:
        """End every process. Thread-safe; call once nothing is being generated."""
        for process in list(self._kept.values()):
            process.close()
        self._host.close()

    async def _find(self, source: bytes, tenant: str) -> GrammarProcess:
        """Return the process of a grammar, with its user count incremented."""
        key = hashlib.sha256(source).digest()
        process = self._kept.get(key)
        if process is not None and process.is_alive:
            self._kept.move_to_end(key)
            self._outcomes["cached"] += 1
            process.num_users += 1
            return process
        if key in self._refused:
            self._refused.move_to_end(key)
            self._outcomes["cached"] += 1
            raise GrammarError(self._refused[key])
        return await self._join(key, source, tenant)

    async def _join(self, key: bytes, source: bytes, tenant: str) -> GrammarProcess:
        """Wait for the compilation of a grammar, which the first waiting request starts."""
        work = self._working.get(key)
        if work is None:
            work = self._working[key] = _Work(asyncio.create_task(self._build(key, source, tenant)))
        work.num_waiting += 1
        try:
            process = await asyncio.shield(work.task)
            process.num_users += 1
            return process
        finally:
            work.num_waiting -= 1
            if work.num_waiting == 0:
                if self._working.get(key) is work:
                    del self._working[key]
                work.end()

    async def _build(self, key: bytes, source: bytes, tenant: str) -> GrammarProcess:
        """Compile and keep; the process has a user, so that it is not ended before the waiting requests have it."""
        try:
            process = await self._compile(source, tenant)
        except GrammarError as error:
            self._outcomes["refused"] += 1
            self._refuse(key, str(error))
            raise
        except _LimitReached as error:
            self._outcomes["limit"] += 1
            why = self._explain_limit(error.limit)
            self._refuse(key, why)
            raise GrammarError(why) from None
        except asyncio.CancelledError:
            self._outcomes["abandoned"] += 1
            raise
        except HostFailed as error:
            self._outcomes["failed"] += 1
            logger.error("a grammar was not compiled: %s", error)
            raise GrammarsBusy("Grammars cannot be compiled at the moment; please try again.") from error
        self._outcomes["compiled"] += 1
        self._keep(key, process)
        process.num_users += 1
        return process

    async def _compile(self, source: bytes, tenant: str) -> GrammarProcess:
        """Compile within the small limit, or within the large one if that is reached."""
        async with self._quick.place(tenant):
            try:
                return await self._attempt(source, self._budget.quick, _QUICK_WAIT_S)
            except _LimitReached as error:
                if error.limit == "stack":  # the same for both limits
                    raise
            except _NotLetRun:
                pass
        async with self._thorough.place(tenant):
            return await self._attempt(source, self._budget.thorough, 30 + _SLACK * self._budget.compile_s)

    async def _attempt(self, source: bytes, limits: Limits, most_s: float) -> GrammarProcess:
        """Compile in a new process, and once more if the host has died. Raises as `_attempt_once`."""
        try:
            return await self._attempt_once(source, limits, most_s)
        except HostGone:
            return await self._attempt_once(source, limits, most_s)

    async def _attempt_once(self, source: bytes, limits: Limits, most_s: float) -> GrammarProcess:
        """Compile in a new process. Raises GrammarError, _LimitReached and HostFailed."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.BUFFER_BYTES)
                await self._host.fork(limits, theirs)
            ours.setblocking(False)
            async with asyncio.timeout(most_s):
                await asyncio.get_running_loop().sock_sendall(ours, wire.frame(Kind.SOURCE, source))
                kind, body = await _receive(ours)
            return _compiled(ours, kind, body)
        except BaseException as error:
            ours.close()  # the host kills the process at the other end
            if isinstance(error, TimeoutError):
                raise _NotLetRun("a grammar's process was not let run") from error
            if isinstance(error, wire.Closed | OSError):
                raise HostGone(f"a grammar's process has gone ({type(error).__name__})") from error
            raise

    def _keep(self, key: bytes, process: GrammarProcess) -> None:
        """Keep a compiled grammar. Raises GrammarsBusy if the grammars in use leave no room."""
        for old in [old for old, each in self._kept.items() if not each.is_alive]:
            del self._kept[old]
        room = self._budget.kept_bytes - process.num_bytes
        for old, each in list(self._kept.items()):  # least recently used first
            if self._held_bytes <= room and len(self._kept) < _MOST_KEPT:
                break
            if each.num_users == 0:
                self._kept.pop(old).end()
        if self._held_bytes > max(room, 0):
            process.close()
            raise GrammarsBusy("The grammars of the requests in progress need all the memory there is for grammars.")
        self._kept[key] = process

    @property
    def _held_bytes(self) -> int:
        return sum(process.num_bytes for process in self._kept.values())

    def _refuse(self, key: bytes, why: str) -> None:
        self._refused[key] = why
        while len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)

    def _explain_limit(self, limit: str) -> str:
        if limit == "time":
            return f"compiling it takes more than {self._budget.compile_s:g} s of processor time (grammars.compile_s)"
        if limit == "memory":
            mb = self._budget.process_bytes / 1e6
            return f"compiling it takes more than {mb:.0f} MB of memory (a third of grammars.memory_gb)"
        return "its rules refer to one another too deeply, or are nested too deeply"

    def _read_vocabulary(self) -> Vocabulary:
        tokenizer = self._tokenizer
        tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        return Vocabulary(tokens, sorted(tokenizer.eos_ids), sorted(tokenizer.special_ids | tokenizer.eos_ids))


def _encode(source: GrammarSource, is_led: bool) -> bytes:
    """Return the source packed for the wire. Raises GrammarError."""
    try:
        return wire.pack_source(source.to_lark(is_led=is_led))
    except UnicodeEncodeError:
        raise GrammarError("it is not valid Unicode") from None


async def _receive(sock: socket.socket) -> tuple[Kind, bytes]:
    """Return the next frame of a non-blocking socket. Raises wire.Closed and OSError."""
    length, kind = wire.read_header(await _receive_exactly(sock, wire.HEADER_BYTES))
    return kind, await _receive_exactly(sock, length)


async def _receive_exactly(sock: socket.socket, num_bytes: int) -> bytes:
    loop, found = asyncio.get_running_loop(), b""
    while len(found) < num_bytes:
        piece = await loop.sock_recv(sock, num_bytes - len(found))
        if not piece:
            raise wire.Closed
        found += piece
    return found


def _compiled(sock: socket.socket, kind: Kind, body: bytes) -> GrammarProcess:
    """Return the process of a successful attempt. Raises GrammarError, _LimitReached and HostFailed."""
    if kind is Kind.COMPILED:
        used_bytes, _ = wire.unpack_compiled(body)
        return GrammarProcess(sock, used_bytes)
    if kind is Kind.REFUSED:
        raise GrammarError(explain(body.decode("utf-8", "replace")))
    death = wire.unpack_died(body)
    limit = describe_death(death)
    if limit is None:
        raise HostFailed(f"a grammar's process could not be started, or ended (wait status {death.status})")
    raise _LimitReached(limit)
