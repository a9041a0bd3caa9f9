"""A draft model of the MLX runner: the same weights draft what is drawn, others cost nothing but time."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_backend.api.errors import ModelLoadError, SequenceFailed
from mlx_backend.api.interface import EngineConfig, LoadProgress, MemoryConfig, SamplingParams, SpeculationConfig
from mlx_backend.core.step import Draft, DraftRequest
from mlx_backend.runners.footprint import estimate_footprint
from mlx_backend.runners.mlx import MLXRunner
from tests.drafted_runner import Driver
from tests.tiny_models import write_model

pytestmark = pytest.mark.mlx

PROMPTS = [[(7 * i * i + 3 * row) % 300 for i in range(length)] for row, length in enumerate((1, 40, 9, 70))]
GREEDY = SamplingParams(temperature=0)
NUM_TOKENS = 12


def load(model: Path, draft: Path, memory: MemoryConfig | None = None) -> MLXRunner:
    speculation = SpeculationConfig(kind="draft-model", draft_model=str(draft))
    config = EngineConfig(model_path=str(model), speculation=speculation, memory=memory or MemoryConfig())
    runner = MLXRunner(config)
    runner.load(_ignore)
    return runner


def _ignore(progress: LoadProgress) -> None:
    pass


class DraftDriver:
    """Drives rows whose drafts the runner's draft model gives; it knows what that holds, as the engine does."""

    def __init__(self, runner: MLXRunner, sampling: SamplingParams) -> None:
        self.runner, self.driver = runner, Driver(runner, PROMPTS, sampling)
        self._held: dict[int, int] = {}
        self.num_drafted = self.num_accepted = 0

    def step(self, nums: dict[int, int]) -> None:
        """Compute a step with so many drafts of rows."""
        outputs = self.driver.outputs
        wanted = tuple(self._request(number, num) for number, num in nums.items())
        drafts = {draft.id: draft.token_ids for draft in self.runner.draft(wanted)}
        assert {number: len(draft) for number, draft in drafts.items()} == nums
        before = {number: len(outputs[number]) for number in nums}
        self.driver.step(drafts)
        for number, num in nums.items():
            num_accepted = len(outputs[number]) - before[number] - 1
            self._held[number] = len(PROMPTS[number]) + before[number] + min(num_accepted, num - 1)
            self.num_drafted, self.num_accepted = self.num_drafted + num, self.num_accepted + num_accepted

    def _request(self, number: int, num: int) -> DraftRequest:
        tokens, start = (*PROMPTS[number], *self.driver.outputs[number]), self._held.get(number, 0)
        return DraftRequest(id=number, start=start, token_ids=tokens[start:], num_drafts=num)

    def run(self, seed: int) -> dict[int, list[int]]:
        """Continue all prompts, which join and leave meanwhile; rows draft now and then. Return the outputs."""
        source, done = random.Random(seed), dict[int, list[int]]()
        self.driver.join(1, 3)
        self.driver.step()
        while self.driver.outputs:
            if self.driver.num_steps == 3:
                self.driver.join(0, 2)
                self.driver.step()
            self.step({n: source.randint(1, 5) for n in self.driver.outputs if source.random() < 0.7})
            for number in [n for n, found in self.driver.outputs.items() if len(found) >= NUM_TOKENS + 4 * n]:
                done |= self.driver.leave(number)
        self.runner.idle()
        return done


def without(runner: MLXRunner, sampling: SamplingParams) -> dict[int, list[int]]:
    """What the prompts are continued with, without drafts."""
    driver = Driver(runner, PROMPTS, sampling)
    driver.join(*range(len(PROMPTS)))
    for _ in range(NUM_TOKENS + 20):
        driver.step()
    runner.idle()
    return driver.outputs


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, SamplingParams(temperature=0.8, top_p=0.9, seed=3), SamplingParams(top_k=40, logit_bias=((5, 3.0),))],
)
@pytest.mark.parametrize("draft", ["same", "other"])
def test_no_token_depends_on_the_draft_model(draft: str, sampling: SamplingParams, pairs: dict[str, MLXRunner]) -> None:
    runner, driver = pairs[draft], DraftDriver(pairs[draft], sampling)
    right = without(runner, sampling)
    for number, outputs in driver.run(seed=1).items():
        assert outputs == right[number][: len(outputs)], number
    share = driver.num_accepted / driver.num_drafted
    assert (share == 1.0) if draft == "same" else (share < 0.5)
    assert driver.num_drafted > 40


@pytest.mark.parametrize("kind", ["deepseek_v3", "gemma3"])
def test_a_draft_model_goes_back_in_caches_of_other_kinds(kind: str, tmp_path: Path) -> None:
    """Wrong tokens are prefilled again and again, and no trace of them is left: it drafts what is drawn."""
    runner = load(write_model(tmp_path, kind), tmp_path)
    driver = DraftDriver(runner, GREEDY)
    driver.driver.join(1, 3)
    driver.driver.step()
    for num in (1, 5, 3, 5, 2, 8, 1, 6):
        wrong = tuple(
            DraftRequest(id=each.id, start=each.start, token_ids=(*each.token_ids[:-1], 11), num_drafts=7)
            for each in (driver._request(number, 1) for number in driver.driver.outputs)
        )
        runner.draft(wrong)
        driver.step({1: num, 3: num})
    assert driver.num_accepted == driver.num_drafted


def test_a_row_is_taken_up_in_parts_and_forgotten_when_it_leaves(pairs: dict[str, MLXRunner]) -> None:
    runner, driver = pairs["same"], Driver(pairs["same"], PROMPTS, GREEDY)
    driver.join(3)
    driver.step()
    tokens, before = (*PROMPTS[3], *driver.outputs[3]), runner.kv_bytes()
    ask: Callable[..., tuple[Draft, ...]] = lambda *requests: runner.draft(requests)  # noqa: E731
    assert ask(DraftRequest(id=3, start=0, token_ids=tokens[:20])) == (Draft(3, ()),)
    assert ask(DraftRequest(id=3, start=20, token_ids=tokens[20:31])) == (Draft(3, ()),)
    (draft,) = ask(DraftRequest(id=3, start=31, token_ids=tokens[31:], num_drafts=4))
    assert runner.kv_bytes() > before
    for _ in range(4):
        driver.step()
    assert draft.token_ids == tuple(driver.outputs[3][1:])
    # prefilled in the batch, more than one pass at once
    tokens = (*PROMPTS[3], *driver.outputs[3], *range(40))
    assert ask(DraftRequest(id=3, start=71, token_ids=tokens[71:110])) == (Draft(3, ()),)
    # what it does not hold, and what is no row
    assert ask(DraftRequest(id=3, start=115, token_ids=(1,), num_drafts=1)) == ()
    assert ask(DraftRequest(id=3, start=71, token_ids=tokens[71:], num_drafts=1)) == ()
    assert ask(DraftRequest(id=77, start=0, token_ids=(1,), num_drafts=1)) == ()
    assert runner.kv_bytes() == before
    ask(DraftRequest(id=3, start=0, token_ids=tokens[:20]))
    assert runner._draft_model is not None and runner._draft_model.nbytes
    driver.leave(3)
    driver.join(2)
    driver.step()
    assert runner._draft_model.nbytes == 0
    assert ask(DraftRequest(id=3, start=20, token_ids=(1,), num_drafts=1)) == ()
    runner.idle()
    assert runner.kv_bytes() == 0


def test_a_failure_loses_what_the_draft_model_holds_and_no_row(
    pairs: dict[str, MLXRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, driver = pairs["other"], Driver(pairs["other"], PROMPTS, GREEDY)
    driver.join(1)
    driver.step()
    assert runner._draft_model is not None
    runner.draft((DraftRequest(id=1, start=0, token_ids=tuple(PROMPTS[1])),))

    def fail(*given: object, **named: object) -> mx.array:
        raise RuntimeError("[malloc] no more")

    with monkeypatch.context() as patched:
        patched.setattr(runner._draft_model, "_model", fail)
        with pytest.raises(SequenceFailed):
            runner.draft((DraftRequest(id=1, start=40, token_ids=(1,)),))
    assert runner.draft((DraftRequest(id=1, start=40, token_ids=(1,)),)) == ()
    driver.step()
    assert len(driver.outputs[1]) == 2
    runner.idle()


# ---- refusals and memory ----


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("mamba2", "recurrent state, which cannot go back"),
        ("falcon_h1", "recurrent state, which cannot go back"),
        ("llama4", "its KV cache is of a kind that cannot be batched"),
    ],
)
def test_a_model_that_cannot_draft_is_refused(kind: str, says: str, tmp_path: Path) -> None:
    model, draft = write_model(tmp_path / "model", "llama"), write_model(tmp_path / "small", kind)
    with pytest.raises(ModelLoadError, match=rf"speculation\.draft_model: small cannot draft: .*{says}"):
        load(model, draft)


def test_a_model_that_takes_no_drafts_is_refused(tmp_path: Path) -> None:
    model, draft = write_model(tmp_path / "model", "llama4"), write_model(tmp_path / "small", "llama")
    with pytest.raises(ModelLoadError, match=r"the model takes no drafts: .*; set speculation\.kind to off"):
        load(model, draft)


def test_both_models_count_in_memory(tmp_path: Path) -> None:
    model, draft = write_model(tmp_path / "model", "llama"), write_model(tmp_path / "small", "llama")
    plain = EngineConfig(model_path=str(model), memory=MemoryConfig(limit_gb=0.05, reserve_gb=0))
    alone = MLXRunner(plain)
    info = alone.load(_ignore)
    runner = load(model, draft, plain.memory)
    assert runner.budget is not None and alone.budget is not None
    weights = info.weights_bytes
    assert alone.budget.limit_bytes - runner.budget.limit_bytes == weights
    assert 0 < runner.budget.largest_alone(64) < alone.budget.largest_alone(64)
    on = SpeculationConfig(kind="draft-model", draft_model=str(draft))
    with_draft = estimate_footprint(EngineConfig(model_path=str(model), memory=plain.memory, speculation=on))
    footprint = estimate_footprint(plain)
    assert with_draft.weights_bytes == footprint.weights_bytes + weights
    assert with_draft.least_bytes > footprint.least_bytes + weights
    too_small = MemoryConfig(limit_gb=1.5 * weights / 1e9, reserve_gb=0)
    with pytest.raises(ModelLoadError, match=r"speculation\.draft_model: small does not fit beside model: their"):
        load(model, draft, too_small)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MLXRunner]:
    """Runners with a draft model of the same weights, and of others."""
    model = write_model(tmp_path_factory.mktemp("model"), "llama")
    other = write_model(tmp_path_factory.mktemp("other"), "llama", num_hidden_layers=1, vocab_size=322)
    return {"same": load(model, model), "other": load(model, other)}
