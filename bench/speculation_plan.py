"""What drafts should win on a machine that is not at hand, by the model of speed that `pippin plan` has.

python -m bench.speculation_plan [--model deepseek-r1] [--machine m3-ultra-512] [--context 8192] [--users 1,2,4]

A step that verifies k drafts of each user reads the weights once, the experts that any of its tokens chooses, and each
user's KV once. Tokens a step: 1 + p + p**2 + … + p**k, where each draft comes true with the share p. Multi-token
prediction also reads its own layer and the head for every draft: 1/61 of the active weights, and the head.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mlx_backend.api.interface import SimulateConfig
from mlx_backend.factory import read_shape
from mlx_backend.kv_cache.plan import plan_caches
from mlx_backend.planning.machines import find_machine
from mlx_backend.planning.memory import ModelShape
from mlx_backend.planning.planner import decode_speed
from server.config import Config
from server.simulation import simulated

SHARES = (0.5, 0.7, 0.85, 0.95)
MOST = 8


def head_s(shape: ModelShape, step_s: float) -> float:
    """Seconds of the layer and the head that one draft of multi-token prediction reads, in proportion to a step."""
    head = shape.vocab_size * shape.hidden_size * 0.5625  # 4 bits and their scales
    return step_s * (1 / shape.num_layers + head / shape.active_bytes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.speculation_plan")
    parser.add_argument("--model", default="deepseek-r1")
    parser.add_argument("--machine", default="m3-ultra-512")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--users", default="1,2,4")
    arguments = parser.parse_args(argv)
    simulation = SimulateConfig(machine=arguments.machine, model=arguments.model)
    config = simulated(Config(backend="mock", simulate=simulation))[1]
    shape, caches = read_shape(config.model_path)
    machine = find_machine(arguments.machine)
    plans = plan_caches(caches, config.kv_cache, MOST)

    def step_s(users: int, drafts: int) -> float:
        found = decode_speed(shape, plans, machine, arguments.context, users, num_drafts=users * drafts)
        assert found is not None, "the machine's speed is known"
        return 1.0 / found.value

    for users in map(int, arguments.users.split(",")):
        plain_s = step_s(users, 0)
        print(f"\n{users} at {arguments.context} tokens: {1 / plain_s:.1f} tok/s each without drafts")
        print("| k | step, of a plain one | " + " | ".join(f"p = {p:.2f}" for p in SHARES) + " | MTP, p = 0.85 |")
        print("| ---: | ---: |" + " ---: |" * (len(SHARES) + 1))
        for k in range(1, MOST + 1):
            ratio = step_s(users, k) / plain_s
            gains = [sum(p**j for j in range(k + 1)) / ratio for p in SHARES]
            own = k * head_s(shape, plain_s) / plain_s
            mtp = sum(0.85**j for j in range(k + 1)) / (ratio + own)
            print(f"| {k} | {ratio:.2f} | " + " | ".join(f"{gain:.2f}" for gain in gains) + f" | {mtp:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
