"""`pippin plan`: a plan as a table, as JSON, as a plot; the profiles as a table. Output only, no planning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlx_backend.planning.drafts import SHARES, Verification, gain_range, plan_verification
from mlx_backend.planning.machines import Machine, load_machines
from mlx_backend.planning.memory import Memory
from mlx_backend.planning.planner import CHAT_TOKENS, MOST_CHATS, Plan, Row, memory_by_context
from mlx_backend.planning.speed import load_anchors, residuals
from server.plan_words import count_of, duration, gigabytes, speed_range
from server.profiles.planning import SHORT_CONTEXT, Standing

_PLOTTED_CONTEXTS = 64


def show(plan: Plan, name: str, console: Console | None = None) -> None:
    """Print a plan as text."""
    out = console or Console(highlight=False)
    for line in _heading(plan, name):
        out.print(line, markup=False)
    out.print(_table(plan))
    if len(plan.kv_choices) > 1:
        out.print(_kv_line(plan), markup=False)
    if plan.num_chats:
        out.print(_chats_line(plan), markup=False)
    verifications = plan_verification(plan.shape, plan.caches, plan.machine)
    if verifications and plan.fits:
        out.print(_speculation_line(verifications), markup=False)
    for line in plan.advice:
        out.print(f"-> {line}", markup=False)
    if any(row.decode is not None for row in plan.rows):
        out.print("Speeds are estimates; each range reflects the spread of the published measurements behind it.")


def to_document(plan: Plan, name: str) -> dict[str, Any]:
    """Return the plan as a JSON document; bytes, seconds, tokens per second."""
    return {
        "model": name,
        "fits": plan.fits,
        "shape": asdict(plan.shape),
        "machine": asdict(plan.machine),
        "budget_bytes": plan.budget_bytes,
        "reserve_bytes": plan.reserve_bytes,
        "kv_cache": asdict(plan.kv_cache),
        "kv_bytes_per_token": sum(cache.bytes_per_token for cache in plan.caches),
        "num_chats": plan.num_chats,
        "users": [_row_document(row) for row in plan.rows],
        "kv_choices": [asdict(choice) for choice in plan.kv_choices],
        "speculation": [
            {**asdict(each), "most_ratio": each.most_ratio, "gains": {str(share): each.gain(share) for share in SHARES}}
            for each in plan_verification(plan.shape, plan.caches, plan.machine)
        ],
        "advice": list(plan.advice),
    }


def draw(plan: Plan, name: str, file: Path) -> None:
    """Plot memory against context, for one user and the most users of the plan, as PNG or SVG. Raises ImportError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    longest = plan.shape.context_length
    contexts = sorted({max(1, longest * i // _PLOTTED_CONTEXTS) for i in range(1, _PLOTTED_CONTEXTS + 1)})
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    memories = memory_by_context(plan, contexts)
    parts = {
        "weights": [m.weights_bytes for m in memories],
        "reserve": [m.reserve_bytes for m in memories],
        "KV cache, 1 user": [m.kv_bytes for m in memories],
        "prefill": [m.transient_bytes for m in memories],
    }
    axes.stackplot(contexts, [[each / 1e9 for each in part] for part in parts.values()], labels=list(parts), alpha=0.8)
    most = max(row.num_users for row in plan.rows)
    if most > 1:
        totals = [m.total_bytes / 1e9 for m in memory_by_context(plan, contexts, most)]
        axes.plot(contexts, totals, "k--", label=f"total, {most} users")
    axes.axhline(plan.budget_bytes / 1e9, color="tab:red", label="GPU limit")
    axes.axhline(plan.machine.memory_bytes / 1e9, color="tab:gray", label="machine memory")
    axes.set(xlabel="context, tokens", ylabel="GB", title=f"{name} on {plan.machine.name}", xlim=(0, longest))
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def show_machines(console: Console | None = None) -> None:
    """Print the table of known machines."""
    table = Table("id", "chip", "GPU cores", "memory, GB", "GB/s", "GPU limit, GB", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for machine in load_machines():
        table.add_row(*_machine_cells(machine))
    (console or Console(highlight=False)).print(table)


def show_anchors(console: Console | None = None) -> None:
    """Print the published speeds that the estimates are fitted to, and the error of each estimate."""
    columns = ("measurement", "machine", "context", "", "tok/s", "estimate", "error", "source")
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[2:3] + table.columns[4:7]:
        column.justify = "right"
    anchors = {anchor.id: anchor for anchor in load_anchors()}
    for row in residuals():
        anchor = anchors[row.name]
        speeds = (row.quantity, f"{row.measured:,.1f}", f"{row.predicted:,.1f}", f"{row.error:+.0%}")
        table.add_row(row.name, anchor.machine.id, f"{anchor.context_tokens:,}", *speeds, row.source)
    (console or Console(highlight=False)).print(table)


def show_profiles(standings: Sequence[Standing], console: Console | None = None) -> None:
    """Print the shipped profiles on one machine, in the given order."""
    out = console or Console(highlight=False)
    machine = standings[0].plan.machine
    limit = f"{gigabytes(machine.gpu_limit_bytes)} GB for the model"
    out.print(f"{machine.name}: {limit} ({machine.gpu_limit_basis})", markup=False)
    table = Table("profile", "weights", "context", "tok/s", "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    for column in table.columns[1:4]:
        column.justify = "right"
    for standing in standings:
        context = "does not fit" if standing.context is None else f"{standing.context:,}"
        weights = gigabytes(standing.plan.shape.weights_bytes)
        table.add_row(standing.profile.name, weights, context, speed_range(standing.decode), _note(standing))
    out.print(table)
    for line in _legend(standings):
        out.print(line, markup=False)


def _legend(standings: Sequence[Standing]) -> Iterator[str]:
    yield f"Weights in GB; context for one user; estimated speed at {SHORT_CONTEXT:,} tokens."
    if any(standing.profile.num_machines > 1 for standing in standings):
        yield "2 machines: weights on each; pippin plan PROFILE shows every rank, and docs/ranks.md how to serve it."
    if any(standing.raised_limit_mb is not None for standing in standings):
        yield "limit raised: raise it first; pippin plan PROFILE shows the command."


def profiles_document(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return the profiles as a JSON document."""
    return [
        {
            "profile": standing.profile.name,
            "config_file": standing.profile.config_file,
            "machine": standing.plan.machine.id,
            "num_machines": standing.profile.num_machines,
            "fits": standing.context is not None,
            "weights_bytes": standing.plan.shape.weights_bytes,
            "context": standing.context,
            "decode_tokens_per_s": None if standing.decode is None else asdict(standing.decode),
            "wired_limit_mb": standing.raised_limit_mb,
            "note": _note(standing),
        }
        for standing in standings
    ]


def _note(standing: Standing) -> str:
    plan, count = standing.plan, standing.profile.num_machines
    notes = [] if count == 1 else [f"{count} machines"]
    if standing.raised_limit_mb is not None:
        notes.append("limit raised")
    if standing.context is None:
        notes.append(f"{gigabytes(max(0, plan.budget_bytes - plan.reserve_bytes))} GB free")
    return "; ".join(notes)


def _machine_cells(machine: Machine) -> tuple[str, ...]:
    sizes = (f"{machine.memory_bytes // 2**30}", f"{machine.bandwidth / 1e9:,.0f}")
    return (machine.id, machine.chip, str(machine.gpu_cores), *sizes, f"{machine.gpu_limit_bytes / 1e9:,.0f}")


def _heading(plan: Plan, name: str) -> Iterator[str]:
    shape, machine = plan.shape, plan.machine
    active = f", {count_of(shape.active_parameters)} active per token" if shape.is_moe else ""
    yield f"{name}: {shape.model_type}, {count_of(shape.num_parameters)} parameters{active}"
    per_token = sum(cache.bytes_per_token for cache in plan.caches)
    held = "in full precision" if not plan.kv_cache.is_quantized else "quantized"
    yield (
        f"weights {gigabytes(shape.weights_bytes)} GB, KV cache {per_token:,} bytes per token {held}, "
        f"context up to {shape.context_length:,} tokens"
    )
    limit = f"{gigabytes(plan.budget_bytes)} GB for the model"
    basis = f" ({machine.gpu_limit_basis})" if plan.budget_bytes == machine.gpu_limit_bytes else ""
    yield f"{machine.name}: {limit}{basis}, {gigabytes(plan.reserve_bytes)} GB of it in reserve"


def _table(plan: Plan) -> Table:
    headers = ("users", "context", "KV GB", "prefill GB", "step", "all GB")
    speeds = ("tok/s", "prefill tok/s", "TTFT")
    table = Table(*headers, *speeds, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.justify = "right"
    for row in plan.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    if row.memory is None:
        return [str(row.num_users), "does not fit", *[""] * 7]
    memory = row.memory
    cells = [str(row.num_users), f"{memory.context:,}", gigabytes(memory.kv_bytes), gigabytes(memory.transient_bytes)]
    cells += [
        str(memory.prefill_step),
        gigabytes(memory.total_bytes),
        speed_range(row.decode),
        speed_range(row.prefill),
    ]
    return [*cells, "" if row.ttft_s is None else duration(row.ttft_s)]


def _kv_line(plan: Plan) -> str:
    told = [
        f"{'full' if choice.bits is None else f'{choice.bits} bits'}: "
        + ("does not fit" if choice.context is None else f"{choice.context:,} tokens")
        for choice in plan.kv_choices
    ]
    return f"Context for one user by KV cache: {'; '.join(told)}"


def _speculation_line(verifications: Sequence[Verification]) -> str:
    numbers = ", ".join(str(each.num_drafts) for each in verifications)
    ratios = ", ".join(f"{each.step_ratio:.1f}-{each.most_ratio:.1f}" for each in verifications)
    low, high = gain_range(verifications)
    return (
        f"Speculation: a step that verifies {numbers} drafts takes {ratios} times a plain step; if {SHARES[0]:.0%} to "
        f"{SHARES[1]:.0%} of them are right, answers are {low:.1f} to {high:.1f} times as fast"
    )


def _chats_line(plan: Plan) -> str:
    at_once = f"at least {plan.num_chats}" if plan.num_chats == MOST_CHATS else str(plan.num_chats)
    chats = "1 chat" if plan.num_chats == 1 else f"{at_once} chats"
    return (
        f"Users above may each fill their context. Of typical length, {CHAT_TOKENS:,} tokens each, {chats} fit at "
        "once: admission uses expected lengths"
    )


def _row_document(row: Row) -> dict[str, Any]:
    memory: Memory | None = row.memory
    return {
        "num_users": row.num_users,
        "memory": None if memory is None else {**asdict(memory), "total_bytes": memory.total_bytes},
        "decode_tokens_per_s": None if row.decode is None else asdict(row.decode),
        "prefill_tokens_per_s": None if row.prefill is None else asdict(row.prefill),
        "ttft_s": row.ttft_s,
    }


def print_json(document: Any) -> None:
    """Print to standard output."""
    print(json.dumps(document, indent=2))


def numbers(text: str) -> Sequence[int]:
    """Parse `1,2,4` as whole numbers from 1. Raises ValueError."""
    found = [int(part) for part in text.split(",")]
    if not found or min(found) < 1:
        raise ValueError(text)
    return found
