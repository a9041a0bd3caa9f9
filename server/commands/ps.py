"""`pippin ps`: models of a running server, with memory and activity."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from server.commands.chat import DEFAULT_URL
from server.config import ConfigError

Url = typer.Option(DEFAULT_URL, "--url", metavar="URL", help="Server.")
Key = typer.Option(None, "--key", help="API key, or @FILE with the key.", show_default=False)
AsJson = typer.Option(False, "--json", help="Print JSON instead of a table.")

_SPEED_S = 0.5
"""Time between the two token counts that give a speed."""

Model = Mapping[str, Any]


def ps(url: str = Url, key: str | None = Key, as_json: bool = AsJson) -> None:
    """List the models of a running server: state, memory, requests and speed."""
    from server.client.wire import read_key

    try:
        models, speeds = _look(url, read_key(key))
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    if as_json:
        import json

        print(json.dumps([{**model, "tokens_per_s": speeds.get(model["id"])} for model in models], indent=2))
    else:
        _print_table(models, speeds)


def _look(url: str, key: str | None) -> tuple[list[Model], dict[str, float]]:
    """Return (models, tokens per second of busy ones). Exits with 1 if the server does not answer."""
    import httpx2

    from server.client.wire import settings

    try:
        with httpx2.Client(**settings(url, key)) as http:
            models, began = _ask(http), time.monotonic()
            if not any(model["num_running"] for model in models):
                return models, {}
            time.sleep(_SPEED_S)
            later, took_s = _ask(http), time.monotonic() - began
    except httpx2.HTTPError as error:
        print(f"pippin: no answer from {url}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    before = {model["id"]: model["num_output_tokens"] for model in models}
    return later, {m["id"]: (m["num_output_tokens"] - before[m["id"]]) / took_s for m in later if m["num_running"]}


def _ask(http: Any) -> list[Model]:
    answer = http.get("/admin/models")
    if answer.status_code != 200:
        from server.client.wire import error_text

        print(f"pippin: {http.base_url}: {error_text(answer.status_code, answer.content)}", file=sys.stderr)
        raise typer.Exit(1)
    models: list[Model] = answer.json()["data"]
    return models


def _print_table(models: list[Model], speeds: Mapping[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "state", box=None, pad_edge=False)
    for heading in ("weights", "may use", "KV", "running", "waiting", "tok/s", "unloads in"):
        table.add_column(heading, justify="right")
    for column in table.columns:
        column.overflow = "fold"
    for model in models:
        table.add_row(*_cells(model, speeds.get(model["id"])))
    out = Console(markup=False, highlight=False)
    out.print(table)
    for model in models:
        if any(each["priority"] != "normal" and each["num_output_tokens"] for each in model.get("classes", ())):
            out.print()
            out.print(_classes_table(model))
        if model.get("ranks"):
            out.print()
            out.print(_ranks_table(model))


def _cells(model: Model, speed: float | None) -> Iterator[str]:
    yield model["id"]
    load = model["load"]
    is_loading = model["state"] == "loading" and load["total_bytes"]
    yield f"loading {100 * load['done_bytes'] // load['total_bytes']}%" if is_loading else model["state"]
    yield _size(model["weights_bytes"])
    yield _size(model["memory_bytes"])
    yield _size(model["kv_bytes"] or None)
    yield str(model["num_running"])
    yield str(model["num_waiting"])
    yield "-" if speed is None else f"{speed:.1f}"
    yield _until(model)


def _classes_table(model: Model) -> Any:
    """Return a table of requests by class, for servers with other than normal ones."""
    from rich.table import Table

    table = Table(f"classes of {model['id']}", box=None, pad_edge=False)
    for heading in ("running", "waiting", "pauses", "tokens"):
        table.add_column(heading, justify="right")
    for each in model["classes"]:
        numbers = (each[f"num_{name}"] for name in ("running", "waiting", "pauses", "output_tokens"))
        table.add_row(each["priority"], *map(str, numbers))
    return table


def _ranks_table(model: Model) -> Any:
    """Return a table of a model's ranks: memory of each, and whether it answers."""
    from rich.table import Table

    table = Table(f"ranks of {model['id']}", box=None, pad_edge=False)
    for heading in ("layers", "weights", "may use", "holds", "KV", "round trip", "last progress"):
        table.add_column(heading, justify="right")
    for rank in model["ranks"]:
        trip, age = rank["round_trip_s"], f"{rank['progress_age_s']:.1f} s"
        table.add_row(
            str(rank["rank"]),
            "-" if rank["num_layers"] is None else str(rank["num_layers"]),
            _size(rank["weights_bytes"]),
            _size(rank["limit_bytes"]),
            _size(rank["active_bytes"]),
            _size(rank["kv_bytes"] or None),
            "-" if trip is None else f"{1e3 * trip:.1f} ms",
            f"{age}, busy" if rank["is_busy"] else f"{age}, idle",
        )
    return table


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "-"
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 10**8 else f"{num_bytes / 1e6:.2f} MB"


def _until(model: Model) -> str:
    if model["pinned"]:
        return "pinned"
    if model["state"] != "loaded" or model["keep_alive_s"] is None or model["idle_s"] is None:
        return "-"
    return f"{max(0.0, model['keep_alive_s'] - model['idle_s']):.0f} s"
