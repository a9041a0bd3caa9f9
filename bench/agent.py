"""An agent's conversation through every API, with the share of each turn's prompt that the prefix cache had.

    python -m bench.agent [--turns 10] [--model FOLDER] [--mock] [--no-peer]

A system prompt, tools, and a history that grows by each answer, a call or text, and by what follows it: a result or
another question. Answers are sent back unchanged, as clients do. The system prompt names the API, so that each begins
cold; mlx_lm.server, which has only chat completions, gets such a conversation, too. Then everything is repeated with a
clock at the beginning of the system prompt, which advances a minute per turn. With `--mock` our server computes
nothing: a script calls a tool a few times and answers, with the model's tokens, template and prefix cache. The pocket
model's template is then also used in a form that leaves out the reasoning before the last question, with
`prefix_cache.next_turn` and without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from bench.client import TIMEOUT_S, open_http
from bench.servers import OURS, PEER, ROOT, RunningServer, ServerKind, run_server

POCKET = ROOT / "server" / "pocket"
MAX_TOKENS = 64
RULES = "\n".join(f"{number}. Read file {number} before you write it, and say what came of it." for number in range(50))
QUESTIONS = (
    "What is the weather in Paris?",
    "How many r's are in strawberry?",
    "What is 17 plus 25?",
    "Which is larger, 9.8 or 9.11?",
    "My name is Anna. What is my name?",
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMES = ("get_weather", "read_file", "write_file", "list_files", "run_tests", "search")
TITLES = (
    "with the same system prompt",
    "with a clock in its system prompt",
    "with a template that leaves thoughts out",
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer: its prompt tokens, the cached ones, the answer as its API takes it back, and its calls."""

    num_prompt: int
    num_cached: int
    given: list[Any]
    calls: list[Any]


@dataclass(frozen=True, slots=True)
class Api:
    """Requests of one API. `ask`: sends the system prompt and the conversation; `result`: builds a call's result."""

    ask: Callable[[httpx2.AsyncClient, str, str, list[Any]], Awaitable[Turn]]
    result: Callable[[Any, str], Any]


@dataclass
class Run:
    """The turns of one API, and the failure, if any."""

    turns: list[Turn] = field(default_factory=list)
    failure: str = ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.agent", description=__doc__)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--model", type=Path, default=POCKET)
    parser.add_argument("--mock", action="store_true")
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)  # ends the servers with this process
    console = Console(width=110)
    with tempfile.TemporaryDirectory(prefix="pippin-bench-") as folder:
        ours = _scripted(Path(folder)) if options.mock else OURS
        found = _run_all(ours, options.model, options.turns, has_peer=not options.no_peer)
        if options.mock and options.model == POCKET:
            found.append(_run_forgetful(ours, Path(folder), options.turns))
    for runs, title in zip(found, TITLES, strict=False):
        _print(console, runs, title)


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _scripted(folder: Path) -> ServerKind:
    """Return a server whose answers come from a script, which is written into the folder."""
    thought = "<think>\nI need the tool for this, and look at what it says.\n</think>\n\n"
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    lines = (
        {"match": r"Result \d*[38]:", "text": f"{thought}All of it is done, and the weather is fine."},
        {"match": "", "text": thought + call},
    )
    script = folder / "script.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    mock = ("--backend", "mock", "--mock-script", str(script), "--mock-tokenizer", "{model}")
    return replace(OURS, arguments=("server", "serve", *mock, "--port", "{port}", "--log-level", "warning"))


def _run_all(ours: ServerKind, model: Path, num_turns: int, *, has_peer: bool) -> list[dict[str, Run]]:
    """Return the runs by API, with the same system prompt and with a clock in it."""
    found: list[dict[str, Run]] = [{}, {}]
    with run_server(ours, model) as server:
        for has_clock in (False, True):
            for name, api in APIS.items():
                found[has_clock][name] = asyncio.run(_converse(server, api, name, num_turns, has_clock))
    if not has_peer:
        return found
    with run_server(PEER, model) as server:
        for has_clock in (False, True):
            run = asyncio.run(_converse(server, APIS["chat"], "chat", num_turns, has_clock))
            found[has_clock]["mlx_lm.server"] = run
    return found


def _run_forgetful(ours: ServerKind, folder: Path, num_turns: int) -> dict[str, Run]:
    """Run a chat with a template that leaves reasoning out. Its client pauses before each question, as people do."""
    settings = json.loads((POCKET / "tokenizer_config.json").read_text(encoding="utf-8"))
    last = "messages[loop.index0:] | selectattr('role', 'equalto', 'user') | list"
    shown = "{%- if '</think>' not in content %}"
    assert shown in settings["chat_template"]
    forgetful = shown.replace("if ", f"if not ({last}) and ")
    settings["chat_template"] = settings["chat_template"].replace(shown, forgetful)
    model = folder / "forgetful"
    model.mkdir()
    shutil.copy(POCKET / "tokenizer.json", model)
    shutil.copy(POCKET / "config.json", model)
    (model / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    found = {}
    for name, value in (("next_turn on", "true"), ("next_turn off", "false")):
        with run_server(ours.having("--prefix-cache-next-turn", value), model) as server:
            found[name] = asyncio.run(_converse(server, APIS["chat"], "chat", num_turns, has_clock=False, pause_s=1.0))
    return found


async def _converse(
    server: RunningServer, api: Api, name: str, num_turns: int, has_clock: bool, *, pause_s: float = 0.0
) -> Run:
    talk: list[Any] = [{"role": "user", "content": QUESTIONS[0]}]
    run = Run()
    async with open_http(server.url) as http:
        for number in range(num_turns):
            clock = f"Current time is 10:{number:02}:00. " if has_clock else ""
            system = f"{clock}You are an agent behind {name}{' with a clock' * has_clock}.\n{RULES}"
            try:
                turn = await api.ask(http, server.model, system, talk)
            except (httpx2.HTTPError, KeyError, ValueError) as error:
                run.failure = f"turn {number + 1}: {error!r}"
                return run
            run.turns.append(turn)
            await asyncio.sleep(0.0 if turn.calls else pause_s)
            said = f"Result {number}: the file has {97 * number} lines."
            results = [api.result(call, said) for call in turn.calls]
            talk += turn.given
            talk += results or [{"role": "user", "content": QUESTIONS[(number + 1) % len(QUESTIONS)]}]
    return run


def _print(console: Console, runs: Mapping[str, Run], title: str) -> None:
    table = Table("turn", "prompt tokens", *runs, title=f"Share of cached prompt tokens, an agent {title}")
    for number in range(max(len(run.turns) for run in runs.values())):
        turns = [run.turns[number] if number < len(run.turns) else None for run in runs.values()]
        first = next(turn for turn in turns if turn is not None)
        table.add_row(str(number + 1), str(first.num_prompt), *map(_share, turns))
    console.print(table)
    for name, run in runs.items():
        later = run.turns[1:]
        if run.failure:
            console.print(f"{name}: {run.failure}", markup=False)
        if later:
            least = min(turn.num_cached / turn.num_prompt for turn in later)
            num_calls = sum(len(turn.calls) for turn in run.turns)
            total = sum(turn.num_cached for turn in later) / sum(turn.num_prompt for turn in later)
            console.print(f"{name}: {total:.1%} from the second turn on, {least:.1%} at least; {num_calls} calls")


def _share(turn: Turn | None) -> str:
    return "-" if turn is None else f"{turn.num_cached / turn.num_prompt:.1%}"


# --- the APIs


async def _post(http: httpx2.AsyncClient, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = await http.post(path, json=body, timeout=TIMEOUT_S)
    if answer.status_code != 200:
        raise ValueError(f"{answer.status_code} {answer.text[:200]}")
    read: dict[str, Any] = answer.json()
    return read


def _function(name: str) -> dict[str, Any]:
    return {"name": name, "description": f"Can {name.replace('_', ' ')} of a city", "parameters": PARAMETERS}


TOOLS = [{"type": "function", "function": _function(name)} for name in NAMES]


async def _chat(http: httpx2.AsyncClient, model: str, system: str, talk: list[Any]) -> Turn:
    messages = [{"role": "system", "content": system}, *talk]
    body = {"model": model, "messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": MAX_TOKENS}
    read = await _post(http, "/v1/chat/completions", body)
    message, usage = read["choices"][0]["message"], read["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Turn(usage["prompt_tokens"], cached, [message], message.get("tool_calls") or [])


async def _messages(http: httpx2.AsyncClient, model: str, system: str, talk: list[Any]) -> Turn:
    functions = list(map(_function, NAMES))
    told = [{"name": each["name"], "description": each["description"]} for each in functions]
    tools = [{**each, "input_schema": PARAMETERS} for each in told]
    asked = {"model": model, "system": system, "messages": talk, "tools": tools}
    read = await _post(http, "/v1/messages", {**asked, "temperature": 0, "max_tokens": MAX_TOKENS})
    usage, blocks = read["usage"], read["content"]
    cached = usage["cache_read_input_tokens"]
    given = [{"role": "assistant", "content": blocks}] if blocks else []
    return Turn(usage["input_tokens"] + cached, cached, given, [each for each in blocks if each["type"] == "tool_use"])


async def _responses(http: httpx2.AsyncClient, model: str, system: str, talk: list[Any]) -> Turn:
    tools = [{"type": "function", **_function(name)} for name in NAMES]
    asked = {"model": model, "instructions": system, "input": talk, "tools": tools, "store": False}
    read = await _post(http, "/v1/responses", {**asked, "temperature": 0, "max_output_tokens": MAX_TOKENS})
    usage, items = read["usage"], read["output"]
    calls = [item for item in items if item["type"] == "function_call"]
    return Turn(usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], items, calls)


async def _ollama(http: httpx2.AsyncClient, model: str, system: str, talk: list[Any]) -> Turn:
    messages, options = [{"role": "system", "content": system}, *talk], {"temperature": 0, "num_predict": MAX_TOKENS}
    before = await _num_cached(http)
    body = {"model": model, "messages": messages, "tools": TOOLS, "options": options, "stream": False}
    read = await _post(http, "/api/chat", body)
    message = read["message"]
    cached = int(await _num_cached(http) - before)
    return Turn(read["prompt_eval_count"], cached, [message], message.get("tool_calls") or [])


async def _num_cached(http: httpx2.AsyncClient) -> float:
    """Return the cached prompt tokens so far, which Ollama's API does not report per answer."""
    text = (await http.get("/metrics")).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    wanted = "pippin_prompt_tokens_total", "cached"
    return sum(sample.value for sample in samples if (sample.name, sample.labels.get("source")) == wanted)


def _tool_result(call: Any, text: str) -> Any:
    return {"role": "tool", "tool_call_id": call["id"], "content": text}


def _messages_result(call: Any, text: str) -> Any:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": text}]}


def _responses_result(call: Any, text: str) -> Any:
    return {"type": "function_call_output", "call_id": call["call_id"], "output": text}


def _ollama_result(call: Any, text: str) -> Any:
    return {"role": "tool", "tool_name": call["function"]["name"], "content": text}


APIS = {
    "chat": Api(_chat, _tool_result),
    "messages": Api(_messages, _messages_result),
    "responses": Api(_responses, _responses_result),
    "ollama": Api(_ollama, _ollama_result),
}

if __name__ == "__main__":
    main()
