"""Replay of a recorded run: python -m mlx_backend.replay FILE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_backend.api.errors import EngineError
from mlx_backend.factory import create_runner
from mlx_backend.runners.recording import read_config, replay


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a recorded run, print the differences, and return 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m mlx_backend.replay", description=main.__doc__)
    parser.add_argument("file", type=Path, help="what `pippin serve --record` has written")
    file = parser.parse_args(arguments).file
    try:
        runner = create_runner(read_config(file))
        runner.load(lambda progress: None)
        differences = list(replay(file, runner))
    except (OSError, ValueError, KeyError, TypeError, EngineError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    for each in differences:
        print(f"line {each.line}: recorded {each.recorded}, replayed {each.replayed}")
    print(f"{len(differences)} calls gave something else")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
