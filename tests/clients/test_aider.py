"""aider, by each of three APIs, against a mock with a script: it is asked for a change, and the file is changed.

It would like to fetch lists of models, and goes on where it cannot.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.running import ROOT, environment, run, scripted, url_of

AIDER = ROOT / ".venv-aider" / "bin"
EDIT = """I change the greeting.

hello.py
```python
<<<<<<< SEARCH
print("hello")
=======
print("good morning")
>>>>>>> REPLACE
```
"""
pytestmark = pytest.mark.clients


def ask(aider: list[str], home: Path) -> str:
    assert AIDER.is_dir(), "aider is not there; `make clients` sets it up"
    work = home / "work"
    work.mkdir()
    (work / "hello.py").write_text('print("hello")\n', encoding="utf-8")
    env = environment(home)
    env["PATH"] = f"{AIDER}:{env['PATH']}"
    options = ["--yes-always", "--no-git", "--edit-format", "diff", "--message", "Say good morning.", "hello.py"]
    run([*aider, *options], env=env, cwd=work)
    return (work / "hello.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("api", ["chat", "messages", "ollama"])
def test_a_file_is_changed(api: str, tmp_path: Path) -> None:
    with scripted(tmp_path, [(".", EDIT)], "--aliases", "claude-*") as (_, client):
        changed = ask([str(ROOT / "examples" / "aider.sh"), url_of(client), api], tmp_path)
    assert changed == 'print("good morning")\n'


def test_it_is_launched(tmp_path: Path) -> None:
    with scripted(tmp_path, [(".", EDIT)]) as (_, client):
        changed = ask(["pippin", "launch", "aider", "--url", url_of(client), "--"], tmp_path)
    assert changed == 'print("good morning")\n'
