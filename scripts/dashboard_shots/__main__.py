"""Check the dashboard as a person sees it: idle and under load, light and dark, on a desktop and on a phone.

Starts its own servers, writes screenshots and logs, and prints a line for each step; exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Browser, expect
from playwright.sync_api import Error as PageError

from bench.servers import end, free_port
from scripts.dashboard_shots.load import loading
from scripts.dashboard_shots.page import SIZES, Dashboard, browsing

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0
SIMULATED = ("--backend", "mock", "--simulate", "m4-max-128", "--as", "gpt-oss-120b")
SEVERAL = """
backend: mock
memory: {limit_gb: 0.02}
models:
  always-here: {model: mock, pinned: true}
  now-and-then: mock
"""
NUM_CLIENTS = 9
QUESTION = "How many r's are in strawberry?"
LEAVES_S = 5.0  # limit for the server to stop after the stop button


def must(seen: object, otherwise: str) -> None:
    if not seen:
        raise AssertionError(otherwise)  # the error of Playwright's expectations


def wait_until(is_so: object, otherwise: str, limit_s: float = WAIT_S) -> None:
    assert callable(is_so)
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        must(time.monotonic() < deadline_s, otherwise)
        time.sleep(0.05)


@contextmanager
def serving(python: str, log: Path, *arguments: str) -> Iterator[str]:
    """Yield the address of a server that is ready. Raises AssertionError."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        must(process.poll() is None, f"the server has ended; see {log}")
        try:
            return httpx.get(f"{url}/ready", trust_env=False, timeout=10).status_code == 200
        except httpx.HTTPError:
            return False  # not listening yet

    command = [python, "-m", "server", "serve", "--port", str(port), *arguments]
    with log.open("w", encoding="utf-8") as out:
        environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=out, stderr=out, text=True, cwd=ROOT, env=environ)
    try:
        wait_until(answers, f"the server does not answer; see {log}")
        yield url
    finally:
        end(process)


def counts(url: str) -> dict[str, int]:
    """Return the number of sequences by state, of the first model."""
    found: dict[str, int] = httpx.get(f"{url}/status", trust_env=False).json()["models"][0]["counts"]
    return found


def shoot(browser: Browser, url: str, out: Path, name: str) -> None:
    """Take a screenshot of each size and colour scheme, and check each."""
    for size, scheme in ((size, scheme) for size in SIZES for scheme in ("light", "dark")):
        look = Dashboard(browser, url, SIZES[size], scheme)
        look.see("Working" if name == "load" else "Ready")
        look.screenshot(out / f"{name}-{size}-{scheme}.png")
        look.page.locator(".settings summary").click()
        if (name, size, scheme) == ("idle", "desktop", "light"):
            look.screenshot(out / "settings-desktop-light.png")
        faint, nameless = look.faint_texts(), look.nameless()
        must(not faint, f"{name}, {size}, {scheme}: text of a contrast below 4.5: {faint}")
        must(not nameless, f"{name}, {size}: nothing to say for {nameless}")
        must(not look.is_wider_than_the_screen(), f"{name}, {size}: the page is wider than the screen")
        must(not look.complaints, f"{name}, {size}, {scheme}: {look.complaints}")
        look.close()


def chat(browser: Browser, url: str, out: Path) -> Iterator[str]:
    """Ask the pocket model, unfold its reasoning, and ask again."""
    look = Dashboard(browser, url, SIZES["desktop"], "light")
    look.send(QUESTION)
    answer = look.answer()
    must("3" in answer, f"the answer is wrong: {answer!r}")
    thought = look.page.locator(".theirs details")
    must(thought.get_attribute("open") is None, "the reasoning is not folded")
    thought.locator("summary").click()
    reasoning = thought.locator(".said").inner_text()
    must(reasoning, "there is nothing under the fold")
    look.send("My name is Anna.")
    look.answer()
    look.send("What is my name?")
    second = look.answer()
    must("Anna" in second, f"the chat does not know its first turns: {second!r}")
    look.screenshot(out / "chat-desktop-light.png", whole=False)
    look.see("Ready")
    must(not look.complaints, f"the chat: {look.complaints}")
    look.close()
    yield f"a chat: {answer!r}, its reasoning folded: {reasoning!r}, and a later turn {second!r}"


def stop(browser: Browser, url: str, out: Path) -> Iterator[str]:
    """Stop long answers of the mock: one by the button, one by Escape."""
    look = Dashboard(browser, url, SIZES["phone"], "dark")
    for how in ("the button", "Escape"):
        aborted = counts(url)["num_aborted"]
        look.send("Tell me something <b>long</b>.")
        expect(look.page.locator(".theirs:last-child > .said")).to_contain_text(re.compile(r"\S.{40}", re.DOTALL))
        if how == "Escape":
            look.page.locator("#chat-text").press("Escape")
        else:
            look.screenshot(out / "chat-phone-dark.png", whole=False)
            look.page.get_by_role("button", name="Stop", exact=True).click()
        began = time.monotonic()

        def is_over(before: int = aborted) -> bool:
            return counts(url)["num_aborted"] > before

        wait_until(is_over, "the server went on", LEAVES_S)
        took_s = time.monotonic() - began
        look.see("stopped", ".theirs:last-child .stats")
        look.see("something <b>long</b>.", ".mine:nth-last-child(2)")  # as typed, not as markup
        yield f"a long answer, stopped by {how}; at the server {took_s:.2f} s later"
    look.see("Ready")
    must(not look.complaints, f"stopping: {look.complaints}")
    look.close()


def keys(browser: Browser, python: str, out: Path) -> Iterator[str]:
    """Check a server with a key: the page is open, its data is not."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "keys"))
        made = [python, "-m", "server", "keys", "add", "dashboard", "--file", file]
        key = subprocess.run(made, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()[-1]
        with serving(python, out / "keys.log", "--backend", "mock", "--security-keys-file", file) as url:
            must(httpx.get(f"{url}/status", trust_env=False).status_code == 401, "/status is open")
            look = Dashboard(browser, url, SIZES["desktop"], "light")
            look.see("Locked")
            look.page.get_by_role("button", name="Enter the key").click()
            look.screenshot(out / "key-desktop-light.png", whole=False)
            look.page.locator("#key").fill("pippin_wrong")
            look.page.locator("#key").press("Enter")
            look.see("not known here", "#locked-text")
            look.page.get_by_role("button", name="Enter the key").click()
            look.page.locator("#key").fill(key)
            look.page.locator("#key").press("Enter")
            look.see("Ready")
            look.send("hello")
            look.answer()
            stored = look.page.evaluate("JSON.stringify([localStorage, document.cookie])")
            must(key not in stored, "the key is stored for longer than the tab")
            others = [told for told in look.complaints if "401" not in told]
            must(not others, f"with a key: {others}")
            look.close()
    yield "a server with a key: locked, a wrong key refused, the right one lets in, and is in this tab alone"


def several(browser: Browser, python: str, out: Path) -> Iterator[str]:
    """Check two models, one of which is loaded on demand."""
    file = out / "several.yaml"
    file.write_text(SEVERAL, encoding="utf-8")
    with serving(python, out / "several.log", "--config", str(file)) as url:
        look = Dashboard(browser, url, SIZES["desktop"], "dark")
        look.see("always-here", "#model-name")
        look.see("of 20 MB", "#memory-sum")
        look.page.get_by_role("radio", name="now-and-then").click()
        look.see("Not loaded", "#model-note")
        look.screenshot(out / "several-desktop-dark.png")
        look.send("hello")
        look.answer()
        expect(look.page.locator("#model-note")).to_be_hidden()
        look.page.get_by_role("radio", name="now-and-then").press("ArrowLeft")
        look.see("always-here", "#model-name")
        must(not look.complaints, f"several models: {look.complaints}")
        look.close()
    yield "two models: one is loaded when it is asked, and the arrows choose"


def steps(browser: Browser, python: str, out: Path, load_s: float) -> Iterator[str]:
    """Yield a description of each step. Raises AssertionError, and what Playwright raises."""
    with serving(python, out / "simulated.log", *SIMULATED) as url:
        time.sleep(3)  # builds up some history
        shoot(browser, url, out, "idle")
        yield "idle: four screenshots"
        narrow = Dashboard(browser, url, (320, 640), "light")
        narrow.see("Ready")
        must(not narrow.is_wider_than_the_screen(), "the page does not fit 320 pixels")
        narrow.screenshot(out / "idle-320-light.png")
        narrow.close()
        yield "320 pixels are enough"
        with loading(url, NUM_CLIENTS):
            time.sleep(load_s)
            shoot(browser, url, out, "load")
        yield f"under a load of {NUM_CLIENTS} clients: four screenshots"
    with serving(python, out / "slow.log", "--backend", "mock", "--mock-itl-s", "0.05") as url:
        yield from stop(browser, url, out)
    with serving(python, out / "pocket.log") as url:
        yield from chat(browser, url, out)
    yield from keys(browser, python, out)
    yield from several(browser, python, out)


def main() -> int:
    """Return the exit code: 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="make dashboard", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/dashboard", help="folder for screenshots and logs")
    parser.add_argument(
        "--python", default=str(ROOT / ".venv/bin/python"), help="the interpreter that Pippin runs with"
    )
    parser.add_argument("--load-s", type=float, default=60.0, help="how long the load lasts before it is looked at")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the servers, too
    try:
        with ExitStack() as stack:
            browser = stack.enter_context(browsing())
            for seen in steps(browser, asked.python, asked.out, asked.load_s):
                print(f"ok      {seen}", flush=True)
    except (AssertionError, PageError) as error:
        print(f"FAILED  {error}", flush=True)
        return 1
    print(f"screenshots and logs: {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
