"""Plans of the shipped profiles, and their ranking for a machine. Uses the planner; no MLX, no printing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.factory import read_shape
from mlx_backend.planning.machines import Machine, find_machine, highest_gpu_limit
from mlx_backend.planning.memory import ModelShape
from mlx_backend.planning.planner import Plan, build_plan
from mlx_backend.planning.speed import Estimate
from server.profiles import PROFILES, Profile, model_files

SHORT_CONTEXT = 4096
"""Context, in tokens, at which the speeds of profiles are compared."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Fit and speed of a profile on a machine."""

    profile: Profile
    plan: Plan
    """For one user, with all the context that fits."""
    decode: Estimate | None
    """Tokens per second at SHORT_CONTEXT; None if it does not fit or is unknown."""

    @property
    def context(self) -> int | None:
        """Context of one user, in tokens; None if the profile does not fit."""
        memory = self.plan.rows[0].memory
        return None if memory is None else memory.context

    @property
    def raised_limit_mb(self) -> int | None:
        """GPU limit that must be set first, in MiB; None if the plan needs no raised limit."""
        is_raised = self.plan.budget_bytes > self.plan.machine.gpu_limit_bytes
        return self.profile.wired_limit_mb if is_raised else None


def plan_profile(
    profile: Profile,
    machine: Machine,
    *,
    weights: tuple[int | None, int] = (None, 64),
    kv_cache: KVCacheConfig | None = None,
    users: Sequence[int] = (1, 2, 4, 8),
    context: int | None = None,
    budget_bytes: int | None = None,
) -> Plan:
    """Return the plan of a profile's model on a machine, or of the share of each of several such machines.

    `weights`: (bits, group size) that replace the profile's if bits are given; `kv_cache`, `budget_bytes`: likewise.
    Raises ModelLoadError as build_plan does, and if MLX is not installed.
    """
    shape, caches = _read(profile.model_file, *weights)
    plan = plan_together(
        shape,
        caches,
        machine,
        kv_cache or KVCacheConfig(bits=profile.kv_bits),
        profile.num_machines,
        users=users,
        context=context,
        budget_bytes=limit_bytes(profile, machine) if budget_bytes is None else budget_bytes,
    )
    note = None if budget_bytes is not None else raised_note(profile, machine)
    return plan if note is None else replace(plan, advice=(note, *plan.advice))


def raised_note(profile: Profile, machine: Machine) -> str | None:
    """Return how to raise the GPU's limit, if `limit_bytes` exceeds the default."""
    if limit_bytes(profile, machine) <= machine.gpu_limit_bytes:
        return None
    command = f"sudo sysctl iogpu.wired_limit_mb={profile.wired_limit_mb}"
    return f"This assumes a raised limit: {command} (until the next restart)."


def plan_together(
    shape: ModelShape,
    caches: Sequence[Any],
    machine: Machine,
    kv_cache: KVCacheConfig,
    num_machines: int,
    *,
    users: Sequence[int] = (1, 2, 4, 8),
    context: int | None = None,
    budget_bytes: int | None = None,
) -> Plan:
    """Return the plan of each machine's share of a model; shape and caches as returned by read_shape."""
    plan = build_plan(
        share_of(shape, num_machines),
        caches,
        machine,
        kv_cache,
        users=users,
        context=context,
        budget_bytes=budget_bytes,
    )
    if num_machines == 1:
        return plan
    told = (
        f"This is what each of {num_machines} such machines would hold; its speed is not estimated. "
        f"pippin plan --count {num_machines} plans every rank."
    )
    rows = tuple(replace(row, decode=None, prefill=None) for row in plan.rows)  # not measured
    return replace(plan, rows=rows, advice=(told, *plan.advice))


def ranked(machine: Machine) -> list[Standing]:
    """Return every profile: first those that fit, the largest model first, then those that fit on several machines.

    The others come last, those that exceed the machine least first.
    """
    return sorted((_standing(profile, machine) for profile in PROFILES), key=_rank)


def limit_bytes(profile: Profile, machine: Machine) -> int:
    """Return the GPU's default limit, or the profile's raised limit if the machine can spare it."""
    raised = (profile.wired_limit_mb or 0) * 2**20
    is_possible = bool(machine.chip) and raised <= highest_gpu_limit(machine.memory_bytes)
    return max(machine.gpu_limit_bytes, raised) if is_possible else machine.gpu_limit_bytes


def share_of(shape: ModelShape, num_machines: int) -> ModelShape:
    """Return the share of each machine: an even part of the layers' weights, with embedding and output head whole.

    Caches and transients stay whole, so that the share is an upper bound for both ways of dividing a model: by layers,
    or within layers, where every machine has the latent KV cache.
    """
    whole = min(1.0, 2 * shape.vocab_size * shape.hidden_size / shape.num_parameters)
    share = whole + (1.0 - whole) / num_machines
    return replace(
        shape,
        num_parameters=round(share * shape.num_parameters),
        weights_bytes=round(share * shape.weights_bytes),
        active_parameters=round(shape.active_parameters / num_machines),
        active_bytes=round(shape.active_bytes / num_machines),
        routed_active_bytes=round(shape.routed_active_bytes / num_machines),
    )


def choose_file(name: str, machine: Machine, kv_cache: KVCacheConfig) -> Path | None:
    """Return the shipped config.json of this name: of several quantizations the largest that fits, or the smallest.

    None if there is none, or if a file or folder has the name. Raises ModelLoadError.
    """
    files = [] if Path(name).exists() else model_files(name)
    plans = [(build_plan(*_read(file, None, 64), machine, kv_cache, users=(1,)), file) for file in files]
    plans.sort(key=lambda pair: pair[0].shape.weights_bytes)
    fitting = [file for plan, file in plans if plan.fits]
    return fitting[-1] if fitting else plans[0][1] if plans else None


@cache
def _read(file: Path, bits: int | None, group_size: int) -> tuple[ModelShape, tuple[Any, ...]]:
    return read_shape(str(file), bits, group_size)


def _standing(profile: Profile, machine: Machine) -> Standing:
    plan = plan_profile(profile, machine, users=(1,))
    short = plan_profile(profile, machine, users=(1,), context=SHORT_CONTEXT)
    return Standing(profile, plan, short.rows[0].decode)


def _rank(standing: Standing) -> tuple[float, ...]:
    profile, shape = standing.profile, standing.plan.shape
    if standing.context is None:
        return (2, shape.weights_bytes)
    made_for = find_machine(profile.machine).memory_bytes
    is_for_larger = made_for > standing.plan.machine.memory_bytes
    return (profile.num_machines > 1, -shape.num_parameters, -shape.weights_bytes, is_for_larger, -made_for)
