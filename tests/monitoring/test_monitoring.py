"""What the dashboard and the alerts ask for is what `/metrics` tells, and docs/metrics.md lists it all."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from mlx_backend.api.interface import EngineStats, MemoryReport, ModelInfo, RankInfo, RanksInfo, RankStats
from scripts.monitoring.queries import CONFIG, Query, all_queries, read_dashboard, read_rules
from server.app import create_app
from server.config import Config
from server.power import read_line
from tests.fake_engine import FakeEngine
from tests.serving import build_registry

ROOT = Path(__file__).parents[2]
MACMON = ROOT / "tests/server/macmon.jsonl"
OF_PROMETHEUS = {"job", "instance"}
ROW = re.compile(r"\| `(?P<name>[\w:]+)` \| (?P<type>\w+) \| (?P<labels>[`\w ]*) ?\| [^|]+ \|")
PANEL_KEYS = {"id", "type", "title", "gridPos", "description", "datasource", "targets", "fieldConfig", "options"}


@cache
def exposed_text() -> str:
    """What a server tells of a model that ranks share within a memory limit, on a machine whose power is measured."""
    memory = MemoryReport(limit_bytes=8, limit_basis="the test", weights_bytes=4, reserve_bytes=1)
    rank = RankInfo(rank=1, num_layers=2, weights_bytes=4, kv_bytes_per_token=1, limit_bytes=8, free_bytes=3)
    ranks = RanksInfo(parallel="tensor", link="ring", ranks=(rank,))
    engine = FakeEngine(info=ModelInfo(context_limit=64, vocab_size=260, memory=memory, ranks=ranks))
    seen = RankStats(
        rank=1, kv_bytes=1, active_bytes=5, peak_bytes=6, round_trip_s=0.1, progress_age_s=0.2, is_busy=False
    )
    engine.stats = lambda: EngineStats(ranks=(seen,))  # type: ignore[method-assign]
    app = create_app(Config(), build_registry(engine))
    app.parts.power.reading = read_line(MACMON.read_text(encoding="utf-8"))

    async def ask() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return (await client.get("/metrics")).text

    return asyncio.run(ask())


def exposed() -> list[Metric]:
    return list(text_string_to_metric_families(exposed_text()))


def sample_labels() -> dict[str, list[dict[str, str]]]:
    """The labels of every series, by the name that a query uses."""
    found: dict[str, list[dict[str, str]]] = {"up": [{}]}
    for family in exposed():
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def full_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def described() -> dict[str, tuple[str, set[str]]]:
    """(type, labels) of every metric in docs/metrics.md."""
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    return {row["name"]: (row["type"], set(re.findall(r"\w+", row["labels"]))) for row in ROW.finditer(text)}


# --- the document


def test_every_metric_is_described_and_none_that_is_not() -> None:
    told = {
        full_name(family): (family.type, {label for s in family.samples for label in s.labels} - {"le"})
        for family in exposed()
    }
    assert described() == told


def test_names_keep_to_the_norm() -> None:
    for family in exposed():
        assert family.documentation, family.name
        assert re.match(r"pippin_|process_|vllm:", family.name)
        assert not {"request_id", "key", "tenant", "user"} & {label for s in family.samples for label in s.labels}


# --- queries


@pytest.mark.parametrize("query", [*all_queries()], ids=lambda query: query.place)
def test_what_is_asked_for_is_told(query: Query) -> None:
    known = sample_labels()
    selectors = query.selectors()
    assert selectors
    seen = set(OF_PROMETHEUS)
    for name, matchers in selectors:
        assert name in known, name
        seen |= set(known[name][0])
        for label, operator, value in matchers:
            if label not in OF_PROMETHEUS:
                values = {labels[label] for labels in known[name]}
                assert operator == "=~" or value in values, (name, label, value)
    assert query.grouped_by() <= seen


def test_a_query_that_asks_for_nothing_we_tell_is_seen() -> None:
    for text in ('pippin_memory_bytes{kind="swap"}', "sum(pippin_requests)", "sum by (user) (pippin_stalls_total)"):
        with pytest.raises(AssertionError):
            test_what_is_asked_for_is_told(Query("planted", text))


def test_counters_are_asked_for_their_rate() -> None:
    """And gauges are not: the level of a counter and the rate of a gauge mean nothing."""
    counters = {full_name(family) for family in exposed() if family.type == "counter"}
    for query in all_queries():
        for match in re.finditer(r"((?:rate|increase)\()?\b((?:pippin|process)_\w+)", query.text):
            name = match[2]
            is_counter = name in counters or name.endswith("_bucket")
            assert (match[1] is not None) == is_counter, query


# --- the dashboard, as Grafana's schema has it


def test_the_dashboard_has_what_grafana_needs() -> None:
    dashboard = read_dashboard()
    assert isinstance(dashboard["schemaVersion"], int) and dashboard["schemaVersion"] >= 36
    assert dashboard["title"] == "Pippin" and dashboard["uid"]
    assert {"time", "templating", "annotations", "panels", "refresh"} <= dashboard.keys()
    assert "id" not in dashboard  # Grafana gives one at import
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["model"]["datasource"]["uid"] == "${datasource}"


def test_panels_are_whole() -> None:
    panels = read_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 25
    for panel in (panel for panel in panels if panel["type"] != "row"):
        assert panel.keys() == PANEL_KEYS, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names) > 0
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] and target["legendFormat"]
        assert {"defaults", "overrides"} <= panel["fieldConfig"].keys()


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in read_dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


# --- Prometheus' own files


def test_the_scrape_is_of_the_default_port_and_takes_the_rules() -> None:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "pippin"
    assert job["static_configs"] == [{"targets": [f"{Config().host}:{Config().port}"]}]
    assert [(CONFIG.parent / name).is_file() for name in config["rule_files"]] == [True]


def test_every_alert_says_what_it_is_and_how_bad() -> None:
    rules = read_rules()
    names = {rule["alert"] for rule in rules}
    assert {"PippinDown", "PippinDead", "PippinStalled", "PippinQueueLong", "PippinOutOfMemory"} <= names
    assert len(names) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
