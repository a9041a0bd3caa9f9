"""The Prometheus queries of the dashboard and the alert rules. Reads the files; runs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "configs" / "monitoring"
DASHBOARD, RULES, CONFIG = (FOLDER / name for name in ("grafana-dashboard.json", "alerts.yml", "prometheus.yml"))

_SELECTOR = re.compile(r"\b((?:pippin|process)_\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Query:
    """One expression, and its place. Grafana's variables are filled in."""

    place: str
    text: str

    def selectors(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """Return (metric, [(label, operator, value)]) of every series in the query."""
        return [(name, _MATCHER.findall(inside)) for name, inside in _SELECTOR.findall(_GROUPING.sub("", self.text))]

    def grouped_by(self) -> set[str]:
        """Return the labels that results are grouped or matched by."""
        return {label.strip() for inside in _GROUPING.findall(self.text) for label in inside.split(",")}


def read_dashboard() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return dashboard


def read_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def all_queries() -> Iterator[Query]:
    """Yield the queries of every panel, then of every rule."""
    for panel in read_dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield Query(f"{panel['title']} {target['refId']}", _fill_in(target["expr"]))
    for rule in read_rules():
        yield Query(rule["alert"], rule["expr"])


def _fill_in(text: str) -> str:
    return text.replace("$__rate_interval", "1m").replace("$model", ".*")
