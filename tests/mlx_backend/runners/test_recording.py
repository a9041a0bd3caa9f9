"""Only data crosses the runner's door: a run can be written down and replayed, and a runner can be another process."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.api.errors import ModelLoadError, SequenceFailed
from mlx_backend.api.interface import (
    DebugConfig,
    Engine,
    EngineConfig,
    MockConfig,
    PrefixCacheConfig,
    SamplingParams,
    SchedulerConfig,
)
from mlx_backend.engine.engine import DeviceEngine
from mlx_backend.factory import create_engine, create_runner
from mlx_backend.runners.recording import replay
from tests.engine_client import one, request, running, tokens, until
from tests.ladder import END, Ladder
from tests.pipe_runner import PipeRunner
from tests.tiny_models import VOCAB_SIZE, write_model

MOCK = EngineConfig(model_path="mock", backend="mock", scheduler=SchedulerConfig(max_num_seqs=6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


async def mixed(engine: Engine, number: int = 200) -> None:
    """Requests that join, share beginnings, follow grammars, have several choices, and leave."""
    source = random.Random(17)
    beginnings = [[source.randrange(1, 250) for _ in range(length)] for length in (40, 90)]
    places = asyncio.Semaphore(9)

    async def ask(place: int) -> None:
        prompt = source.choice(beginnings)[: source.randint(1, 90)] + [source.randrange(1, 250) for _ in range(5)]
        sampling = SamplingParams(
            temperature=source.choice([0.0, 0.9]),
            top_p=source.choice([1.0, 0.8]),
            repetition_penalty=source.choice([1.0, 1.2]),
            seed=source.choice([None, place]),
            num_logprobs=source.choice([None, None, 3]),
        )
        changes: dict[str, Any] = {"n": source.choice([1, 1, 2, 3]), "sampling": sampling}
        if source.random() < 0.25:
            changes |= {"grammar": Ladder(length=source.randint(1, 12)), "stop_ids": frozenset({END})}
        elif source.random() < 0.1:
            changes["num_prompt_logprobs"] = 1
        async with places:
            stream = engine.submit([request(prompt, source.randint(1, 20), **changes)])
            if source.random() < 0.2:
                await asyncio.sleep(0)
                await stream.aclose()
            else:
                await tokens(stream)

    await asyncio.gather(*(ask(place) for place in range(number)))
    await until(lambda: engine.stats().kv_bytes == 0)


@pytest.mark.parametrize("backend", ["mock", pytest.param("mlx", marks=pytest.mark.mlx)])
async def test_a_recorded_run_gives_the_same_when_it_is_replayed(backend: str, folder: Path, tmp_path: Path) -> None:
    config = MOCK if backend == "mock" else EngineConfig(model_path=str(folder), scheduler=MOCK.scheduler)
    file = tmp_path / "run.jsonl"
    async with running(replace(config, debug=DebugConfig(record=str(file)))) as engine:
        await mixed(engine, 200 if backend == "mock" else 50)
        assert engine.stats().num_failed == 0
    said = [json.loads(line) for line in file.read_text().splitlines()]
    calls = Counter(line["call"] for line in said)
    assert min(calls[name] for name in ("start", "collect", "prefill", "take", "free", "idle")) > 0
    assert any(line.get("masks") for line in said)
    assert any("restore" in line["chunk"] for line in said if line["call"] == "prefill")
    runner = create_runner(config)
    runner.load(lambda progress: None)
    assert list(replay(file, runner)) == []
    assert runner.kv_bytes() == 0


async def test_a_replay_says_what_is_different(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    async with running(replace(MOCK, debug=DebugConfig(record=str(file)))) as engine:
        await one(engine, b"hello there", 5)
    lines = file.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if json.loads(line)["call"] == "collect")
    changed = json.loads(lines[place])
    changed["gave"]["rows"][0]["token_ids"] = [7]
    file.write_text("\n".join([*lines[:place], json.dumps(changed), *lines[place + 1 :]]))
    runner = create_runner(MOCK)
    runner.load(lambda progress: None)
    (difference,) = replay(file, runner)
    assert difference.line == place + 1
    assert difference.recorded.rows[0].token_ids == (7,) != difference.replayed.rows[0].token_ids


@pytest.mark.parametrize("fault", ["fail@5", "fail/7"])
async def test_a_run_with_failures_is_replayed(fault: str, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    config = replace(MOCK, mock=MockConfig(fault=fault), debug=DebugConfig(record=str(file)))
    async with running(config) as engine:
        streams = [engine.submit([request((place, *b"hello"), 20)]) for place in range(4)]
        found = await asyncio.gather(*map(tokens, streams), return_exceptions=True)
        assert any(isinstance(each, SequenceFailed) for each in found)
    runner = create_runner(MOCK)
    runner.load(lambda progress: None)
    assert list(replay(file, runner)) == []


async def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    unwritable = replace(MOCK, debug=DebugConfig(record=str(tmp_path / "no" / "folder")))
    async with running(unwritable) as engine:
        assert isinstance(engine.failure, ModelLoadError)
        assert "debug.record" in str(engine.failure)
    with pytest.raises(ModelLoadError, match=r"leave prefix_cache.dir unset"):
        create_engine(
            replace(
                MOCK,
                prefix_cache=PrefixCacheConfig(dir=str(tmp_path)),
                debug=DebugConfig(record=str(tmp_path / "run.jsonl")),
            )
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
async def test_a_full_disk_ends_the_record_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with running(replace(MOCK, debug=DebugConfig(record="/dev/full"))) as engine:
        assert len(await one(engine, b"hello there", 5)) == 5
        assert engine.health().status == "ok"
    assert caplog.text.count("debug.record: /dev/full is not written any further") == 1


async def test_a_record_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    async with running(replace(MOCK, debug=DebugConfig(record=str(file)))) as engine:
        await one(engine, b"hello there", 5)
    assert file.stat().st_mode & 0o777 == 0o600


# --- a third runner, behind a pipe


@asynccontextmanager
async def piped(config: EngineConfig) -> AsyncIterator[Engine]:
    engine = DeviceEngine(config, PipeRunner(config))
    engine.start()
    try:
        await until(lambda: engine.model_info is not None or engine.failure is not None)
        assert engine.failure is None
        yield engine
    finally:
        engine.close()


async def answers(engine: Engine) -> list[Any]:
    """What requests of every sort get: alone, together, again, of a known beginning, with a grammar."""
    source = random.Random(23)
    prompts = [[source.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in (1, 2, 33, 70, 120)]
    asked = [
        *(request(prompt, 8) for prompt in prompts),
        *(request(prompt[:60], 6, n=2, sampling=SamplingParams(seed=5, min_p=0.02)) for prompt in prompts),
        request(prompts[3], 30, grammar=Ladder(length=5), stop_ids=frozenset({END})),
        request(prompts[4], 6, sampling=SamplingParams(temperature=0, repetition_penalty=1.3, dry_multiplier=0.8)),
    ]
    found: list[Any] = [await tokens(engine.submit([each])) for each in asked]
    found += await asyncio.gather(*(tokens(engine.submit([each])) for each in asked))
    return found


@pytest.mark.mlx
@pytest.mark.parametrize("kind", ["llama", "falcon_h1", "llama4"])
async def test_a_runner_in_another_process_gives_the_same_answers(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind)
    config = EngineConfig(model_path=str(folder), prefix_cache=PrefixCacheConfig(chunk_tokens=16, snapshot_tokens=32))
    async with running(config) as engine:
        expected, known = await answers(engine), engine.stats().prefix_cache.num_ram_tokens
    async with piped(config) as engine:
        assert await answers(engine) == expected
        assert engine.stats().prefix_cache.num_ram_tokens >= min(known, 1)
        await until(lambda: engine.stats().kv_bytes == 0)


async def test_errors_of_another_process_are_of_their_sequences(tmp_path: Path) -> None:
    async with piped(replace(MOCK, mock=MockConfig(fault="fail@3"))) as engine:
        streams = [engine.submit([request((place, *b"hello"), 8)]) for place in range(3)]
        found = await asyncio.gather(*map(tokens, streams), return_exceptions=True)
        assert [type(each) for each in found].count(SequenceFailed) == 1
        assert engine.health().status == "ok"
