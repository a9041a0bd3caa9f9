"""Output of `pippin convert`: the planned model, by kind of tensor and on a machine; the shipped recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlx_backend.api.interface import KVCacheConfig
from mlx_backend.conversion import entry
from mlx_backend.conversion.entry import Prepared
from mlx_backend.planning.machines import Machine
from mlx_backend.planning.planner import Plan, build_plan
from server import plan as plans
from server.plan_words import count_of


def show(
    prepared: Prepared, out: Path, machine: Machine | None, context: int | None, num_users: int, *, as_json: bool
) -> None:
    """Print the planned model. Raises ConversionError."""
    planned = _plan(prepared, machine, context, num_users)
    if as_json:
        plans.print_json(_document(prepared, out, planned))
        return
    console, plan = Console(highlight=False), prepared.plan
    console.print(
        f"{prepared.origin} -> {out}, by {prepared.recipe}, scales by {prepared.scales}", markup=False, soft_wrap=True
    )
    console.print(_table(prepared))
    size = f"{plan.weight_file_bytes:,} bytes in {_files(len(plan.shards))}"
    console.print(
        f"{count_of(plan.num_weights)} weights, {plan.bits_per_weight:.2f} bits each: {size}",
        markup=False,
        soft_wrap=True,
    )
    for note in plan.notes:
        console.print(f"-> {note}", markup=False, soft_wrap=True)
    if planned is not None:
        plans.show(planned, out.name, console)


def _plan(prepared: Prepared, machine: Machine | None, context: int | None, num_users: int) -> Plan | None:
    if machine is None:
        return None
    shape, caches = prepared.read_shape()
    return build_plan(shape, caches, machine, KVCacheConfig(), users=(num_users,), context=context)


def _table(prepared: Prepared) -> Table:
    table = Table(
        "tensors", "weights", "bytes", "bits each", "stored as", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for column in table.columns[1:4]:
        column.justify = "right"
    table.columns[4].overflow = "fold"
    for kind, size in prepared.sizes.items():
        bits = 8 * size.num_bytes / max(1, size.num_weights)
        numbers = (count_of(size.num_weights), entry.write_bytes(size.num_bytes), f"{bits:.2f}")
        table.add_row(kind, *numbers, _formats(dict(size.formats)))
    return table


def _files(number: int) -> str:
    return "1 weight file" if number == 1 else f"{number} weight files"


def _formats(formats: dict[str, int]) -> str:
    """Format as `4 bits g64 (80 %), 6 bits g64 (20 %)`; a single format has no share."""
    total = max(1, sum(formats.values()))
    ordered = sorted(formats.items(), key=lambda each: -each[1])
    if len(ordered) == 1:
        return ordered[0][0]
    return ", ".join(f"{name} ({100 * number / total:.0f} %)" for name, number in ordered)


def _document(prepared: Prepared, out: Path, planned: Plan | None) -> dict[str, Any]:
    plan = prepared.plan
    return {
        "source": prepared.origin,
        "out": str(out),
        "recipe": prepared.recipe,
        "scales": prepared.scales,
        "num_weights": plan.num_weights,
        "bits_per_weight": plan.bits_per_weight,
        "tensor_bytes": plan.tensor_bytes,
        "weight_file_bytes": plan.weight_file_bytes,
        "num_weight_files": len(plan.shards),
        "sizes": {
            kind: {"num_weights": size.num_weights, "num_bytes": size.num_bytes, "formats": dict(size.formats)}
            for kind, size in prepared.sizes.items()
        },
        "formats": prepared.formats(),
        "notes": list(plan.notes),
        "plan": None if planned is None else plans.to_document(planned, out.name),
    }


def show_done(done: Any, out: Path) -> None:
    """Print the result of a finished conversion."""
    if not done.is_new:
        print(f"{out} was converted so before; nothing is left to do")
        return
    resumed = f", {done.resumed_files} of them by an earlier try" if done.resumed_files else ""
    print(f"{out} is whole: {done.weight_file_bytes:,} bytes of weights{resumed}\nserve it: pippin serve {out}")


def save_recipe(prepared: Prepared, file: Path) -> None:
    """Write the chosen formats as a recipe. Raises ConversionError."""
    import yaml

    text = yaml.safe_dump(prepared.to_recipe(), sort_keys=False, default_flow_style=None, width=118)
    try:
        file.expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise entry.ConversionError(f"{file} cannot be written ({error.strerror or error})") from None


def show_recipes() -> None:
    """Print the shipped recipes."""
    table = Table("recipe", "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[1].overflow = "fold"
    for recipe in entry.find_recipes():
        table.add_row(recipe.name, recipe.description)
    Console(highlight=False, markup=False).print(table)
