"""The engine over the mock runner: streams, aborts, failures, health, death."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from mlx_backend.api.errors import (
    ContextLengthExceeded,
    EngineDead,
    EngineNotReady,
    ModelLoadError,
    OutOfMemory,
    QueueFull,
    SequenceFailed,
    UnknownToken,
)
from mlx_backend.api.interface import (
    ContextConfig,
    Engine,
    EngineConfig,
    HealthConfig,
    MockConfig,
    SamplingParams,
    SchedulerConfig,
)
from mlx_backend.factory import create_engine
from tests.engine_client import one, read, request, running, tokens, until

PROMPT = tuple(b"hello there")


def config(**sections: object) -> EngineConfig:
    return EngineConfig(model_path="mock", backend="mock", **sections)  # type: ignore[arg-type]


def is_empty(engine: Engine) -> bool:
    stats = engine.stats()
    return not (stats.num_waiting or stats.num_prefilling or stats.num_running or stats.kv_bytes)


async def test_tokens_are_deterministic_and_end_at_max_tokens() -> None:
    async with running(config()) as engine:
        events = (await read(engine.submit([request(PROMPT, 10)])))[0]
        assert len(events) == 10
        assert [event.finish_reason for event in events] == [None] * 9 + ["length"]
        assert await one(engine, PROMPT, 10) == [event.token_id for event in events]
        assert await one(engine, b"another", 10) != [event.token_id for event in events]


async def test_a_stop_id_ends_a_sequence() -> None:
    async with running(config()) as engine:
        events = (await read(engine.submit([request(PROMPT, 4000, stop_ids=frozenset({256}))])))[0]
        assert events[-1].finish_reason == "stop"
        assert events[-1].token_id == 256
        assert 256 not in [event.token_id for event in events[:-1]]


async def test_several_requests_share_a_stream_and_number_their_sequences() -> None:
    async with running(config()) as engine:
        stream = engine.submit([request(PROMPT, 5, n=2), request(b"second", 3)])
        outputs = await tokens(stream)
        assert [len(output) for output in outputs] == [5, 5, 3]
        assert stream.progress.num_computed_tokens == stream.progress.num_prompt_tokens == len(PROMPT) + 6


async def test_a_request_over_the_context_limit_is_refused_with_its_numbers() -> None:
    async with running(config(context=ContextConfig(limit=32))) as engine:
        assert len(await one(engine, PROMPT, 32 - len(PROMPT))) == 32 - len(PROMPT)
        with pytest.raises(ContextLengthExceeded) as caught:
            engine.submit([request(PROMPT, 33 - len(PROMPT))])
        assert (caught.value.num_prompt_tokens, caught.value.max_tokens, caught.value.limit) == (11, 22, 32)


@pytest.mark.parametrize("changes", [{"prompt": (5, 260)}, {"prompt": (-1,)}, {"bias": ((260, 1.0),)}])
async def test_token_ids_outside_the_vocabulary_are_refused(changes: dict[str, Any]) -> None:
    sampling = SamplingParams(logit_bias=changes.get("bias", ()))
    async with running(config()) as engine:
        with pytest.raises(UnknownToken):
            engine.submit([request(changes.get("prompt", PROMPT), sampling=sampling)])


async def test_a_full_queue_refuses() -> None:
    async with running(config(scheduler=SchedulerConfig(max_waiting=2), mock=MockConfig(fault="hang@1"))) as engine:
        first = engine.submit([request(PROMPT)])
        await until(lambda: engine.stats().num_running == 1)
        waiting = [engine.submit([request(PROMPT)]) for _ in range(2)]
        with pytest.raises(QueueFull):
            engine.submit([request(PROMPT)])
        for stream in (first, *waiting):
            await stream.aclose()


async def test_abort_while_decoding_leaves_nothing() -> None:
    async with running(config(mock=MockConfig(itl_s=0.02))) as engine:  # 80 s: it does not end before it is aborted
        stream = engine.submit([request(PROMPT, 4000, n=2)])
        await anext(aiter(stream))
        await stream.aclose()
        await until(lambda: is_empty(engine))
        assert engine.stats().num_aborted == 2
        with pytest.raises(StopAsyncIteration):
            await anext(aiter(stream))


async def test_abort_while_prefilling_and_while_queued() -> None:
    slow = config(mock=MockConfig(ttft_s=3.0), scheduler=SchedulerConfig(max_num_seqs=1, max_chunk_tokens=2))
    async with running(slow) as engine:
        prefilling, queued = engine.submit([request(PROMPT)]), engine.submit([request(PROMPT)])
        await until(lambda: engine.stats().num_prefilling == 1 and engine.stats().num_waiting == 1)
        await queued.aclose()
        await prefilling.aclose()
        await until(lambda: is_empty(engine))
        assert engine.stats().num_aborted == 2


async def test_aborting_one_index_lets_the_other_go_on() -> None:
    async with running(config(mock=MockConfig(itl_s=0.002))) as engine:
        alone = await tokens(engine.submit([request(PROMPT, 200, n=2)]))
        stream = engine.submit([request(PROMPT, 200, n=2)])
        await anext(aiter(stream))
        stream.abort(0)
        rest = await read(stream)
        assert list(rest) == [1]
        assert [event.token_id for event in rest[1]] == alone[1][-len(rest[1]) :]


async def test_a_choice_that_its_reader_finishes_counts_as_finished() -> None:
    async with running(config(mock=MockConfig(itl_s=0.02))) as engine:
        stream = engine.submit([request(PROMPT, 3000, n=2)])
        await anext(aiter(stream))
        stream.finish(0)
        await until(lambda: engine.stats().num_running == 1)
        await stream.aclose()
        await until(lambda: is_empty(engine))
        assert (engine.stats().num_finished, engine.stats().num_aborted) == (1, 1)


async def test_a_stream_wakes_when_it_is_closed_by_another_task() -> None:
    async with running(config(mock=MockConfig(fault="hang@1"))) as engine:
        stream = engine.submit([request(PROMPT)])
        reader = asyncio.create_task(read(stream))
        await until(lambda: engine.stats().num_running == 1)
        await stream.aclose()
        assert await reader == {}


@pytest.mark.parametrize(("kind", "error"), [("fail", SequenceFailed), ("oom", OutOfMemory)])
async def test_a_failed_sequence_fails_alone(kind: str, error: type[Exception]) -> None:
    async with running(config(mock=MockConfig(fault=f"{kind}@3"))) as engine:
        streams = [engine.submit([request(PROMPT, 50)]) for _ in range(4)]
        results = await asyncio.gather(*(tokens(stream) for stream in streams), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        assert [type(result) for result in failed] == [error]
        whole = [result for result in results if not isinstance(result, BaseException)]
        assert whole == [[await one(engine, PROMPT, 50)]] * 3
        assert engine.health().status == "ok"
        assert engine.stats().num_failed == 1


async def test_when_memory_runs_out_the_largest_request_fails_and_the_others_go_on_where_they_were() -> None:
    async with running(config()) as engine:
        expected = [await one(engine, (*PROMPT, i), 40) for i in range(6)]
    async with running(config(mock=MockConfig(fault="oom@17"))) as engine:
        streams = [engine.submit([request((*PROMPT, i), 40)]) for i in range(6)]
        large = engine.submit([request(PROMPT * 9, 40, n=2)])
        with pytest.raises(OutOfMemory):
            await tokens(large)
        assert [(await tokens(stream))[0] for stream in streams] == expected
        await large.aclose()
        assert engine.stats().num_failed == 2
        await until(lambda: is_empty(engine))


@pytest.mark.parametrize("every", [1, 2, 7, 20])
async def test_memory_that_runs_out_again_and_again_leaves_nothing_hanging(every: int) -> None:
    source = random.Random(every)
    async with running(config(scheduler=SchedulerConfig(max_num_seqs=8))) as engine:
        asked = [(tuple(source.randbytes(source.randint(1, 300))), source.randint(1, 60)) for _ in range(60)]
        expected = [await one(engine, *each) for each in asked]
    async with running(
        config(mock=MockConfig(fault=f"oom/{every}"), scheduler=SchedulerConfig(max_num_seqs=8))
    ) as engine:
        answers = await asyncio.gather(*(one(engine, *each) for each in asked), return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        assert {type(answer) for answer in failed} == {OutOfMemory}
        assert len(failed) == engine.stats().num_failed
        assert (len(failed) == 60) == (every == 1)
        whole = [pair for pair in zip(answers, expected, strict=True) if not isinstance(pair[0], BaseException)]
        assert all(answer == right for answer, right in whole)
        assert engine.health().status == "ok"
        await until(lambda: is_empty(engine))


async def test_a_dead_device_thread_fails_everybody_and_refuses() -> None:
    died = threading.Event()
    async with running(config(mock=MockConfig(fault="die@2"), scheduler=SchedulerConfig(max_num_seqs=2))) as engine:
        engine.on_death(died.set)
        streams = [engine.submit([request(PROMPT, 50)]) for _ in range(5)]
        results = await asyncio.gather(*(tokens(stream) for stream in streams), return_exceptions=True)
        assert {type(result) for result in results} == {EngineDead}
        assert died.wait(60)
        assert engine.health().status == "dead"
        assert isinstance(engine.failure, RuntimeError)
        with pytest.raises(EngineDead):
            engine.submit([request(PROMPT)])


async def test_failures_in_a_row_are_a_dead_device() -> None:
    from mlx_backend.engine.engine import DeviceEngine
    from mlx_backend.runners.mock import MockRunner

    class Broken(MockRunner):
        def start(self, plan, read_masks):
            if plan.decodes:
                raise SequenceFailed("broken")

    engine = DeviceEngine(config(), Broken(config()))
    engine.start()
    await until(lambda: engine.model_info is not None)
    for _ in range(3):
        with pytest.raises((SequenceFailed, EngineDead)):
            await one(engine, PROMPT)
    await until(lambda: engine.failure is not None)
    assert engine.health().status == "dead"
    engine.close()


async def test_no_progress_with_work_waiting_is_unhealthy() -> None:
    stalling = config(mock=MockConfig(fault="hang@2"), health=HealthConfig(stall_s=0.05))
    async with running(stalling) as engine:
        assert engine.health().status == "ok"
        stream = engine.submit([request(PROMPT)])
        await until(lambda: engine.health().status == "stalled")
        await stream.aclose()


async def test_idle_is_healthy_however_long() -> None:
    async with running(config(health=HealthConfig(stall_s=0.01))) as engine:
        await one(engine, PROMPT, 3)
        await until(lambda: is_empty(engine))
        await asyncio.sleep(0.05)
        assert engine.health().status == "ok"


async def test_closing_fails_who_waits() -> None:
    async with running(config(mock=MockConfig(fault="hang@1"))) as engine:
        stream = engine.submit([request(PROMPT)])
        reader = asyncio.create_task(read(stream))
        await until(lambda: engine.stats().num_running == 1)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineDead):
            await reader


async def test_loading_reports_progress_and_refuses_requests() -> None:
    engine = create_engine(config(mock=MockConfig(load_s=1.5)))
    engine.start()
    with pytest.raises(EngineNotReady):
        engine.submit([request(PROMPT)])
    seen = set()
    while engine.model_info is None:
        assert engine.health().status in ("loading", "ok")
        seen.add(engine.health().load.done_bytes)
        await asyncio.sleep(0.005)
    assert len(seen) > 3
    engine.close()


async def test_a_load_failure_is_kept() -> None:
    with pytest.raises(ModelLoadError, match=r"mock\.fault must be"):
        create_engine(config(mock=MockConfig(fault="explode@1")))


async def test_one_long_prefill_never_takes_a_whole_turn_from_a_running_stream() -> None:
    """Between two tokens of the running stream at most one chunk is computed."""
    slow = config(mock=MockConfig(ttft_s=0.5), scheduler=SchedulerConfig(max_stall_s=0.02))
    async with running(slow) as engine:
        short = engine.submit([request((1,), 1000)])
        await anext(aiter(short))
        long = engine.submit([request((1,) * 2000, 1)])
        reader = asyncio.create_task(read(long))
        num_tokens = 0
        async for events in short:
            num_tokens += len(events)
            if reader.done():
                break
        assert num_tokens > 10
        await short.aclose()
        await reader


async def test_the_stall_that_can_be_promised_is_longer_where_a_step_is_slow() -> None:
    async with running(config(mock=MockConfig(itl_s=0.02), scheduler=SchedulerConfig(max_stall_s=0.001))) as engine:
        assert engine.stats().stall_s == 0.001
        await one(engine, PROMPT, 10)
        assert engine.stats().stall_s > 0.02
