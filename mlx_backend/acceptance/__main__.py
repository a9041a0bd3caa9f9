"""Run one step in this process: its name is the argument, its options are JSON on standard input.

Writes one JSON object per line to standard output: {"progress": TEXT} during the step, {"outcome": {...}} at the end.
SIGTERM ends it like an error: loaded models are released, and unwired, first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

from mlx_backend.acceptance.checks import Options, Outcome
from mlx_backend.api.errors import EngineError

STEPS = {
    "device": ("device", "run"),
    "parity": ("parity", "run"),
    "attention": ("attention", "run"),
    "load": ("speed", "load"),
    "prefill": ("speed", "prefill"),
    "decode": ("speed", "decode"),
    "batch": ("speed", "batch"),
    "short_decode": ("speed", "short_decode"),
    "out_of_memory": ("limits", "run"),
    "soak": ("soak", "run"),
}
"""(module, function) of each; a module is imported only by its step."""


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps prints of libraries out of the answers
    signal.signal(signal.SIGTERM, _end)

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=answers, flush=True)

    module, function = STEPS[sys.argv[1]]
    options = Options.read(json.load(sys.stdin))
    try:
        run: Callable[..., Outcome] = getattr(import_module(f"mlx_backend.acceptance.{module}"), function)
        outcome = run(options, lambda text: say({"progress": text}))
    except ImportError as error:
        outcome = Outcome(skipped=f"needs mlx and mlx-lm ({error})")
    except (EngineError, RuntimeError, ValueError) as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return 1
    say({"outcome": outcome.to_json()})
    return 0


def _end(*_: object) -> NoReturn:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
