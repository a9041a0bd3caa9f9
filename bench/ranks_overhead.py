"""The cost of two ranks on loopback, beside one process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.ranks_engine import measure
from server import pocket


def run(options: argparse.Namespace) -> tuple[Any, bool]:
    """Print a line for each number of rows; return every figure."""
    folder = Path(str(pocket.folder()))

    found = {"alone": measure(folder, "tensor", 1, "pace"), "two ranks, tensor": measure(folder, "tensor", 2, "pace")}
    print("| processes | rows | messages a step | to send one, us | a step, us | tok/s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, each in found.items():
        for row in each:
            cells = [
                name,
                f"{row['num_rows']}",
                f"{row['messages_per_step']:.2f}",
                f"{row['tell_us_per_message']:.0f}",
                f"{row['step_us']:.0f}",
                f"{row['tok_s']:.1f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
    return found, True
