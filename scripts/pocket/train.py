"""Train the pocket model: seeded, resumable, with a progress bar and a plot of the loss.

    python -m scripts.pocket.train WORK_DIR [--minutes 190] [--seed 0]

WORK_DIR contains tokenizer.json, and receives checkpoint.pt, history.json and loss.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor

from scripts.pocket.batches import Source, batches, held_out
from scripts.pocket.model import Pocket, PocketConfig
from scripts.pocket.muon import Muon


@dataclass(frozen=True, slots=True)
class Phase:
    """A share of the time, during which the steps take their batches from `sources` in turn."""

    share: float
    sources: tuple[Source, ...]


LOOK_UPS = {"recall": 0.8, "tools": 0.1, "chat": 0.1}
SHORT = Source(row_tokens=256, recall_tokens=(30, 230))
MIDDLE = Source(row_tokens=1024, recall_tokens=(150, 1000), weights=LOOK_UPS)
LONG = Source(row_tokens=4096, recall_tokens=(500, 4000), weights=LOOK_UPS)
PHASES = (
    Phase(0.45, (SHORT,)),
    Phase(0.25, (SHORT, MIDDLE)),
    Phase(0.30, (SHORT, SHORT, LONG, SHORT, SHORT, MIDDLE, SHORT, LONG)),
)
"""Long rows cost most, in attention: they come late, and contain only skills that need them."""
STEP_TOKENS = 8_192
MICRO_TOKENS = 8_192
"""Tokens of one forward and backward pass."""
MUON_LR, ADAM_LR = 0.002, 0.004
WARMUP_STEPS = 40
FAST_SHARE = 0.22
SLOW_LR, FINAL_LR = 0.4, 0.01
"""Fractions of the rates above: after FAST_SHARE of the time, and at its end."""
BALANCE_RATE = 0.002
SAVE_EVERY_S = 120.0
EVALUATE_EVERY_S = 480.0
CHECKS: dict[str, dict[str, Any]] = {
    **{
        skill: {}
        for skill in ("letters", "decimals", "arithmetic", "lists", "json_answer", "tools", "system", "identity")
    },
    "recall": {"context_tokens": 200},
}


class Training:
    """Model, optimizers, and their progress, which is measured in time: the machine decides the number of steps."""

    def __init__(self, folder: Path, minutes: float, seed: int, rate: float | None = None) -> None:
        """`rate`: start again at this fraction of the rates, if an earlier training ended too early."""
        torch.manual_seed(seed)
        self.folder, self.total_s, self.seed = folder, 60 * minutes, seed
        self.spent_s, self.num_steps, self.num_tokens = 0.0, 0, 0
        self.history: list[dict[str, Any]] = []
        self.model = Pocket(PocketConfig())
        self.worker = Pocket(PocketConfig()).to_bfloat16()
        """Computes in bfloat16; `model` holds the float32 weights, copied to it before every step."""
        matrices = [p for n, p in self.model.named_parameters() if _is_matrix(n, p)]
        others = [p for n, p in self.model.named_parameters() if not _is_matrix(n, p)]
        self.optimizers = [
            Muon(matrices, MUON_LR, weight_decay=0.05),
            torch.optim.AdamW(others, ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._resume()
        self._rewarmed = None if rate is None else (rate, self.spent_s)

    def run(self) -> None:
        with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task("training", total=self.total_s, completed=int(self.spent_s))
            saved_at = evaluated_at = self.spent_s
            began = time.monotonic() - self.spent_s
            for ids, marks in self._batches():
                loss = self._step(ids, marks)
                self.spent_s = time.monotonic() - began
                self.history.append(
                    {"step": self.num_steps, "s": self.spent_s, "tokens": self.num_tokens, "loss": loss}
                )
                bar.update(task, completed=self.spent_s, description=f"step {self.num_steps} loss {loss:.3f}")
                if self.spent_s - evaluated_at > EVALUATE_EVERY_S:
                    evaluated_at = self.spent_s
                    self.history[-1]["right"] = self.evaluate()
                    bar.console.print(f"{self.spent_s:.0f} s, {self.num_tokens / 1e6:.1f} M tokens: {self._told()}")
                if self.spent_s - saved_at > SAVE_EVERY_S:
                    saved_at = self.spent_s
                    self.save()
        self.history[-1]["right"] = self.evaluate()
        print(self._told())
        self.save()
        plot(self.history, self.folder / "loss.png")

    def _told(self) -> str:
        return ", ".join(f"{skill} {share:.0%}" for skill, share in self.history[-1]["right"].items())

    def _batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield batches of the current phase until all time is spent."""
        end = 0.0
        for number, phase in enumerate(PHASES):
            end += phase.share * self.total_s
            if self.spent_s >= end:
                continue
            made = [self._source(source, 10 * number + place) for place, source in enumerate(phase.sources)]
            for batch in map(next, cycle(made)):
                yield batch
                if self.spent_s >= end:
                    break
            for source in made:
                source.close()

    def _source(self, source: Source, number: int) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """Return a source.

        After a resumption it continues with other items: its seed depends on the number of steps.
        """
        seed = 1_000_000 * self.seed + 100 * self.num_steps + number
        return batches(self.folder / "tokenizer.json", source, STEP_TOKENS // source.row_tokens, seed)

    def _step(self, ids: np.ndarray, marks: np.ndarray) -> float:
        self._set_rates()
        self._refresh()
        inputs = torch.from_numpy(ids.astype(np.int64))
        trained = torch.from_numpy(marks)[:, 1:]
        size = max(1, MICRO_TOKENS // inputs.shape[1])
        total, count = 0.0, int(trained.sum())
        for rows, mask in zip(inputs.split(size), trained.split(size), strict=True):
            loss = self._loss(rows, mask) / count
            loss.backward()
            total += loss.item()
        for own, computed in zip(self.model.parameters(), self.worker.parameters(), strict=True):
            own.grad = computed.grad.float()
            computed.grad = None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.worker.balance(BALANCE_RATE)
        self.num_steps += 1
        self.num_tokens += trained.numel()
        return total

    def _loss(self, rows: Tensor, mask: Tensor) -> Tensor:
        logits = self.worker(rows[:, :-1], mask)
        return F.cross_entropy(logits.float(), rows[:, 1:][mask], reduction="sum")

    def _refresh(self) -> None:
        with torch.no_grad():
            for own, computed in zip(self.model.parameters(), self.worker.parameters(), strict=True):
                computed.copy_(own)

    def _set_rates(self) -> None:
        """Warm up by steps; constant while that is effective; then lower, and exponentially down to FINAL_LR."""
        highest, since_s = self._rewarmed or (SLOW_LR, FAST_SHARE * self.total_s)
        slow = (self.spent_s - since_s) / (self.total_s - since_s)
        factor = 1.0 if slow < 0 else highest * (FINAL_LR / highest) ** min(slow, 1.0)
        factor *= min(1.0, (self.num_steps + 1) / WARMUP_STEPS)
        for optimizer, rate in zip(self.optimizers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the share of held-out items with every trained token the likeliest, given the tokens before it."""
        self._refresh()
        self.worker.eval()
        shares = {skill: self._share_right(skill, options) for skill, options in CHECKS.items()}
        self.worker.train()
        return shares

    def _share_right(self, skill: str, options: dict[str, Any], count: int = 40) -> float:
        right = 0
        for ids, marks in held_out(self.tokenizer, skill, count, seed=1, **options):
            row, mask = torch.tensor([ids]), torch.tensor([marks])[:, 1:]
            chosen = self.worker(row[:, :-1], mask).argmax(-1)
            right += bool((chosen == row[:, 1:][mask]).all())
        return right / count

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "balance": {n: b for n, b in self.worker.named_buffers() if n.endswith("bias")},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.spent_s, self.num_steps, self.num_tokens),
        }
        partial = self.folder / "checkpoint.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")
        (self.folder / "history.json").write_text(json.dumps(self.history))

    def _resume(self) -> None:
        file = self.folder / "checkpoint.pt"
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.worker.load_state_dict(state["balance"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.spent_s, self.num_steps, self.num_tokens = state["progress"]
        self.history = json.loads((self.folder / "history.json").read_text())


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and not name.startswith(("lm_head", "model.embed_tokens")) and "gate.weight" not in name


def plot(history: list[dict[str, Any]], file: Path) -> None:
    """Plot the loss, smoothed, and the shares of held-out items that are right, over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 8))
    tokens = [record["tokens"] / 1e6 for record in history]
    losses = np.array([record["loss"] for record in history])
    width = max(1, len(losses) // 100)
    above.plot(tokens, losses, alpha=0.25, color="tab:blue")
    above.plot(tokens[width - 1 :], np.convolve(losses, np.ones(width) / width, "valid"), color="tab:blue")
    above.set(ylabel="loss per trained token", yscale="log")
    checked = [record for record in history if "right" in record]
    for skill in checked[-1]["right"] if checked else ():
        below.plot([r["tokens"] / 1e6 for r in checked], [r["right"][skill] for r in checked], "o-", label=skill)
    below.set(xlabel="million tokens", ylabel="held-out items right, teacher-forced", ylim=(0, 1.02))
    below.legend(loc="lower right", fontsize=8)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=190)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, help="go on with this share of the rates, falling from here")
    options = parser.parse_args()
    Training(options.folder, options.minutes, options.seed, options.rate).run()


if __name__ == "__main__":
    main()
