"""`pippin plan --count`: one model over several machines. From flags to a plan, and a plan as a table or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from rich.console import Console
from rich.table import Table

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.factory import SplitModel, open_split_model, read_shape
from mlx_backend.planning.links import Link, default_link, find_link, has_thunderbolt_5
from mlx_backend.planning.machines import Machine
from mlx_backend.planning.memory import ModelShape
from mlx_backend.planning.planner import CHAT_TOKENS, MOST_CHATS
from mlx_backend.planning.ranks import (
    PARALLELS,
    Parallel,
    RankShapes,
    Splits,
    balanced_split,
    parse_split,
    possibilities,
)
from mlx_backend.planning.ranks_plan import Choice, RanksPlan, RanksRow, build_ranks_plan, choose, compare_split
from server.plan_words import count_of, duration, gigabytes, speed_range


def plan_ranks(
    model: str,
    machine: Machine,
    kv_cache: KVCacheConfig,
    count: int,
    *,
    parallel: str | None = None,
    split: str | None = None,
    link: str | None = None,
    weights: tuple[int | None, int] = (None, 64),
    note: str | None = None,
    users: Sequence[int] = (1, 2, 4, 8),
    context: int | None = None,
    budget_bytes: int | None = None,
) -> Choice:
    """Return the plan of a model over `count` such machines: as requested, or the better way for the link.

    `note`: advice that comes first. The last three parameters are those of build_ranks_plan. Raises ModelLoadError and
    ValueError.
    """
    chosen = _link(machine, link)
    if parallel is not None and parallel not in PARALLELS:
        raise ValueError(f"--parallel {parallel!r} must be one of {', '.join(PARALLELS)}")
    counts = None if split is None else parse_split(split)
    opened, whole = _read(model, *weights)

    def build(ranks: RankShapes) -> RanksPlan:
        return build_ranks_plan(
            whole, ranks, machine, chosen, kv_cache, users=users, context=context, budget_bytes=budget_bytes
        )

    def planned(how: Parallel) -> RanksPlan:
        found = build(opened.ranks(how, count, counts))
        if how == "tensor" or counts is not None or not opened.splits.has_uneven_pipeline:
            return found
        balanced = opened.ranks(how, count, balanced_split(opened.splits.layer_bytes, count))
        other = compare_split(found, build(balanced))
        return found if other is None else replace(found, advice=(other, *found.advice))

    choice = _chosen(planned, "pipeline" if parallel is None and split is not None else parallel, opened.splits, count)
    advice = choice.plan.advice if note is None else (note, *choice.plan.advice)
    return replace(choice, plan=replace(choice.plan, advice=advice))


@cache
def _read(model: str, bits: int | None, group_size: int) -> tuple[SplitModel, tuple[ModelShape, Any]]:
    """Return a split model, and the same model whole."""
    return open_split_model(model, bits, group_size), read_shape(model, bits, group_size)


def _chosen(planned: Callable[[Parallel], RanksPlan], parallel: str | None, splits: Splits, count: int) -> Choice:
    if parallel is not None:
        return Choice(planned("tensor" if parallel == "tensor" else "pipeline"), "")
    plans = {how: _planned_or_refusal(planned, how) for how in PARALLELS}
    if all(isinstance(plan, str) for plan in plans.values()):
        what = f"mlx-lm cannot split this {splits.model_type} model over {count} ranks"
        raise ModelLoadError(f"{what}; possible: {possibilities(splits)}")
    return choose(plans["tensor"], plans["pipeline"])


def _planned_or_refusal(planned: Callable[[Parallel], RanksPlan], how: Parallel) -> RanksPlan | str:
    try:
        return planned(how)
    except ModelLoadError as error:
        return str(error)


def _link(machine: Machine, name: str | None) -> Link:
    if name is None:
        return default_link(machine)
    link = find_link(name)
    if link.id == "tb5" and has_thunderbolt_5(machine) is False:
        raise ValueError(f"{machine.name} has no Thunderbolt 5; use --link tb4, 10gbe or 1gbe")
    return link


# --- for people


def show(choice: Choice, name: str, console: Console | None = None) -> None:
    """Print the plan as text."""
    out = console or Console(highlight=False)
    plan = choice.plan
    for line in _heading(plan, name):
        out.print(line, markup=False)
    out.print(_ranks_table(plan))
    out.print(_users_table(plan))
    for line in _footer(choice):
        out.print(line, markup=False)


def _heading(plan: RanksPlan, name: str) -> Iterator[str]:
    shape, ranks, machine, link = plan.whole, plan.ranks, plan.machine, plan.link
    active = f", {count_of(shape.active_parameters)} active per token" if shape.is_moe else ""
    yield f"{name}: {shape.model_type}, {count_of(shape.num_parameters)} parameters{active}"
    how = "tensor parallel" if ranks.parallel == "tensor" else f"a pipeline of {'+'.join(map(str, ranks.split))} layers"
    yield f"{ranks.size} ranks, {how}, over {link.name} (MLX's {link.backend})"
    limit = f"{gigabytes(plan.budget_bytes)} GB for the model"
    basis = f" ({machine.gpu_limit_basis})" if plan.budget_bytes == machine.gpu_limit_bytes else ""
    yield f"each {machine.name}: {limit}{basis}, {gigabytes(plan.reserve_bytes)} GB of it in reserve"


def _ranks_table(plan: RanksPlan) -> Table:
    """Return the share of each rank, with the most context of one user."""
    table = _new_table("rank", "layers", "weights GB", "KV bytes/token", "KV GB", "prefill GB", "all GB")
    memories = plan.rows[0].memories
    for rank, caches in zip(plan.ranks.ranks, plan.caches, strict=True):
        cells = [str(rank.rank), str(rank.num_layers), gigabytes(rank.shape.weights_bytes)]
        cells.append(f"{sum(cache.bytes_per_token for cache in caches):,}")
        if memories:
            memory = memories[rank.rank]
            sizes = (memory.kv_bytes, memory.transient_bytes, memory.total_bytes)
            cells += [gigabytes(size) for size in sizes]
        table.add_row(*cells)
    return table


def _users_table(plan: RanksPlan) -> Table:
    table = _new_table("users", "context", "step", "tok/s", "prefill tok/s", "TTFT")
    for row in plan.rows:
        table.add_row(*_cells(row))
    return table


def _new_table(*headers: str) -> Table:
    table = Table(*headers, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.justify = "right"
    return table


def _cells(row: RanksRow) -> list[str]:
    if not row.memories:
        return [str(row.num_users), "does not fit"]
    cells = [str(row.num_users), f"{row.context:,}", str(row.memories[0].prefill_step)]
    cells += [speed_range(row.decode), speed_range(row.prefill)]
    return [*cells, "" if row.ttft_s is None else duration(row.ttft_s)]


def _footer(choice: Choice) -> Iterator[str]:
    plan = choice.plan
    if plan.num_chats:
        at_once = f"at least {plan.num_chats}" if plan.num_chats == MOST_CHATS else str(plan.num_chats)
        yield f"Of typical length, {CHAT_TOKENS:,} tokens each, {at_once} chats fit every rank at once."
    sent, seconds = sum(message.num_bytes for message in plan.messages), plan.messages_s
    yield (
        f"A token takes {len(plan.messages)} messages of {sent:,} bytes in total: {1e3 * seconds.low:.1f}-"
        f"{1e3 * seconds.high:.1f} ms. {plan.link.basis[0].upper()}{plan.link.basis[1:]}."
    )
    if choice.reason:
        yield f"-> {choice.reason}."
    for line in plan.advice:
        yield f"-> {line}"
    if any(row.decode is not None for row in plan.rows):
        yield "Speeds are estimates, not measured over several machines; docs/ranks.md explains their basis."


# --- for programs


def to_document(choice: Choice, name: str) -> dict[str, Any]:
    """Return the plan as a JSON document; bytes, seconds, tokens per second."""
    plan = choice.plan
    return {
        "model": name,
        "fits": plan.fits,
        "parallel": plan.ranks.parallel,
        "reason": choice.reason,
        "count": plan.ranks.size,
        "split": list(plan.ranks.split) if plan.ranks.parallel == "pipeline" else None,
        "link": asdict(plan.link),
        "machine": asdict(plan.machine),
        "shape": asdict(plan.whole),
        "budget_bytes": plan.budget_bytes,
        "reserve_bytes": plan.reserve_bytes,
        "kv_cache": asdict(plan.kv_cache),
        "num_chats": plan.num_chats,
        "ranks": [
            {
                "rank": rank.rank,
                "num_layers": rank.num_layers,
                "weights_bytes": rank.shape.weights_bytes,
                "kv_bytes_per_token": sum(cache.bytes_per_token for cache in caches),
            }
            for rank, caches in zip(plan.ranks.ranks, plan.caches, strict=True)
        ],
        "messages": {
            "num_per_token": len(plan.messages),
            "bytes_per_token": sum(message.num_bytes for message in plan.messages),
            "seconds_per_token": asdict(plan.messages_s),
        },
        "users": [_row_document(row) for row in plan.rows],
        "decode_tokens_per_s": {how.ranks.parallel: _speed(how) for how in (plan, choice.other) if how is not None},
        "advice": list(plan.advice),
    }


def _speed(plan: RanksPlan) -> dict[str, float] | None:
    return None if plan.compared is None else asdict(plan.compared)


def _row_document(row: RanksRow) -> dict[str, Any]:
    return {
        "num_users": row.num_users,
        "context": row.context,
        "memory": [{**asdict(memory), "total_bytes": memory.total_bytes} for memory in row.memories] or None,
        "decode_tokens_per_s": None if row.decode is None else asdict(row.decode),
        "prefill_tokens_per_s": None if row.prefill is None else asdict(row.prefill),
        "ttft_s": row.ttft_s,
    }
