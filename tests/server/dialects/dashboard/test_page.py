"""The page as it is served: its files, its headers, and what must not be in it. `make dashboard` looks at it."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import httpx
import pytest

from server.config import Config, SecurityConfig
from server.dialects.dashboard.routes import HEADERS, RUNNING
from server.security import keys
from tests.fake_engine import FakeEngine
from tests.serving import client_of

FOLDER = resources.files("server.dialects.dashboard") / "page"
FILES = {file.name: file.read_text("utf-8") for file in FOLDER.iterdir()}
SCRIPTS = sorted(name for name in FILES if name.endswith(".js"))
MAX_BYTES = 60_000
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


async def get(path: str, config: Config | None = None, method: str = "GET") -> httpx.Response:
    async with client_of(FakeEngine(), config) as client:
        return await client.request(method, path, headers={"Accept": "text/html,*/*;q=0.8"})


async def test_the_page() -> None:
    answer = await get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == FILES["index.html"]


@pytest.mark.parametrize("accept", ["*/*", "application/json", None])
async def test_what_is_no_browser_is_answered_as_ollama_does(accept: str | None) -> None:
    async with client_of(FakeEngine()) as client:
        client.headers.pop("accept")
        answer = await client.get("/", headers={} if accept is None else {"Accept": accept})
        head = await client.head("/")
    assert (answer.status_code, answer.text, answer.headers["vary"]) == (200, RUNNING, "Accept")
    assert (head.status_code, head.text, head.headers["content-length"]) == (200, "", str(len(RUNNING)))


@pytest.mark.parametrize("name", sorted(FILES))
async def test_its_files(name: str) -> None:
    answer = await get(f"/dashboard/{name}")
    assert answer.headers["content-type"] == f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    assert answer.text == FILES[name]


@pytest.mark.parametrize("path", ["/", "/dashboard/main.js"])
async def test_it_is_bound_to_its_own_origin(path: str) -> None:
    policy = (await get(path)).headers["content-security-policy"]
    assert policy == HEADERS["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/", "/dashboard/page.css"])
async def test_a_head_is_answered(path: str) -> None:
    answer = await get(path, method="HEAD")
    assert (answer.status_code, answer.text) == (200, "")
    assert int(answer.headers["content-length"]) > 1000


@pytest.mark.parametrize("name", ["", "nothing.js", "..%2Froutes.py", "%2e%2e/schema.py", "__init__.py", "page.css/x"])
async def test_nothing_else_can_be_asked_for(name: str) -> None:
    answer = await get(f"/dashboard/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_it_is_open_where_its_numbers_are_not(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = keys.add(file, "me")
    config = Config(security=SecurityConfig(keys_file=str(file)))
    for path, status in (("/", 200), ("/dashboard/main.js", 200), ("/status", 401), ("/dashboard", 401)):
        assert (await get(path, config)).status_code == status
    async with client_of(FakeEngine(), config) as client:
        assert (await client.get("/status", headers={"Authorization": f"Bearer {key}"})).status_code == 200


def test_it_is_small() -> None:
    assert sum(len(text.encode()) for text in FILES.values()) < MAX_BYTES


def test_it_asks_nobody_else() -> None:
    for name, text in FILES.items():
        addresses = set(re.findall(r"https?://[^\"'\s)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name  # a name, not an address


def test_every_file_is_used() -> None:
    named = set(re.findall(r"dashboard/([a-z.]+)", FILES["index.html"]))
    imported = {name for script in SCRIPTS for name in re.findall(r'from "\./([a-z.]+)"', FILES[script])}
    assert named | imported | {"index.html"} == set(FILES)


def test_nothing_is_written_as_markup_or_run_as_code() -> None:
    """What models and clients write is text, and the policy allows no script or style in the page itself."""
    for script in SCRIPTS:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", FILES[script])
    page = FILES["index.html"]
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", page)
    assert re.findall(r"<script(?![^>]*\ssrc=)", page) == []


def test_the_key_stays_in_the_tab() -> None:
    stored = {script: re.findall(r"localStorage\.\w+\(([^,)]*)", FILES[script]) for script in SCRIPTS}
    assert {name for names in stored.values() for name in names} == {'"pippin-theme"'}
    assert not any("document.cookie" in FILES[script] for script in SCRIPTS)


def test_every_part_that_the_scripts_look_for_is_in_the_page() -> None:
    ids = re.findall(r'\sid="([a-z-]+)"', FILES["index.html"])
    assert len(ids) == len(set(ids))
    wanted = {name for script in SCRIPTS for name in re.findall(r'byId\("([a-z-]+)"\)', FILES[script])}
    assert wanted <= set(ids)
    targets = set(re.findall(r'(?:for|aria-labelledby|aria-describedby|href)="#?([a-z-]+)"', FILES["index.html"]))
    assert targets <= set(ids)
