"""An engine with a draft model: the same tokens as without, in fewer steps where it is right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlx_backend.api.errors import SequenceFailed
from mlx_backend.api.interface import (
    DraftedTokens,
    Engine,
    EngineConfig,
    MockConfig,
    MockText,
    RanksConfig,
    SamplingParams,
    SpeculationConfig,
)
from mlx_backend.core.step import Draft, DraftRequest
from mlx_backend.drafting.payoff import Candidate, Payoff
from mlx_backend.factory import create_engine
from mlx_backend.runners.mock import MockRunner
from tests.engine_client import request, running, tokens
from tests.tiny_models import write_model

PROMPTS = [tuple((7 * i * i + k) % 300 for i in range(n)) for k, n in enumerate((60, 300, 5, 120))]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft whatever it costs."""

    def choose(self: Payoff, rows: Sequence[Candidate], *, num_unknown: int = 0) -> list[int]:
        return [min(row.num_tokens, 5) for row in rows]

    monkeypatch.setattr(Payoff, "choose", choose)
    monkeypatch.setattr(Payoff, "invests", lambda *given: True)


def draft_model(folder: Path | str = "mock") -> SpeculationConfig:
    return SpeculationConfig(kind="draft-model", draft_model=str(folder), max_slowdown=1000.0)


@pytest.mark.mlx
@pytest.mark.usefixtures("always")
def test_the_tokens_are_the_same(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "llama")
    other = write_model(tmp_path / "other", "llama", num_hidden_layers=1)

    async def answers(speculation: SpeculationConfig) -> tuple[list[list[int]], DraftedTokens]:
        async with running(EngineConfig(model_path=str(model), speculation=speculation)) as engine:
            requests = [
                request(prompt, 40 + 8 * i, sampling=SamplingParams(temperature=0.7 * (i % 2), seed=5), n=1 + (i == 0))
                for i, prompt in enumerate(PROMPTS)
            ]
            streams = [engine.submit(requests[:2]), engine.submit(requests[2:])]
            found = [output for stream in streams for output in await tokens(stream)]
            return found, streams[0].drafted + streams[1].drafted

    plain, none = asyncio.run(answers(SpeculationConfig()))
    assert none == DraftedTokens()
    same, drafted = asyncio.run(answers(draft_model(model)))
    assert same == plain
    assert drafted.num_accepted == drafted.num_drafted > 150
    others, refused = asyncio.run(answers(draft_model(other)))
    assert others == plain
    assert refused.num_drafted > 150
    assert refused.num_accepted < refused.num_drafted / 2


async def written(speculation: SpeculationConfig, share: float) -> tuple[list[list[int]], DraftedTokens, Engine]:
    """What the mock writes for some requests that come one after the other, with a draft model that is partly right."""
    mock = MockConfig(itl_s=0.001, draft_share=share, context=300)
    config = EngineConfig(model_path="mock", backend="mock", mock=mock, speculation=speculation)
    async with running(config) as engine:
        text = MockText(outputs=(tuple(range(97, 110)) + (10, 32) * 3 + tuple(range(40, 90)),))
        sizes = (1, 2, 7, 60, 200)
        streams = [engine.submit([request((65 + i, 66) * 12, size, mock=text)]) for i, size in enumerate(sizes)]
        found = [(await tokens(stream))[0] for stream in streams]
        drafted = sum((stream.drafted for stream in streams), DraftedTokens())
        return found, drafted, engine


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
def test_every_end_is_kept(share: float) -> None:
    plain, _, _ = asyncio.run(written(SpeculationConfig(), share))
    assert [len(output) for output in plain] == [1, 2, 7, 60, 200]
    found, drafted, engine = asyncio.run(written(draft_model(), share))
    assert found == plain
    assert drafted.num_drafted > 50
    assert engine.model_info is not None and engine.model_info.draft_model is not None
    if share in (0.0, 1.0):
        # earlier text, which repeats itself, is taken in the draft model's place and is right
        assert (drafted.num_accepted > 0.9 * drafted.num_drafted) == (share == 1.0)


class Failing(MockRunner):
    """Its draft model fails; what it was asked is counted."""

    num_asked = 0

    def draft(self, wanted: tuple[DraftRequest, ...]) -> tuple[Draft, ...]:
        self.num_asked += 1
        raise SequenceFailed("the draft model is not there")


class Forgetting(MockRunner):
    """Its draft model holds nothing of what it was told."""

    def draft(self, wanted: tuple[DraftRequest, ...]) -> tuple[Draft, ...]:
        return ()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", [Failing, Forgetting])
def test_requests_go_on_without_a_draft_model(kind: type[MockRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    runners: list[MockRunner] = []

    def create(config: EngineConfig) -> MockRunner:
        runners.append(kind(config))
        return runners[-1]

    monkeypatch.setattr("mlx_backend.factory.create_runner", create)
    plain, _, _ = asyncio.run(written(SpeculationConfig(), 1.0))
    found, _, _ = asyncio.run(written(draft_model(), 1.0))
    assert found == plain
    if kind is Failing:
        assert [runner.num_asked for runner in runners if isinstance(runner, Failing)] == [0, 3]


def test_a_model_of_several_ranks_has_none() -> None:
    config = EngineConfig(model_path="mock", backend="mock", ranks=RanksConfig(count=2), speculation=draft_model())
    with pytest.raises(Exception, match=r"speculation\.draft_model is for a model in one process"):
        create_engine(config)
