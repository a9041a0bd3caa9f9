"""lm-evaluation-harness: what it logs of each sample is what mlx-lm computes in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load
from mlx_lm.generate import generate_step

from server import pocket
from tests.clients.conftest import Example

pytestmark = [pytest.mark.mlx, pytest.mark.clients]

NUM_SAMPLES = 12
TOLERANCE, SHARE = 1e-4, 2e-5
"""A sum of float32 logarithms: attention over latents is computed in another order here than by mlx-lm's own code."""

Samples = Callable[[str], list[tuple[Any, Any]]]
"""A task's name -> (the harness's two arguments, its answer) of every request."""


class Reference:
    """The pocket model by itself."""

    def __init__(self) -> None:
        self._model, wrapper = load(str(pocket.folder()))
        self.tokenizer: Any = wrapper._tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """The log-likelihood of the continuation, and whether greedy decoding would write it."""
        ids = mx.array([context + continuation[:-1]])
        logits = self._model(ids)[0, len(context) - 1 :].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(logprobs, mx.array(continuation)[:, None], axis=-1)
        return sum(chosen[:, 0].tolist()), logits.argmax(axis=-1).tolist() == continuation

    def write(self, text: str, max_tokens: int) -> str:
        """Greedily, to the end token."""
        ids: list[int] = []
        for token, _ in generate_step(mx.array(self.encode(text)), self._model, max_tokens=max_tokens):
            if int(token) == self.tokenizer.eos_token_id:
                break
            ids.append(int(token))
        return str(self.tokenizer.decode(ids))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


# token ids, several requests at once; text, one by one; several texts in one request
@pytest.fixture(
    params=[("num_concurrent=4",), ("tokenized_requests=False",), ("tokenized_requests=False", "--batch_size", "4")],
    ids=["ids", "text", "texts"],
)
def samples(request: pytest.FixtureRequest, example: Example, tmp_path: Path) -> Samples:
    table = example("lm_eval_local.sh", str(tmp_path / "results"), *request.param)
    assert all(task in table for task in ("recall_choice", "recall_generate", "recall_perplexity"))

    def read(task: str) -> Iterator[tuple[Any, Any]]:
        (path,) = (tmp_path / "results").rglob(f"samples_{task}_*.jsonl")
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == NUM_SAMPLES
        for sample in map(json.loads, lines):
            for arguments, (answer,) in zip(sample["arguments"].values(), sample["resps"], strict=True):
                yield tuple(arguments.values()), answer

    return lambda task: list(read(task))


def test_every_figure_is_the_models_own(samples: Samples, reference: Reference) -> None:
    """One test, since the harness takes a while: choices, whole texts, and what is written."""
    choices = samples("recall_choice")
    assert len(choices) == 4 * NUM_SAMPLES
    for (context, continuation), (found, is_greedy) in choices:
        ids, whole = reference.encode(context), reference.encode(context + continuation)
        score, would_be_written = reference.score(ids, whole[len(ids) :])
        assert float(found) == pytest.approx(score, rel=SHARE, abs=TOLERANCE)
        assert is_greedy == str(would_be_written)

    for (text,), found in samples("recall_perplexity"):
        score, _ = reference.score([reference.tokenizer.eos_token_id], reference.encode(text))
        assert float(found) == pytest.approx(score, rel=SHARE, abs=TOLERANCE)

    written = samples("recall_generate")
    for (prompt, settings), found in written:
        assert settings["until"] == ["."]
        assert found == reference.write(prompt, settings["max_gen_toks"]).split(".")[0]
    assert len({found for _, found in written}) > NUM_SAMPLES // 2
