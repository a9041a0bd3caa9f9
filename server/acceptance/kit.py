"""A run of the kit: its steps in order, each recorded before it begins and after it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server import __version__
from server.acceptance.journal import Journal, Past, Result, interrupted, read_past, write_result
from server.acceptance.processes import StepFailed
from server.acceptance.steps import STEPS, KitOptions, Step, choose, judge, skip_reason, to_do

VERSION = 1
"""Version of the result's format."""


class OtherRun(ValueError):
    """The file holds an unfinished run with other options, or something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Access of the kit to the machine; tests substitute it."""

    facts: Callable[[], dict[str, Any]]
    boot: Callable[[], str]
    panics: Callable[[], list[str]]
    run: Callable[[Step, KitOptions, Callable[[str], None]], dict[str, Any]]
    """Returns the outcome of a step. Raises StepFailed."""
    clock: Callable[[], float] = field(default=time.monotonic)


def journal_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.journal")


def run_kit(
    options: KitOptions,
    out: Path,
    machine: Machine,
    report: Callable[[Step, Result], None] = lambda step, result: None,
    *,
    is_fresh: bool = False,
) -> dict[str, Any]:
    """Run the steps without a result, and return the whole result. Raises OtherRun, UnknownStep and OSError."""
    steps = choose(options)
    if not _is_result(out):
        raise OtherRun(f"{out} is there, and is no result of this command; name another file")
    past = Past() if is_fresh else _past(out, options)
    results = dict(past.results)
    journal = Journal(journal_file(out), is_fresh=past.identity is None)
    try:
        journal.write("run", identity=options.identity, at=_now())
        if past.open_step is not None:
            results[past.open_step] = interrupted(past, machine.boot())
            journal.write("end", step=past.open_step, result=results[past.open_step])
            report(_step(past.open_step), results[past.open_step])
        before = machine.panics()
        for step in to_do(steps, results, options.only):
            results[step.name] = _do(step, options, machine, journal, results)
            journal.write("end", step=step.name, result=results[step.name])
            write_result(out, _document(options, results, []))
            report(step, results[step.name])
        document = _document(options, results, [panic for panic in machine.panics() if panic not in before])
        write_result(out, document)
        journal.write("finished")
    finally:
        journal.close()
    return document


def _is_result(out: Path) -> bool:
    """Return whether the file may be replaced: it does not exist, or an earlier run wrote it."""
    if not out.exists():
        return True
    try:
        return out.is_file() and "kit" in json.loads(out.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        return False


def _past(out: Path, options: KitOptions) -> Past:
    """Return the run to resume. A finished run starts over, unless steps are named: then the other results stay."""
    past = read_past(journal_file(out))
    if past.identity == options.identity and (options.only or not past.is_finished):
        return past
    if past.identity is None or past.is_finished:
        return Past()
    raise OtherRun(f"{out} belongs to a run with other options that has not finished; add --fresh to forget it")


def _do(step: Step, options: KitOptions, machine: Machine, journal: Journal, results: Mapping[str, Result]) -> Result:
    has_metal = bool(results.get("device", {}).get("figures", {}).get("has_metal"))
    reason = skip_reason(step, has_metal)
    if reason is not None:
        return {"status": "skipped", "detail": reason}
    began_at = machine.clock()
    journal.write("begin", step=step.name, boot=machine.boot(), at=_now())
    try:
        if step.name == "facts":
            outcome: dict[str, Any] = {"figures": machine.facts()}
        else:
            outcome = machine.run(step, options, lambda text: journal.write("progress", step=step.name, text=text))
    except KeyboardInterrupt:
        journal.write("stopped", step=step.name)  # the next run repeats it
        raise
    except StepFailed as error:
        return {"status": "failed", "detail": str(error), "seconds": machine.clock() - began_at}
    result = {"status": judge(outcome), "seconds": machine.clock() - began_at, **outcome}
    if outcome.get("skipped"):
        result["detail"] = outcome["skipped"]
    return result


def _document(options: KitOptions, results: Mapping[str, Result], new_panics: Sequence[str]) -> dict[str, Any]:
    return {
        "kit": VERSION,
        "pippin": __version__,
        "written_at": _now(),
        "options": options.identity | {"soak_s": options.soak_s},
        "steps": [
            {"name": step.name, "title": step.title, **results[step.name]} for step in STEPS if step.name in results
        ],
        "new_panics": list(new_panics),
        "ratios": ratios(results),
    }


def ratios(results: Mapping[str, Result]) -> dict[str, float]:
    """Return ratios of comparable speeds: large command buffers, and wired weights, over the default."""
    found = {}
    plain, large = (_speed(results.get(name)) for name in ("buffers_default", "buffers_large"))
    if plain and large:
        found["large_buffers"] = large / plain
    for row, wired in zip(_rows(results.get("decode")), _rows(results.get("wired_decode")), strict=False):
        found[f"wired, {row['context']} tokens after {row['idle_s']:g} s"] = wired["tok_s"] / row["tok_s"]
    return found


def _speed(result: Result | None) -> float:
    return float((result or {}).get("figures", {}).get("tok_s", 0.0))


def _rows(result: Result | None) -> list[dict[str, Any]]:
    return list((result or {}).get("figures", {}).get("rows", ()))


def _step(name: str) -> Step:
    return next((step for step in STEPS if step.name == name), Step(name=name, title=name))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
