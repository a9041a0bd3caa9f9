"""Facts that a rank finds while it loads its share, as JSON values, and their combination for the group. No MLX.

All ranks must agree on the facts that their calls depend on. What fits may differ: rank 0 gets the whole budget of
every other rank, not a number, and admits by all of them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_backend.api.interface import MemoryReport, ModelInfo, RankInfo, RanksInfo
from mlx_backend.core.blocks import BlockStore
from mlx_backend.core.membership import Membership
from mlx_backend.planning.admission import Budget, BudgetFields
from mlx_backend.ranks.addresses import LOOPBACK

_COMPARED = ("is_batched", "vocab_size", "embedding", "dequantized_reason", "ungrouped_reason", "pads_chunks")
"""Facts that every rank determines by itself and that must agree."""


def facts(info: ModelInfo, budget: Budget | None, store: BlockStore | None) -> dict[str, Any]:
    """Return the facts of a rank's loaded share."""
    return {
        "compared": {name: repr(getattr(info, name)) for name in _COMPARED},
        "context": info.context_limit,
        "weights": info.weights_bytes,
        "layers": sum(caches.num_layers for caches in info.kv_caches),
        "token": sum(caches.num_layers * caches.bytes_per_token for caches in info.kv_caches),
        "memory": None if info.memory is None else dataclasses.asdict(info.memory),
        "budget": None if budget is None else dataclasses.asdict(budget.fields()),
        "store": None if store is None else {"token": store.bytes_per_token, "state": store.state_bytes},
    }


def differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the differences between another rank's facts and these, a text each."""
    ours, theirs = own["compared"], other["compared"]
    return [f"{name}: {ours[name]} and {theirs.get(name)}" for name in ours if theirs.get(name) != ours[name]]


def read_budget(fields: Mapping[str, Any]) -> Budget:
    """Return the budget of another rank. Raises ValueError."""
    found = read_fields(BudgetFields, fields)
    assert isinstance(found, BudgetFields)
    return Budget.of(found)


def shared_info(info: ModelInfo, ranks: Sequence[Mapping[str, Any]], membership: Membership) -> ModelInfo:
    """Return the info of the model on all ranks, from rank 0's info of its share."""
    context = min(each["context"] for each in ranks)
    memory = fullest_memory(ranks)
    found = dataclasses.replace(
        info,
        context_limit=context,
        memory=memory,
        weights_bytes=info.weights_bytes if memory is None else memory.weights_bytes,
        ranks=group_info(ranks, membership),
    )
    return found if context == info.context_limit else dataclasses.replace(found, context_limited_by="memory")


def fullest_memory(ranks: Sequence[Mapping[str, Any]]) -> MemoryReport | None:
    """Return the memory division of the rank with the least room for requests; None if nothing bounds it."""
    reports = [read_fields(MemoryReport, each["memory"]) for each in ranks if each["memory"] is not None]
    return min(reports, key=lambda report: report.free_bytes, default=None)


def group_info(ranks: Sequence[Mapping[str, Any]], membership: Membership) -> RanksInfo:
    """Return the info of a group from the facts of its ranks, in their order."""
    found = []
    for rank, each in enumerate(ranks):
        memory = None if each["memory"] is None else read_fields(MemoryReport, each["memory"])
        found.append(
            RankInfo(
                rank=rank,
                num_layers=each["layers"],
                weights_bytes=each["weights"],
                kv_bytes_per_token=each["token"],
                limit_bytes=None if memory is None else memory.limit_bytes,
                free_bytes=None if memory is None else memory.free_bytes,
            )
        )
    return RanksInfo(parallel=membership.parallel, link=describe_link(membership), ranks=tuple(found))


def describe_link(membership: Membership) -> str:
    """Return the transport of a group's collectives, in words."""
    if membership.rdma:
        return "RDMA (MLX's jaccl)"
    is_local = all(address.rpartition(":")[0] == LOOPBACK for address in membership.addresses)
    each = "" if not membership.further else f", {len(membership.addresses_of(0))} connections"
    return f"{'loopback' if is_local else 'TCP'} (MLX's ring{each})"


def read_fields(kind: Any, value: Any) -> Any:
    """Return a value of the annotated type `kind` from `dataclasses.asdict` of one. Raises ValueError."""
    try:
        return _read(kind, value)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"facts of another version ({error})") from error


def _read(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _read(hints[name], each) for name, each in value.items()})
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        (inner,) = (each for each in arguments if each is not type(None))
        return None if value is None else _read(inner, value)
    if typing.get_origin(kind) is tuple:
        return tuple(_read(arguments[0], each) for each in value)
    if not isinstance(value, int | float if kind is float else kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
