"""The real Prometheus against the mock backend: checks its config, and runs every query.

    python -m scripts.monitoring

Needs `prometheus` and `promtool` on the path (Debian has both in the package prometheus). Everything listens on
loopback and ends with this program. The mock sometimes runs out of memory, so that an alert fires. Exits with 1 if a
query fails, if one that should have data has none, or if other alerts fire.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import yaml

from scripts.monitoring.queries import CONFIG, RULES, Query, all_queries, read_dashboard

_LOAD_S = 12.0
_DEADLINE_S = 60.0
_EMPTY = ("pippin_power_watts", "pippin_temperature_celsius", 'kind="limit"', 'kind="weights"', 'kind="reserve"')
"""Queries without data on the mock, on a machine that is not a Mac."""
_FIRING = {"PippinOutOfMemory"}


def main() -> int:
    for tool in ("prometheus", "promtool"):
        if shutil.which(tool) is None:
            print(f"monitoring: {tool} is not installed", file=sys.stderr)
            return 2
    for what, file in (("config", CONFIG), ("rules", RULES)):
        subprocess.run(["promtool", "check", what, str(file)], check=True)
    with tempfile.TemporaryDirectory() as folder, _pippin() as server, _prometheus(Path(folder), server) as prometheus:
        _put_under_load(server)
        failed = [*_ask_all(prometheus), *_rules_that_fail(prometheus)]
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failed else 0


def _ask_all(prometheus: str) -> Iterator[str]:
    """Run all queries; yield the failures."""
    queries, num_empty = [*all_queries()], 0
    num_of_panels = sum(len(panel.get("targets", ())) for panel in read_dashboard()["panels"])
    for position, query in enumerate(queries):
        try:
            found = _get(f"{prometheus}/api/v1/query?{urlencode({'query': query.text})}")["data"]["result"]
        except URLError as error:
            yield f"{query.place}: {error}: {query.text}"
            continue
        num_empty += not found
        if not found and position < num_of_panels and not _may_be_empty(query):
            yield f"{query.place}: no data: {query.text}"
    print(f"{len(queries)} queries, of which {num_of_panels} are the dashboard's; {num_empty} have no data")


def _may_be_empty(query: Query) -> bool:
    return any(text in query.text for text in _EMPTY)


def _rules_that_fail(prometheus: str) -> Iterator[str]:
    groups = _get(f"{prometheus}/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    states = {rule["name"]: rule["state"] for rule in rules}
    print(f"{len(rules)} rules:", ", ".join(f"{name} {state}" for name, state in states.items()))
    for rule in rules:
        if rule["health"] != "ok":
            yield f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}"
    firing = {name for name, state in states.items() if state == "firing"}
    if firing != _FIRING:
        yield f"firing: {', '.join(firing) or 'nothing'}"


def _put_under_load(server: str) -> None:
    """Send requests that share a prompt, some of which fail, for as long as Prometheus needs for a rate."""
    until = time.monotonic() + _LOAD_S
    with_errors = ({"prompt": "x" * 300, "max_tokens": 40}, {"prompt": "x" * 300, "max_tokens": 10**6}, {"prompt": ""})

    def ask() -> None:
        position = 0
        while time.monotonic() < until:
            body = json.dumps(with_errors[position % len(with_errors)]).encode()
            request = Request(f"{server}/v1/completions", body, {"Content-Type": "application/json"})
            try:
                urlopen(request).read()
            except URLError:
                time.sleep(0.05)
            position += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def _pippin() -> Iterator[str]:
    port = _free_port()
    command = [sys.executable, "-m", "server", "serve", "--backend", "mock", "--port", str(port)]
    with _running([*command, "--mock-itl-s", "0.01", "--mock-fault", "oom/200"], f"http://127.0.0.1:{port}/ready"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _prometheus(folder: Path, server: str) -> Iterator[str]:
    """Run the shipped config with another scraped port and interval."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.removeprefix("http://")]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{_free_port()}"
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    with _running([*command, f"--web.listen-address={address}"], f"http://{address}/-/ready"):
        yield f"http://{address}"


@contextmanager
def _running(command: list[str], url: str) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(url, process)
            yield
        finally:
            process.terminate()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urlopen(url).read()
            return
        except URLError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


def _get(url: str) -> Any:
    with urlopen(url) as answer:
        return json.load(answer)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
