"""Expected gain of drafts on another machine, by the speed model of `pippin plan`.

python -m bench.speculation_plan [--model deepseek-r1] [--machine m3-ultra-512] [--users 1,2,4]

A step that verifies k drafts of each user reads the weights once, the experts that any of its tokens chooses, and each
user's KV once. Multi-token prediction also reads its own layer and the head for every draft: one of the layers' share
of the active weights, and the head in 4 bits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mlx_backend.api.interface import SimulateConfig
from mlx_backend.factory import read_shape
from mlx_backend.kv_cache.plan import plan_caches
from mlx_backend.planning.drafts import plan_verification
from mlx_backend.planning.machines import find_machine
from server.config import Config
from server.simulation import simulated

SHARES = (0.5, 0.7, 0.85, 0.95)
_BYTES_PER_WEIGHT = 0.5625


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.speculation_plan")
    parser.add_argument("--model", default="deepseek-r1")
    parser.add_argument("--machine", default="m3-ultra-512")
    parser.add_argument("--users", default="1,2,4")
    arguments = parser.parse_args(argv)
    simulation = SimulateConfig(machine=arguments.machine, model=arguments.model)
    config = simulated(Config(backend="mock", simulate=simulation))[1]
    shape, caches = read_shape(config.model_path)
    machine, plans = find_machine(arguments.machine), plan_caches(caches, config.kv_cache)
    own = 1 / shape.num_layers + shape.vocab_size * shape.hidden_size * _BYTES_PER_WEIGHT / shape.active_bytes
    for users in map(int, arguments.users.split(",")):
        print(f"\n{users} at once\n| k | step | " + " | ".join(f"p = {p:.2f}" for p in SHARES) + " | MTP, p = 0.85 |")
        print("| ---: | ---: |" + " ---: |" * (len(SHARES) + 1))
        for each in plan_verification(shape, plans, machine, users):
            k, gains = each.num_drafts, " | ".join(f"{each.gain(share):.2f}" for share in SHARES)
            mtp = sum(0.85**place for place in range(k + 1)) / (each.step_ratio + k * own)
            print(f"| {k} | {each.step_ratio:.2f} | {gains} | {mtp:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
