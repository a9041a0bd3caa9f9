"""Check a wheel: its content, and that an installed `pippin` serves the model it ships, offline, with an empty home.

    check.py contents WHEEL      compare its files with those of the packages: all, and no others
    check.py use COMMAND         run an installed `pippin` from an empty folder

Needs only Python. Exits with 1 if a check fails.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300
_SERVING = re.compile(r" serving .* on (http://[\d.:]+):")
_DEAD_PROXY = "http://127.0.0.1:9"
"""Nothing listens there: a command that uses the network fails."""


def main() -> int:
    what, path = sys.argv[1:]
    try:
        if what == "contents":
            check_contents(Path(path))
        else:
            check_use(Path(path))
    except AssertionError as error:
        print(f"wheel: FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def expect(holds: bool, what: Any) -> None:
    if not holds:
        raise AssertionError(what)


# --- contents


def check_contents(wheel: Path) -> None:
    """Check that it contains every file of the packages, and no others."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    about = {name for name in names if re.match(r"pippin-[\d.]+\.dist-info/", name)}
    wanted = {"pippin_main.py", *_package_files("server"), *_package_files("mlx_backend")}
    wanted |= {f"server/profiles/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    expect(not wanted - names - about, f"not in the wheel: {sorted(wanted - names)}")
    expect(not names - about - wanted, f"in the wheel by mistake: {sorted(names - about - wanted)}")
    print(f"wheel: {len(names)} files, all of the packages and nothing else", file=sys.stderr)


def _package_files(package: str) -> Iterator[str]:
    for path in (ROOT / package).rglob("*"):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(ROOT).parts)
        if path.is_file() and not hidden:
            yield path.relative_to(ROOT).as_posix()


# --- use


class Installed:
    """The command, in an empty folder with an empty home and without a network."""

    def __init__(self, command: Path, folder: Path) -> None:
        self.command = command
        self.home, self.folder, self.foreign = folder / "home", folder / "empty", folder / "foreign"
        for each in (self.home, self.folder, self.foreign / "server"):
            each.mkdir(parents=True)
        (self.foreign / "server" / "__init__.py").write_text("raise SystemExit('the other server')\n")
        self.environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "COLUMNS": "120",
            "NO_PROXY": "127.0.0.1",
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), _DEAD_PROXY),
        }

    def run(self, *arguments: str, text: str | None = None, **more: str) -> str:
        """Return its standard output. Raises AssertionError if it does not exit with 0."""
        done = subprocess.run(
            [str(self.command), *arguments],
            cwd=self.folder,
            env={**self.environment, **more},
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        said = f"pippin {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}"
        expect(done.returncode == 0, said)
        print(f"wheel: ok: pippin {' '.join(arguments)}", file=sys.stderr)
        return done.stdout

    @contextmanager
    def serve(self, *arguments: str) -> Iterator[str]:
        """Yield the URL of a server that is ready; end it with SIGTERM, which must exit with 0."""
        process = subprocess.Popen(
            [str(self.command), "serve", *arguments, "--port", "0"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(DEADLINE_S, process.kill)
        timer.start()
        lines: list[str] = []
        try:
            assert process.stderr is not None
            found = None
            while found is None and (line := process.stderr.readline()):
                lines.append(line)
                found = _SERVING.search(line)
            expect(found is not None, f"pippin serve ended: {''.join(lines)}")
            assert found is not None
            reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
            reader.start()
            yield found[1]
            process.send_signal(signal.SIGTERM)
            expect(process.wait() == 0, f"SIGTERM: code {process.returncode}: {''.join(lines)}")
            print(f"wheel: ok: pippin serve {' '.join(arguments)}", file=sys.stderr)
        finally:
            timer.cancel()
            if process.poll() is None:
                process.kill()


def check_use(command: Path) -> None:
    """Run everything that a new user does first."""
    with tempfile.TemporaryDirectory(prefix="pippin-use-") as name:
        pippin = Installed(command.absolute(), Path(name))
        expect(pippin.run("--version").startswith("pippin "), "--version")
        check_plans(pippin)
        found = json.loads(pippin.run("doctor", "--json", "--", "--port", "0"))
        expect(not [each for each in found if each["state"] == "problem"], found)
        with pippin.serve() as url:
            check_answers(url)
            expect(bool(pippin.run("chat", "--no-history", "--url", url, text="What is 2 plus 3?\n").strip()), "chat")
            pippin.run("ps", "--url", url)
        with pippin.serve("--backend", "mock") as url:
            check_dashboard(url)
        if has_command(pippin, "run"):
            expect(bool(pippin.run("run", "pocket", "What is 2 plus 3?").strip()), "run")
        check_other_server(pippin)
        left = [path.name for path in pippin.folder.iterdir()]
        expect(not left, f"left in the folder it was started in: {left}")


def has_command(pippin: Installed, name: str) -> bool:
    return re.search(rf"^\W*{name}\s", pippin.run("--help"), re.MULTILINE) is not None


def check_plans(pippin: Installed) -> None:
    """Check the machines' data, and the profiles with their models and settings."""
    expect(len(json.loads(pippin.run("plan", "--list", "--machine", "m3-ultra-512", "--json"))) > 3, "profiles")
    expect(json.loads(pippin.run("plan", "laptop-16", "--json"))["fits"], "laptop-16")
    settings = json.loads(pippin.run("config", "--config", "laptop-16", "--json"))
    expect(settings["context.limit"]["value"] == 16384, settings["context.limit"])


def check_answers(url: str) -> None:
    """Check a completion, a chat, an answer that follows a schema, Anthropic's and Ollama's API."""
    text = ask(url, "/v1/completions", prompt="Once", max_tokens=8, temperature=0)["choices"][0]["text"]
    expect(bool(text), "an empty completion")
    messages = [{"role": "user", "content": "What is 2 plus 3?"}]
    answer = ask(url, "/v1/chat/completions", messages=messages, max_tokens=32, temperature=0)
    expect(bool(answer["choices"][0]["message"]["content"]), answer)
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    held = ask(url, "/v1/completions", prompt="x", max_tokens=64, guided_json=schema, temperature=0)
    expect(json.loads(held["choices"][0]["text"]) == {"a": 1}, held)
    expect(bool(ask(url, "/v1/messages", model="pocket", max_tokens=16, messages=messages)["content"]), "messages")
    expect(bool(ask(url, "/api/chat", model="pocket", stream=False, messages=messages)["message"]), "api/chat")
    check_dashboard(url)


def check_dashboard(url: str) -> None:
    """Check the page, and every file that it or one of its modules names."""
    waiting = set(re.findall(r'(?:src|href)="dashboard/([^"]+)"', get(url, "/", "text/html")))
    seen: set[str] = set()
    while waiting - seen:
        name = (waiting - seen).pop()
        seen.add(name)
        waiting |= set(re.findall(r'from "\./([^"]+)"', get(url, f"/dashboard/{name}", "*/*")))
    expect({"page.css", "main.js", "format.js"} <= seen, f"the page names {seen}")
    get(url, "/status", "application/json")


def check_other_server(pippin: Installed) -> None:
    """Check that the command works with another package `server` first on the path, and that the doctor reports it."""
    path = str(pippin.foreign)
    expect(pippin.run("version", PYTHONPATH=path).startswith("pippin "), "version beside another server")
    found = json.loads(pippin.run("doctor", "--json", "--", "--port", "0", PYTHONPATH=path))
    ignores_it = " -E" in pippin.command.read_text().partition("\n")[0]  # pipx makes Python ignore PYTHONPATH
    state = "ok" if ignores_it else "warning"
    expect([each["state"] for each in found if each["what"] == "packages"] == [state], found)


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url: str, path: str, **body: Any) -> Any:
    headers = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with _OPENER.open(request, timeout=DEADLINE_S) as response:
        return json.load(response)


def get(url: str, path: str, accept: str) -> str:
    request = urllib.request.Request(url + path, headers={"Accept": accept})
    with _OPENER.open(request, timeout=DEADLINE_S) as response:
        return str(response.read().decode())


if __name__ == "__main__":
    sys.exit(main())
