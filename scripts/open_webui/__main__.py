"""Open WebUI against Pippin: start both, ask as a person would, keep the screenshots and both logs, end both.

Prints a line for each step; exits with 1 at the first that fails.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Error as PageError

from bench.servers import end, free_port
from scripts.open_webui.chat import Chat, browsing

ROOT = Path(__file__).parents[2]
WAIT_S = 300.0
STOP_S = 5.0  # limit for Pippin to stop after the stop button; the whole answer takes several times as long
MODEL, LONG = "pocket", "pocket-long"
LONG_ANSWER = r"(One more line of a long answer\.\n){200}"  # the model's own answers are too short to stop
PIPPIN = {"HF_HUB_OFFLINE": "1"}
WEBUI = {
    "ENABLE_OLLAMA_API": "False",
    "OPENAI_API_KEYS": "none",
    "WEBUI_AUTH": "False",
    "WEBUI_SECRET_KEY": "none",
    "OFFLINE_MODE": "True",
    "HF_HUB_OFFLINE": "1",
    "ANONYMIZED_TELEMETRY": "False",
    "RAG_EMBEDDING_ENGINE": "openai",  # otherwise it needs an embedding model on disk
    "TASK_MODEL_EXTERNAL": MODEL,  # titles, tags and follow-up questions
    "DEFAULT_MODEL_PARAMS": '{"temperature": 0}',
    # its own tools take 15,000 tokens of the pocket model, which has a context of 4,096
    "DEFAULT_MODEL_METADATA": '{"capabilities": {"builtin_tools": false}}',
}


def must(seen: object, otherwise: str) -> None:
    if not seen:
        raise AssertionError(otherwise)  # the error of Playwright's expectations


def wait_until(is_so: Callable[[], bool], limit_s: float, otherwise: str) -> None:
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        must(time.monotonic() < deadline_s, otherwise)
        time.sleep(0.05)


def steps(chat: Chat, pippin: httpx.Client, log: Path) -> Iterator[str]:
    """Yield a description of each step. Raises AssertionError, and what Playwright raises."""

    def count(*states: str) -> int:
        stats = pippin.get("/health").json()["models"][0]["stats"]
        return sum(stats[f"num_{state}"] for state in states)

    def is_idle() -> bool:
        return count("waiting", "prefilling", "running") == 0

    chat.new(MODEL)
    answer = chat.ask("My name is Anna.")[-1]
    must("Anna" in answer, f"the first turn is wrong: {answer!r}")
    yield f"a first turn: {answer!r}"

    texts = chat.ask("How many r's are in strawberry?")
    chat.screenshot("1-answer")
    lengths = [len(text) for text in texts]
    must(re.search(r"\b3\b", texts[-1]), f"the second turn is wrong: {texts[-1]!r}")
    must(len(lengths) > 1 and lengths == sorted(lengths), f"the answer is not streamed: {texts}")
    yield f"a second, streamed: {texts[-1]!r}, seen with {lengths} characters"

    reasoning = chat.open_reasoning()
    chat.screenshot("2-reasoning")
    must(reasoning, "there is nothing under the fold")
    yield f"its reasoning, folded and opened: {reasoning!r}"

    answer = chat.ask("What is my name?")[-1]
    chat.screenshot("3-later-turn")
    must("Anna" in answer, f"the third turn is wrong: {answer!r}")
    yield f"a third, which knows the first: {answer!r}"

    wait_until(is_idle, WAIT_S, "Pippin does not come to an end with titles and tags")
    aborted = count("aborted")
    chat.add_model(LONG, MODEL, guided_regex=LONG_ANSWER)
    chat.new(LONG)
    chat.send("Tell me something long.")
    chat.wait_for("a long answer.")
    chat.screenshot("4-long-answer")
    must(count("running"), "the long answer was over before it could be stopped")
    chat.stop()
    clicked_s = time.monotonic()
    wait_until(lambda: count("aborted") > aborted, STOP_S, "Pippin went on after the stop button")
    took_s = time.monotonic() - clicked_s
    num_lines = chat.finish()[-1].count("a long answer.")
    chat.screenshot("5-stopped")
    wait_until(is_idle, WAIT_S, "Pippin is not idle afterwards")
    yield f"a long answer, stopped after {num_lines} of 200 lines; at Pippin {took_s:.2f} s later, which is idle now"

    lines = log.read_text(encoding="utf-8").splitlines()
    complaints = [line for line in lines if re.search(r" (WARNING|ERROR|CRITICAL) |: answered |: ignored ", line)]
    must(not complaints, "\n".join(["Pippin's log has complaints:", *complaints]))
    yield f"{sum(' finish=' in line for line in lines)} requests, none refused, no field ignored"


@contextmanager
def running(command: list[str], environ: dict[str, str], ready: str, log: Path) -> Iterator[None]:
    """Run a process that answers `ready`, until the block ends. Raises AssertionError."""

    def answers() -> bool:
        must(process.poll() is None, f"{command[0]} has ended; see {log}")
        try:
            return httpx.get(ready, trust_env=False, timeout=10).status_code == 200
        except httpx.HTTPError:
            return False  # not listening yet

    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, text=True, cwd=ROOT, env={**os.environ, **environ})
    try:
        wait_until(answers, WAIT_S, f"{command[0]} does not answer; see {log}")
        yield
    finally:
        end(process)


def run(out: Path, python: str) -> None:
    """Start both servers and the browser, and run every step. Raises as `steps` does."""
    ports = [str(free_port()), str(free_port())]
    pippin, webui = (f"http://127.0.0.1:{port}" for port in ports)
    log = out / "pippin.log"
    serve_pippin = [python, "-m", "server", "serve", "--port", ports[0]]
    serve_webui = [
        str(Path(sys.executable).with_name("open-webui")),
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        ports[1],
    ]
    with ExitStack() as stack:
        stack.enter_context(running(serve_pippin, PIPPIN, f"{pippin}/ready", log))
        data = stack.enter_context(tempfile.TemporaryDirectory())
        environ = {**WEBUI, "OPENAI_API_BASE_URLS": f"{pippin}/v1", "DATA_DIR": data}
        stack.enter_context(running(serve_webui, environ, f"{webui}/health", out / "open-webui.log"))
        chat = stack.enter_context(browsing(webui, out))
        client = stack.enter_context(httpx.Client(base_url=pippin, trust_env=False))
        for seen in steps(chat, client, log):
            print(f"ok      {seen}", flush=True)


def main() -> int:
    """Return the exit code: 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="make open-webui", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/open-webui", help="folder for screenshots and logs")
    parser.add_argument(
        "--python", default=str(ROOT / ".venv/bin/python"), help="the interpreter that Pippin runs with"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the servers, too
    try:
        run(asked.out, asked.python)
    except (AssertionError, PageError) as error:
        print(f"FAILED  {error}", flush=True)
        return 1
    print(f"screenshots and logs: {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
