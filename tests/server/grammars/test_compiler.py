"""GrammarCompiler: what is compiled once, what is refused, who waits for whom, and what ends whose process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mlx_backend.api.errors import GrammarFailed, GrammarLost
from server.grammars import compiler as compiler_module
from server.grammars.compiler import LEAST_MEMORY_BYTES, GrammarBudget, GrammarCompiler, GrammarsBusy
from server.grammars.process import Grammar
from server.text.grammar import GrammarError, GrammarSource
from server.text.tokenizer import ByteTokenizer
from tests.engine_client import until

EXPENSIVE = "start: T\nT: " + " & ".join(f"/(.*[a-z]{{{length}}}.*)/" for length in range(10, 34))
"""Takes more time and memory than any limit."""
DIGITS = GrammarSource("regex", "[0-9]{4}")


def lark(text: str, number: int = 0) -> GrammarSource:
    return GrammarSource("lark", f"{text}\n// {number}")


def choice(*texts: str) -> GrammarSource:
    return GrammarSource.of_choices(texts)


def first_of(grammar: Grammar) -> set[int]:
    """The tokens with which an answer may begin."""
    return bits_of(grammar.start().allowed())


def bits_of(bits: bytes | None) -> set[int]:
    assert bits is not None
    return {token_id for token_id in range(8 * len(bits)) if bits[token_id // 8] >> token_id % 8 & 1}


@asynccontextmanager
async def compiling(compile_s: float = 5.0, memory_bytes: int = 1 << 30) -> AsyncIterator[GrammarCompiler]:
    compiler = GrammarCompiler(ByteTokenizer(), GrammarBudget(compile_s, memory_bytes))
    try:
        yield compiler
    finally:
        compiler.close()


def processes(compiler: GrammarCompiler) -> set[int]:
    """Ids of the grammar processes, which the host has forked."""
    host = compiler._host._pid
    return {int(each) for each in Path(f"/proc/{host}/task/{host}/children").read_text().split()}


# --- compiled once


async def test_a_grammar_is_compiled_once_and_whoever_asks_meanwhile_waits_for_it() -> None:
    async with compiling() as compiler:
        grammars = await asyncio.gather(*(compiler.compile(DIGITS) for _ in range(20)))
        grammars.append(await compiler.compile(DIGITS))
        assert all(first_of(grammar) == set(b"0123456789") for grammar in grammars)
        outcomes = compiler.stats().outcomes
        assert (outcomes["compiled"], outcomes["cached"]) == (1, 1)


async def test_a_refusal_is_remembered() -> None:
    async with compiling(compile_s=0.2) as compiler:
        for _ in range(3):
            with pytest.raises(GrammarError, match="processor time"):
                await compiler.compile(lark(EXPENSIVE))
        assert compiler.stats().outcomes["limit"] == 1


# --- limits


async def test_time() -> None:
    async with compiling(compile_s=0.2) as compiler:
        with pytest.raises(GrammarError, match=r"more than 0\.2 s of processor time \(grammars.compile_s\)"):
            await compiler.compile(lark(EXPENSIVE))


async def test_memory() -> None:
    async with compiling(compile_s=60, memory_bytes=192 << 20) as compiler:
        with pytest.raises(GrammarError, match="more than 67 MB of memory"):
            await compiler.compile(lark(EXPENSIVE))


async def test_stack() -> None:
    deep = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(10_000)) + '\nr10000: "a"'
    async with compiling() as compiler:
        with pytest.raises(GrammarError, match="refer to one another too deeply"):
            await compiler.compile(GrammarSource("lark", deep, is_ours=True))


async def test_a_failure_of_the_compiler_itself_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It panics over its own message, which it cuts within a character; with little memory it then waits for itself."""
    monkeypatch.setattr(compiler_module, "_QUICK_WAIT_S", 0.2)
    async with compiling() as compiler:
        with pytest.raises(GrammarError) as refused:
            await compiler.compile(GrammarSource.of_schema({"type": "object", "required": "é" * 300}))
        assert "panic" not in str(refused.value) and "backtrace" not in str(refused.value)
        assert first_of(await compiler.compile(DIGITS)) == set(b"0123456789")


async def test_no_limit_ends_what_serves_the_others() -> None:
    async with compiling(compile_s=0.2) as compiler:
        digits = await compiler.compile(DIGITS)
        for source in (EXPENSIVE, "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(5000)) + '\nr5000: "a"'):
            with pytest.raises(GrammarError):
                await compiler.compile(lark(source))
        assert first_of(digits) == set(b"0123456789")
        assert first_of(await compiler.compile(choice("b", "c"))) == set(b"bc")


# --- who waits for whom


async def test_a_cheap_grammar_does_not_wait_for_expensive_ones() -> None:
    async with compiling(compile_s=60) as compiler:
        expensive = [asyncio.create_task(compiler.compile(lark(EXPENSIVE, number))) for number in range(8)]
        await until(lambda: compiler._thorough.num_waiting == 8)
        for number in range(5):
            assert first_of(await compiler.compile(choice(f"a{number}"))) == {ord("a")}
        assert not any(task.done() for task in expensive)
        for task in expensive:
            task.cancel()
        await asyncio.gather(*expensive, return_exceptions=True)


async def test_expensive_grammars_beyond_so_many_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.grammars.compiler._MOST_THOROUGH", 2)
    async with compiling(compile_s=60) as compiler:
        expensive = [asyncio.create_task(compiler.compile(lark(EXPENSIVE, number))) for number in range(2)]
        await until(lambda: compiler._thorough.num_waiting == 2)
        with pytest.raises(GrammarsBusy, match="being compiled"):
            await compiler.compile(lark(EXPENSIVE, 3))
        for task in expensive:
            task.cancel()
        await asyncio.gather(*expensive, return_exceptions=True)


async def test_one_tenant_takes_no_more_than_half_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.grammars.compiler._MOST_THOROUGH", 4)
    async with compiling(compile_s=60) as compiler:
        crowd = [asyncio.create_task(compiler.compile(lark(EXPENSIVE, n), tenant="alice")) for n in range(2)]
        await until(lambda: compiler._thorough.num_waiting == 2)
        with pytest.raises(GrammarsBusy):
            await compiler.compile(lark(EXPENSIVE, 9), tenant="alice")
        other = asyncio.create_task(compiler.compile(lark(EXPENSIVE, 10), tenant="bob"))
        await until(lambda: compiler._thorough.num_waiting == 3)
        for task in (*crowd, other):
            task.cancel()
        await asyncio.gather(*crowd, other, return_exceptions=True)


async def test_what_is_just_compiled_is_not_ended_before_those_who_wait_have_it() -> None:
    async with compiling(memory_bytes=LEAST_MEMORY_BYTES) as compiler:
        for start in range(0, 60, 6):
            grammars = await asyncio.gather(*(compiler.compile(choice(f"a{start + n}")) for n in range(6)))
            assert all(first_of(grammar) == {ord("a")} for grammar in grammars)
            for grammar in grammars:
                grammar.release()
        assert all(process.num_users == 0 for process in compiler._kept.values())


async def test_who_leaves_ends_the_compilation_and_its_process() -> None:
    async with compiling(compile_s=60) as compiler:
        asked = [asyncio.create_task(compiler.compile(lark(EXPENSIVE))) for _ in range(2)]
        await until(lambda: compiler._thorough.num_waiting == 1 and bool(processes(compiler)))
        asked[0].cancel()
        await asyncio.wait({asked[0]})
        await asyncio.sleep(0)
        assert compiler._thorough.num_waiting == 1, "another waits for it"
        asked[1].cancel()
        await until(lambda: not processes(compiler))
        assert compiler.stats().outcomes["abandoned"] == 1
        assert compiler._thorough.num_waiting == 0


# --- room


async def test_the_oldest_that_nobody_uses_makes_room() -> None:
    async with compiling(memory_bytes=LEAST_MEMORY_BYTES) as compiler:
        used = await compiler.compile(choice("used"))
        for number in range(30):
            (await compiler.compile(choice(f"a{number}"))).release()
        stats = compiler.stats()
        assert 1 < stats.num_processes < 30
        assert stats.num_bytes <= compiler._budget.kept_bytes
        await until(lambda: len(processes(compiler)) == stats.num_processes)
        assert first_of(used) == {ord("u")}
        await compiler.compile(choice("used"))
        assert compiler.stats().outcomes["cached"] == 1


async def test_grammars_in_use_leave_no_room_for_others_and_are_not_ended() -> None:
    async with compiling(memory_bytes=LEAST_MEMORY_BYTES) as compiler:
        used = []
        with pytest.raises(GrammarsBusy, match="in progress"):
            for number in range(30):
                used.append(await compiler.compile(choice(f"a{number}")))
        assert all(first_of(grammar) == {ord("a")} for grammar in used)
        for grammar in used:
            grammar.release()
        assert first_of(await compiler.compile(choice("b"))) == {ord("b")}


# --- processes that go


async def test_a_process_that_is_killed_fails_its_own_sequences_and_is_replaced() -> None:
    async with compiling() as compiler:
        digits = await compiler.compile(DIGITS)
        (pid,) = processes(compiler)
        other, state = await compiler.compile(choice("b")), digits.start()
        assert state.allowed() is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(GrammarLost):
            state.allowed()
        with pytest.raises(GrammarLost):
            digits.start().allowed()
        assert first_of(other) == {ord("b")}
        assert first_of(await compiler.compile(DIGITS)) == set(b"0123456789")


async def test_a_host_that_is_killed_is_started_again_and_what_it_forked_goes_on() -> None:
    async with compiling() as compiler:
        digits = await compiler.compile(DIGITS)
        first = compiler._host._pid
        os.kill(first, signal.SIGKILL)
        assert first_of(digits) == set(b"0123456789")
        assert first_of(await compiler.compile(choice("b"))) == {ord("b")}
        assert compiler._host._pid != first


async def test_no_process_is_left_behind() -> None:
    async with compiling(compile_s=60) as compiler:
        await compiler.compile(DIGITS)
        task = asyncio.create_task(compiler.compile(lark(EXPENSIVE)))
        await until(lambda: compiler._thorough.num_waiting == 1 and len(processes(compiler)) == 2)
        found = {compiler._host._pid, *processes(compiler)}
        task.cancel()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))


async def test_without_a_host_a_request_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.grammars.spawn._PROGRAM", "raise SystemExit(1)")
    async with compiling() as compiler:
        with pytest.raises(GrammarsBusy, match="at the moment"):
            await compiler.compile(DIGITS)
        monkeypatch.undo()
        assert first_of(await compiler.compile(DIGITS)) == set(b"0123456789")


# --- following


async def test_sequences_of_one_grammar_ask_together_and_are_answered_each_for_itself() -> None:
    async with compiling() as compiler:
        grammar = await compiler.compile(choice("ab", "cd"))
        states = [grammar.start() for _ in range(4)]
        for state, token_id in zip(states, b"acac", strict=True):
            state.accept(token_id)
        for state in states:
            state.ask()
        answers = [bits_of(state.allowed()) for state in reversed(states)]
        assert answers == [{ord("d")}, {ord("b")}] * 2


async def test_a_token_that_may_not_come_is_a_failure_of_that_sequence_alone() -> None:
    async with compiling() as compiler:
        grammar = await compiler.compile(choice("ab", "cd"))
        wrong, right = grammar.start(), grammar.start()
        for state, text in ((wrong, b"ad"), (right, b"a")):
            for token_id in text:
                state.accept(token_id)
        with pytest.raises(GrammarFailed):
            wrong.allowed()
        assert bits_of(right.allowed()) == {ord("b")}


async def test_a_state_that_is_closed_is_let_go_of() -> None:
    """Its memory, that is: a grammar that many requests follow, one after the other, does not grow."""
    async with compiling() as compiler:
        grammar = await compiler.compile(GrammarSource.of_schema({"type": "object"}))
        sizes = []
        for number in range(400):
            state = grammar.start()
            state.accept(ord("{"))
            state.allowed()
            state.close()
            if number % 100 == 99:
                sizes.append(compiler.stats().num_bytes)
        assert sizes[-1] - sizes[0] < 1 << 20
