"""Driver of an MLX runner step by step, with drafts that are correct up to a point chosen by the test."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from mlx_backend.api.interface import SamplingParams, TokenLogprobs
from mlx_backend.core.step import Chunk, Draft, NewRow, StepPlan
from mlx_backend.runners.mlx import MLXRunner

Drafts = Callable[[int, int], tuple[int, ...]]
"""Returns a draft for a row, by its id and number of outputs."""


class Driver:
    """Prompts by number, each continued by one row; outputs as they arrive."""

    def __init__(self, runner: MLXRunner, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> None:
        self.runner, self._prompts, self._sampling = runner, [tuple(prompt) for prompt in prompts], sampling
        self.outputs: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[TokenLogprobs]] = {}
        self.num_steps = 0
        self._new: list[NewRow] = []
        self._ended: list[int] = []

    def join(self, *numbers: int) -> None:
        """Compute prompts, and have them decode from the next step on."""
        for number in numbers:
            prompt = self._prompts[number]
            chunk = Chunk(prompt=100 + number, start=0, token_ids=prompt[:-1], num_prompt_tokens=len(prompt))
            if chunk.num_tokens:
                self.runner.prefill(chunk)
            new = NewRow(
                id=number,
                prompt=100 + number,
                ordinal=0,
                prompt_ids=prompt,
                max_num_tokens=len(prompt) + 400,
                sampling=self._sampling,
                key=1000 + number,
            )
            self._new.append(new)
            self.outputs[number], self.logprobs[number] = [], []

    def leave(self, *numbers: int) -> dict[int, list[int]]:
        """Remove rows with the next step; return their outputs."""
        self._ended += numbers
        return {number: self.outputs.pop(number) for number in numbers}

    def step(self, drafts: Mapping[int, tuple[int, ...]] | None = None) -> None:
        """Compute one step of all rows, and read it."""
        plan = StepPlan(
            ended=tuple(self._ended),
            new_rows=tuple(self._new),
            decodes=tuple(self.outputs),
            dropped=tuple(new.prompt for new in self._new),
            drafts=tuple(Draft(number, draft) for number, draft in (drafts or {}).items() if draft),
        )
        self._ended, self._new = [], []
        self.runner.start(plan, lambda newest: ())
        for row in self.runner.collect().rows:
            self.outputs[row.id] += row.token_ids
            self.logprobs[row.id] += row.logprobs
        self.num_steps += 1


def corrupted(right: Sequence[int], source: random.Random, most: int) -> tuple[int, ...]:
    """Return a prefix of the correct tokens, up to `most` of them; possibly wrong from some position on."""
    draft = list(right[: source.randint(0, most)])
    if draft and source.random() < 0.6:
        place = source.randrange(len(draft))
        draft[place:] = [(token + 1 + source.randrange(50)) % 300 for token in draft[place:]]
    return tuple(draft)
