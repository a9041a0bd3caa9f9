"""Question of `pippin plan` (model, machines, users) and the planner's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.factory import read_shape
from mlx_backend.planning.machines import Machine, UnknownMachine, find_machine, this_machine
from mlx_backend.planning.planner import Plan, build_plan
from mlx_backend.planning.ranks_plan import Choice
from server import pocket
from server.config import ConfigError
from server.plan import numbers
from server.plan_ranks import plan_ranks
from server.profiles import Profile, find_profile
from server.profiles.planning import choose_file, limit_bytes, plan_profile, raised_note


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The command's options; None: not given."""

    model: str
    machine: str | None = None
    count: int | None = None
    bits: int | None = None
    group_size: int = 64
    kv_bits: int | None = None
    kv_group_size: int | None = None
    users: str = "1"
    context: int | None = None
    budget_bytes: int | None = None
    parallel: str | None = None
    split: str | None = None
    link: str | None = None


def answer(question: Question) -> Plan | Choice:
    """Return the plan, or for several machines the choice of one. Raises ConfigError."""
    try:
        users = numbers(question.users)
    except ValueError:
        raise ConfigError(f"--users {question.users!r} must be comma-separated whole numbers from 1") from None
    profile = find_profile(question.model)
    try:
        if profile is not None:
            return _of_profile(question, profile, users)
        machine = machine_of(question.machine)
        kv_cache = KVCacheConfig(bits=question.kv_bits, group_size=question.kv_group_size)
        shipped = choose_file(question.model, machine, kv_cache)
        source = str(shipped or (pocket.folder() if pocket.is_meant(question.model) else question.model))
        if question.count is not None and question.count > 1:
            return _over_ranks(question, source, machine, kv_cache, question.count, users)
        _refuse_ranks(question)
        shape, caches = read_shape(source, question.bits, question.group_size)
        return build_plan(
            shape,
            caches,
            machine,
            kv_cache,
            users=users,
            context=question.context,
            budget_bytes=question.budget_bytes,
        )
    except (ModelLoadError, ValueError) as error:
        raise ConfigError(str(error)) from None


def _of_profile(question: Question, profile: Profile, users: Sequence[int]) -> Plan | Choice:
    machine = machine_of(question.machine or profile.machine)
    kv_cache = KVCacheConfig(bits=question.kv_bits or profile.kv_bits, group_size=question.kv_group_size)
    profile = replace(profile, num_machines=question.count or profile.num_machines)
    if profile.num_machines == 1:
        _refuse_ranks(question)
        return plan_profile(
            profile,
            machine,
            weights=(question.bits, question.group_size),
            kv_cache=kv_cache,
            users=users,
            context=question.context,
            budget_bytes=question.budget_bytes,
        )
    note = None
    if question.budget_bytes is None:
        note = raised_note(profile, machine)
        question = replace(question, budget_bytes=limit_bytes(profile, machine))
    return _over_ranks(question, str(profile.model_file), machine, kv_cache, profile.num_machines, users, note)


def _over_ranks(
    question: Question,
    source: str,
    machine: Machine,
    kv_cache: KVCacheConfig,
    count: int,
    users: Sequence[int],
    note: str | None = None,
) -> Choice:
    return plan_ranks(
        source,
        machine,
        kv_cache,
        count,
        parallel=question.parallel,
        split=question.split,
        link=question.link,
        weights=(question.bits, question.group_size),
        note=note,
        users=users,
        context=question.context,
        budget_bytes=question.budget_bytes,
    )


def _refuse_ranks(question: Question) -> None:
    given = [f"--{name}" for name in ("parallel", "split", "link") if getattr(question, name) is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: only for several machines; set their number with --count")


def name_of(model: str) -> str:
    """Return a model's name: that of its folder, or of a file not called config.json."""
    path = Path(model)
    if path.is_file() and path.name != "config.json":
        return path.stem
    return (path.resolve().name if path.is_dir() else path.resolve().parent.name if path.is_file() else "") or model


def machine_of(name: str | None) -> Machine:
    """Return the machine with this id, or this machine. Raises ConfigError."""
    try:
        found = find_machine(name) if name is not None else this_machine()
    except UnknownMachine as error:
        raise ConfigError(str(error)) from None
    if found is None:
        raise ConfigError("the memory of this machine is unknown; name a machine with --machine (see --machines)")
    return found
