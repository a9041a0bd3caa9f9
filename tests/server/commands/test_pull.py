"""`pippin pull` and `pippin verify`, as processes, against a hub on loopback: what is fetched, resumed, damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fake_hub import FakeHub, serving
from tests.serving import wait_until

MB = 1 << 20
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": os.urandom(24 * MB),
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "modeling.py": b"raise SystemExit",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"read me",
}
FETCHED = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
DEADLINE_S = 60


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving(FakeHub("owner/tiny", FILES)) as hub:
        yield hub


Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(hub: FakeHub, tmp_path: Path) -> Iterator[Start]:
    """Start the command; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        folders = {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        environment = {**os.environ, **folders, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **variables}
        command = [sys.executable, "-m", "server", *arguments]
        process = subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def run(start: Start) -> Run:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, **variables)
        out, err = process.communicate(timeout=DEADLINE_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run


def snapshot(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "hf" / "hub" / "models--owner--tiny" / "snapshots").iterdir()
    return folder


def downloads(hub: FakeHub) -> list[tuple[str, str | None]]:
    """(file, range) of what was fetched of the repository."""
    fetched = [(path, part) for method, path, part in hub.requests if method == "GET" and "/resolve/" in path]
    return [(path.rpartition("/")[2], part) for path, part in fetched]


def test_weights_configuration_and_tokenizer_are_fetched_and_no_code(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    done = run("pull", "owner/tiny")
    assert done.returncode == 0, done.stderr
    folder = snapshot(tmp_path)
    assert {path.name for path in folder.iterdir()} == FETCHED == {name for name, _ in downloads(hub)}
    assert done.stdout == f"owner/tiny is in {folder}\nto serve it: pippin serve owner/tiny\n"
    assert "downloading owner/tiny: 100% (0.03 of 0.03 GB)" in done.stderr
    again = run("verify", "owner/tiny")
    assert (again.returncode, again.stdout) == (0, f"{folder}: 4 files match the hub's record\n")
    hub.requests.clear()
    assert run("pull", "owner/tiny").returncode == 0
    assert downloads(hub) == []


def num_arrived(tmp_path: Path) -> int:
    """Bytes of the largest file that is on its way, or there."""
    return max((path.stat().st_size for path in (tmp_path / "hf").rglob("blobs/*")), default=0)


def test_what_was_interrupted_goes_on_where_it_stopped(hub: FakeHub, start: Start, run: Run, tmp_path: Path) -> None:
    hub.stalls_after = 15 * MB
    process = start("pull", "owner/tiny")
    assert hub.has_stalled.wait(DEADLINE_S)
    wait_until(lambda: num_arrived(tmp_path) >= 5 * MB)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (130, "stopped; to resume: pippin pull owner/tiny\n")
    hub.requests.clear()
    assert run("pull", "owner/tiny").returncode == 0
    ((name, part),) = [each for each in downloads(hub) if each[0].endswith(".safetensors")]
    assert part is not None and int(part.removeprefix("bytes=").rstrip("-")) >= 5 * MB, name


def test_a_damaged_file_is_named_and_pull_fetches_it_again(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    assert run("pull", "owner/tiny").returncode == 0
    weights = snapshot(tmp_path) / "model.safetensors"
    with weights.resolve().open("r+b") as stream:
        stream.seek(9 * MB)
        stream.write(b"\0\1\2\3")
    found = run("verify", "owner/tiny")
    assert found.returncode == 1
    damaged, summary = found.stdout.splitlines()
    assert damaged.startswith(f"{weights} is damaged: its SHA-256 is ")
    assert damaged.endswith(f"and should be {hub.digest('model.safetensors')}")
    assert summary == "1 of 4 files differ from the hub's record"
    hub.requests.clear()
    assert run("pull", "owner/tiny").returncode == 0
    assert [name for name, _ in downloads(hub)] == ["model.safetensors"]
    assert run("verify", "owner/tiny").returncode == 0


@pytest.mark.parametrize(
    ("model", "variables", "says"),
    [
        (
            "owner/other",
            {},
            "owner/other does not exist on the hub, or is private: check the name, or run `hf auth login`",
        ),
        ("owner/tiny", {"HF_HUB_OFFLINE": "1"}, "owner/tiny cannot be downloaded: HF_HUB_OFFLINE is set"),
        (
            "owner/tiny",
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "owner/tiny cannot be downloaded: [Errno ",
        ),
        ("../tiny", {}, "'../tiny' is not a hub id; use owner/model"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run: Run, model: str, variables: dict[str, str], says: str) -> None:
    done = run("pull", model, **variables)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"pippin: {says}")


def test_a_repository_without_weights_is_no_model(hub: FakeHub, run: Run) -> None:
    del hub.files["model.safetensors"]
    done = run("pull", "owner/tiny")
    assert done.returncode == 2
    assert "owner/tiny has no model*.safetensors" in done.stderr
    assert downloads(hub) == []


def test_verify_of_what_was_not_pulled(run: Run, tmp_path: Path) -> None:
    missing = run("verify", "owner/tiny")
    assert missing.returncode == 2
    assert missing.stderr.endswith("owner/tiny is not in the download cache; to download it: pippin pull owner/tiny\n")
    unknown = run("verify", str(tmp_path))
    assert unknown.returncode == 3
    assert "there is neither a SHA256SUMS nor a record of the hub" in unknown.stdout
    pocket = run("verify")
    assert (pocket.returncode, "5 files match SHA256SUMS of the folder" in pocket.stdout) == (0, True)


INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
SHARDED = {
    "config.json": FILES["config.json"],
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {**INDEX["weight_map"], "m": "mtp.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "mtp.safetensors": b"beside",
    "model-00007-of-00009.safetensors": b"left over",
    "consolidated.safetensors": b"another format",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
}
LEFT_OUT = {"model-00007-of-00009.safetensors", "consolidated.safetensors"}


def test_what_the_index_names_is_fetched_and_serve_fetches_the_same(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    hub.files = dict(SHARDED)
    assert run("pull", "owner/tiny").returncode == 0
    folder = snapshot(tmp_path)
    fetched = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert fetched == SHARDED.keys() - LEFT_OUT
    hub.requests.clear()
    done = run("serve", "owner/tiny", "--port", "0")
    assert "not a readable safetensors file" in done.stderr
    assert downloads(hub) == []


def test_serve_alone_fetches_what_belongs_to_the_model(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    hub.files = dict(SHARDED)
    assert "not a readable safetensors file" in run("serve", "owner/tiny", "--port", "0").stderr
    folder = snapshot(tmp_path)
    fetched = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert fetched == SHARDED.keys() - LEFT_OUT
    assert run("verify", "owner/tiny").returncode == 0


def test_a_repository_whose_weights_are_not_whole(hub: FakeHub, run: Run) -> None:
    hub.files = {name: content for name, content in SHARDED.items() if not name.startswith("model-00002")}
    for command in ("pull", "serve"):
        done = run(command, "owner/tiny")
        assert done.returncode != 0
        assert "owner/tiny lacks model-00002-of-00002.safetensors (1 of 3 files)" in done.stderr
