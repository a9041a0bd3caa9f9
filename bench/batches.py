"""Batches at a size: every line answered once despite kills, and prefixes computed once.

python -m bench.batches [--lines 10000] [--kills 20] [--only command,server,cached] [--seed 0]

command: `pippin batch` with the mock, killed at random points, beside an undisturbed run.
server:  `pippin serve` with the same lines at /v1/batches, killed at random points.
cached:  1,000 chats behind 10 system prompts, in random order, with the model that comes with Pippin.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from bench.servers import end, free_port
from server import pocket

_WORDS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven"),
    *("islet", "jetty", "knoll", "lemon", "maple", "north", "ocean", "pearl"),
)
_PACE = ("--backend", "mock", "--mock-itl-s", "0.002")
_POLL_S = 0.005
_READY_S = 300.0
_VOLATILE = {"id", "created", "created_at", "completed_at", "request_id", "cached_tokens", "usage"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", default="command,server,cached")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pippin-bench-") as name:
        folder = Path(name)
        chance = random.Random(given.seed)
        source = folder / "in.jsonl"
        write_lines(source, given.lines, chance)
        for part in given.only.split(","):
            if part == "cached":
                measure_cached(folder, chance)
            else:
                whole = folder / "whole.jsonl"
                if not whole.exists():
                    run_command(source, whole, _PACE)
                run = kill_command if part == "command" else kill_server
                seconds, killed = run(source, folder, given.kills, chance)
                compare(part, read_answers([whole]), read_answers(killed), given.lines, given.kills, seconds)


def write_lines(path: Path, num_lines: int, chance: random.Random) -> None:
    """Write chats in random order, one line in a hundred broken or a duplicate."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_lines):
            words = " ".join(chance.choices(_WORDS, k=chance.randint(3, 12)))
            messages = [{"role": "system", "content": f"You are {chance.choice(_WORDS)}."}]
            messages.append({"role": "user", "content": words})
            body = {"messages": messages, "max_tokens": chance.randint(1, 12), "temperature": 0}
            kind = chance.random()
            custom_id = "id 0" if kind < 0.005 and number else f"id {number}"
            line = json.dumps({"custom_id": custom_id, "url": "/v1/chat/completions", "method": "POST", "body": body})
            file.write((line[: len(line) // 2] if kind > 0.995 else line) + "\n")


# --- the command


def start_command(source: Path, out: Path, serve: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "server", "batch", str(source), str(out), "--", *serve]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE)


def run_command(source: Path, out: Path, serve: Sequence[str]) -> str:
    """Run to the end and return its output."""
    process = start_command(source, out, serve)
    _, told = process.communicate()
    if process.returncode:
        raise SystemExit(f"pippin batch ended with {process.returncode}: {told[-500:]}")
    return told


def kill_command(source: Path, folder: Path, num_kills: int, chance: random.Random) -> tuple[float, list[Path]]:
    """Return the seconds of all runs together, and the output."""
    out, began = folder / "command.jsonl", time.monotonic()
    expected = (folder / "whole.jsonl").stat().st_size
    for place in sorted(chance.uniform(0, 0.98) for _ in range(num_kills)):
        process = start_command(source, out, _PACE)
        wait_for(lambda place=place: size_of([out]) >= place * expected, process)
        process.kill()
        process.communicate()
    run_command(source, out, _PACE)
    return time.monotonic() - began, [out]


# --- the server


def kill_server(source: Path, folder: Path, num_kills: int, chance: random.Random) -> tuple[float, list[Path]]:
    """Return the seconds of all runs together, and the files of answers."""
    store, began = folder / "store", time.monotonic()
    expected = (folder / "whole.jsonl").stat().st_size
    places, batch_id = sorted(chance.uniform(0, 0.98) for _ in range(num_kills)), ""
    for place in (*places, None):
        port = free_port()
        command = [sys.executable, "-m", "server", "serve", *_PACE, "--port", str(port), "--log-level", "warning"]
        process = subprocess.Popen(
            [*command, "--batches-dir", str(store)], text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
                wait_for(lambda http=http: is_ready(http), process)
                batch_id = batch_id or create_batch(http, source)
                if place is not None:
                    wait_for(
                        lambda place=place: size_of(store.glob("running/*")) >= place * expected,
                        process,
                    )
                    continue
                wait_for(lambda http=http, id=batch_id: is_over(http, id), process)
                batch = http.get(f"/v1/batches/{batch_id}").json()
                assert batch["status"] == "completed", batch
        finally:
            process.kill() if place is not None else end(process)
            process.wait()
    files = [store / "files" / id for id in (batch["output_file_id"], batch["error_file_id"]) if id]
    return time.monotonic() - began, files


def create_batch(http: httpx.Client, source: Path) -> str:
    with source.open("rb") as file:
        uploaded = http.post("/v1/files", files={"file": file}, data={"purpose": "batch"}).raise_for_status().json()
    body = {"input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    id: str = http.post("/v1/batches", json=body).raise_for_status().json()["id"]
    return id


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/ready").status_code == 200
    except httpx.HTTPError:
        return False  # not listening yet


def is_over(http: httpx.Client, batch_id: str) -> bool:
    time.sleep(0.2)
    return http.get(f"/v1/batches/{batch_id}").json()["status"] not in ("validating", "in_progress", "finalizing")


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    """Return when the condition holds, or the process has ended."""
    until = time.monotonic() + _READY_S
    while not condition() and process.poll() is None:
        assert time.monotonic() < until, "waited in vain"
        time.sleep(_POLL_S)


def size_of(paths: Iterator[Path] | list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


# --- the outcome


def read_answers(paths: Sequence[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def compare(
    what: str,
    whole: Sequence[dict[str, Any]],
    killed: Sequence[dict[str, Any]],
    num_lines: int,
    num_kills: int,
    seconds: float,
) -> None:
    """Print what was lost, doubled or different, and exit with 1 if anything was."""
    numbers = [number_of(record) for record in killed]
    expected = {number_of(record): steady(record) for record in whole}
    lost = set(range(1, num_lines + 1)) - set(numbers)
    num_doubled = len(numbers) - len(set(numbers))
    num_different = sum(steady(record) != expected.get(number_of(record)) for record in killed)
    num_failed = sum(record["error"] is not None for record in killed)
    print(
        f"{what}: {num_lines:,} lines, {num_kills} kills: {len(lost)} lost, {num_doubled} doubled, "
        f"{num_different} different from the run without kills; {num_failed} broken lines are errors; {seconds:.0f} s"
    )
    if lost or num_doubled or num_different or len(whole) != num_lines:
        raise SystemExit(1)


def number_of(record: dict[str, Any]) -> int:
    return int(record["id"].rpartition("_")[2])


def steady(value: Any) -> Any:
    """Return an answer without the parts that vary between runs: ids, times, cached tokens."""
    if isinstance(value, dict):
        return {name: steady(each) for name, each in value.items() if name not in _VOLATILE}
    return [steady(each) for each in value] if isinstance(value, list) else value


# --- cached prefixes


def measure_cached(folder: Path, chance: random.Random) -> None:
    """Print the share of prompt tokens from the prefix cache, of those that could be."""
    systems = [f"You are {' '.join(chance.choices(_WORDS, k=40))}." for _ in range(10)]
    chats = [
        [
            {"role": "system", "content": systems[number % 10]},
            {"role": "user", "content": " ".join(chance.choices(_WORDS, k=5))},
        ]
        for number in range(1000)
    ]
    chance.shuffle(chats)
    source, out = folder / "cached.jsonl", folder / "cached-out.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for number, messages in enumerate(chats):
            body = {"messages": messages, "max_tokens": 2, "temperature": 0}
            file.write(json.dumps({"custom_id": str(number), "url": "/v1/chat/completions", "body": body}) + "\n")
    began = time.monotonic()
    print(run_command(source, out, ["pocket"]).strip())
    seconds = time.monotonic() - began
    usages = [record["response"]["body"]["usage"] for record in read_answers([out])]
    num_prompt = sum(usage["prompt_tokens"] for usage in usages)
    num_cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    num_shared, num_tokens = shareable(chats)
    assert num_tokens == num_prompt, (num_tokens, num_prompt)
    print(
        f"cached: {num_prompt:,} tokens of {len(usages):,} prompts, {num_shared:,} of them in a prefix of another; "
        f"{num_cached:,} from the cache, {100 * num_cached / num_shared:.1f} % of what can be shared; {seconds:.0f} s"
    )


def shareable(chats: Sequence[list[dict[str, str]]]) -> tuple[int, int]:
    """Return the tokens that share their position and everything before with an earlier prompt; and all tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(pocket.folder()))
    num_shared = num_tokens = 0
    root: dict[int, Any] = {}
    for messages in chats:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        num_tokens += len(tokens)
        node = root
        for token in tokens:
            num_shared += token in node
            node = node.setdefault(token, {})
    return num_shared, num_tokens


if __name__ == "__main__":
    main()
