"""`pippin bench`: prompts of so many tokens of a server's own, two servers in turn, and what is made of the records."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.console import Console

from server import cli
from server.client import bench as measuring
from server.client.bench import BenchError, Cell, Grid, Subject, Target, measure
from server.client.bench_report import build_document, build_table, draw, notes
from server.client.load import Client
from server.client.record import Record
from tests.serving import mock_engine, serve

USAGE_PER_WORD, USAGE_MORE = 2, 5


class Server:
    """Speaks the wire: two tokens a word and five more. `log` is shared, so that turns can be seen."""

    def __init__(self, name: str, log: list[tuple[str, int]], *, refuses: str | None = None, fails_from: int = 10**9):
        self.name, self.log, self.refuses, self.fails_from = name, log, refuses, fails_from
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            is_models = request.url.path == "/v1/models"
            document = {"data": [{"id": self.name}]} if is_models else {"name": "Name", "version": "1"}
            return httpx2.Response(200, json=document)
        body = json.loads(request.content)
        if self.refuses in body:
            return httpx2.Response(400, json={"error": {"message": "no"}})
        self.bodies.append(body)
        num_words = len(body["prompt"].split())
        self.log.append((self.name, num_words))
        if num_words >= self.fails_from:
            return httpx2.Response(503)
        usage = {"prompt_tokens": USAGE_PER_WORD * num_words + USAGE_MORE, "completion_tokens": body["max_tokens"]}
        events = [{"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}, {"choices": [], "usage": usage}]
        return httpx2.Response(200, text="".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n")


async def measured(monkeypatch: pytest.MonkeyPatch, servers: Sequence[Server], grid: Grid) -> list[Subject]:
    by_url = {f"http://{server.name}": server for server in servers}

    def open_http(url: str, key: str | None = None) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=url, transport=httpx2.MockTransport(by_url[url]))

    monkeypatch.setattr(measuring, "open_http", open_http)
    return await measure([Target(url) for url in by_url], grid, lambda text: None, seed=1)


async def test_prompts_have_as_many_tokens_as_asked_by_the_server_s_own_count(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("a", [])
    (subject,) = await measured(monkeypatch, [server], Grid((105, 1005), (1, 3), 7, 2))
    assert (subject.tokens_per_word, subject.more_tokens, subject.version) == (2.0, 5.0, "Name 1")
    assert [(c.prompt_tokens, c.concurrency, c.actual_prompt_tokens, len(c.records)) for c in subject.cells] == [
        (105, 1, 105, 2),
        (105, 3, 105, 6),
        (1005, 1, 1005, 2),
        (1005, 3, 1005, 6),
    ]
    asked = server.bodies[2:]
    assert {(body["max_tokens"], body["ignore_eos"], body["temperature"]) for body in asked} == {(7, True, 0)}
    assert len({body["prompt"] for body in server.bodies}) == len(server.bodies)  # nothing is known beforehand


async def test_two_servers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, int]] = []
    subjects = await measured(monkeypatch, [Server("a", log), Server("b", log)], Grid((25,), (1,), 4, 4))
    assert [name for name, num_words in log if num_words == 10] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [subject.model for subject in subjects] == ["a", "b"]


async def test_an_api_without_ignore_eos_is_asked_without(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("a", [], refuses="ignore_eos")
    (subject,) = await measured(monkeypatch, [server], Grid((25,), (1,), 4, 1))
    assert subject.cells[0].errors == {}
    assert all("ignore_eos" not in body for body in server.bodies)


async def test_what_fails_is_counted_and_what_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("a", [], fails_from=1000)
    grid = Grid((25, 4005), (2,), 4, 1)
    (subject,) = await measured(monkeypatch, [server], grid)
    assert [cell.errors for cell in subject.cells] == [{}, {"HTTP 503": 2}]
    assert "failed: http://a, 4,005 tokens, 2 at once: 2 x HTTP 503" in list(notes([subject], grid))
    with pytest.raises(BenchError, match="does not complete a short prompt: HTTP 503"):
        await measured(monkeypatch, [Server("a", [], fails_from=1)], grid)


async def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(BenchError, match=r"http://127\.0\.0\.1:9 cannot be reached: "):
        await measure([Target("http://127.0.0.1:9")], Grid((8,), (1,), 2), lambda text: None)


# --- what is made of it


def answered(ttft_s: float, step_s: float, sent_s: float = 0.0) -> Record:
    """Five tokens."""
    stamps = tuple(sent_s + ttft_s + place * step_s for place in range(5))
    return Record(sent_s, stamps, 5, 0, num_prompt_tokens=100)


def subject(name: str, *cells: Cell) -> Subject:
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda request: httpx2.Response(500)))
    return Subject(f"http://{name}", "m", Client(http, "m"), cells=list(cells))


FAST = Cell(100, 2, ((answered(0.1, 0.01), answered(0.2, 0.01)), (answered(0.3, 0.02), answered(0.3, 0.02))))
SLOW = Cell(100, 2, ((answered(0.5, 0.1), Record(0.0, error="HTTP 503")),))
GRID = Grid((100,), (2,), 5, 2)


def test_figures_of_a_cell() -> None:
    assert FAST.ttft_s == pytest.approx(0.25)
    assert FAST.decode_tok_s == pytest.approx(75.0)
    assert FAST.total_tok_s == pytest.approx((10 / 0.24 + 10 / 0.38) / 2)
    assert (SLOW.ttft_s, SLOW.errors) == (0.5, {"HTTP 503": 1})


def text_of(*subjects: Subject) -> list[list[str]]:
    console = Console(width=160, file=None, record=True, quiet=False)
    with console.capture() as captured:
        console.print(build_table(subjects))
    return [line.split() for line in captured.get().splitlines()]


def test_the_table_of_one_and_of_two() -> None:
    heading, row = text_of(subject("a", FAST))
    assert heading == ["prompt", "at", "once", "TTFT", "ms", "tok/s", "each", "tok/s", "all"]
    assert row == ["100", "2", "250", "75.0", "34.0"]
    heading, row = text_of(subject("a", FAST), subject("b", SLOW))
    assert heading.count("A/B") == 3
    assert row == ["100", "2", "250", "500", "0.50", "75.0", "10.0", "7.50", "34.0", "5.6", "6.12"]
    _, row = text_of(subject("a", Cell(100, 2, ((Record(0.0, error="x"),),))), subject("b", SLOW))
    assert row == ["100", "2", "-", "500", "-", "-", "10.0", "-", "-", "5.6", "-"]


def test_the_document_has_every_request() -> None:
    document = json.loads(json.dumps(build_document([subject("a", FAST), subject("b", SLOW)], GRID)))
    assert document["settings"] == {"prompt_tokens": [100], "concurrency": [2], "output_tokens": 5, "rounds": 2}
    first, second = (server["cells"][0] for server in document["servers"])
    assert (first["actual_prompt_tokens"], len(first["requests"])) == (100, 4)
    assert [request["error"] for request in second["requests"]] == [None, "HTTP 503"]


def test_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "out.svg"
    draw([subject("a", FAST), subject("b", SLOW)], GRID, file)
    assert "<svg" in file.read_text()


def test_words_are_chosen_at_random() -> None:
    prompt = measuring._prompt(random.Random(0), 50)
    assert len(prompt.split()) == 50
    assert set(prompt.split()[1:]) <= set(measuring.WORDS)


def test_no_two_prompts_begin_alike() -> None:
    source = random.Random(0)
    assert len({measuring._prompt(source, 5)[:4] for _ in range(100)}) > 95


# --- the command


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *argv])
    return int(ended.value.code or 0)


def test_two_real_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    grid = ("--prompt", "100,400", "--concurrency", "1,2", "--out", "8", "--rounds", "2")
    with serve(mock_engine(context=100_000)) as one, serve(mock_engine(context=100_000)) as other:
        assert run(one.url, "--beside", f"{other.url}/v1", *grid, "--json", str(file)) == 0
    captured = capsys.readouterr()
    assert "400 tokens, 2 at once" in captured.err
    rows = [line.split() for line in captured.out.splitlines()[1:5]]
    assert [row[:2] for row in rows] == [["100", "1"], ["100", "2"], ["400", "1"], ["400", "2"]]
    assert all(len(row) == 11 for row in rows)
    servers = json.loads(file.read_text())["servers"]
    assert [server["url"] for server in servers] == [one.url, other.url]
    for server in servers:
        assert server["version"].startswith("pippin ")
        for cell in server["cells"]:
            assert cell["errors"] == {} and abs(cell["actual_prompt_tokens"] / cell["prompt_tokens"] - 1) < 0.3
            assert {request["output_tokens"] for request in cell["requests"]} == {8}
            assert {request["cached_tokens"] for request in cell["requests"]} == {0}


def test_json_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(mock_engine()) as live:
        assert run(live.url, "--prompt", "50", "--concurrency", "1", "--out", "2", "--rounds", "1", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["servers"][0]["model"] == "mock"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("http://127.0.0.1:9",), 1, "http://127.0.0.1:9 cannot be reached: "),
        (("ftp://x",), 1, "'ftp://x' is no URL"),
        (("--prompt", "1,x"), 2, "--prompt '1,x' must be comma-separated whole numbers from 1"),
        (("--concurrency", "0"), 2, "--concurrency '0' must be comma-separated whole numbers from 1"),
    ],
)
def test_what_goes_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], code: int, says: str
) -> None:
    assert run(*argv) == code
    error = capsys.readouterr().err
    assert error.startswith("pippin: ") and says in error and error.count("\n") == 1


def test_a_plot_without_matplotlib_is_said_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    assert run("http://127.0.0.1:9", "--plot", "x.png") == 2
    assert "--plot needs matplotlib; install it, or install Pippin with the extra `plots`" in capsys.readouterr().err
