"""Third-party agents: the command line, variables and files that point each at one server.

Describes what they read; starts nothing and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY_VARIABLE = "PIPPIN_API_KEY"
NO_KEY = "none"
"""Clients require a key; a server without keys ignores it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server that an agent uses. `url`: without `/v1`; `context`: tokens, None before the first load."""

    url: str
    model: str
    key: str | None = None
    context: int | None = None

    @property
    def sent_key(self) -> str:
        return self.key or NO_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Launch of an agent. `files`: by their names in its folder; `unset`: variables that would interfere."""

    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A row of the table: the command, how to install it, the context it needs, and how to start it."""

    command: str
    install: str
    least_context: int
    prepare: Callable[[Target, Path], Launch]
    """Variables and arguments for the target and the agent's folder."""


def _codex(target: Target, folder: Path) -> Launch:
    window = {} if target.context is None else {"model_context_window": target.context}
    provider = {"name": "Pippin", "base_url": f"{target.url}/v1", "wire_api": "responses", "env_key": KEY_VARIABLE}
    settings = {"model": target.model, "model_provider": "pippin", **window}
    # JSON strings and numbers are valid TOML
    lines = [*_toml(settings), "", "[model_providers.pippin]", *_toml(provider)]
    return Launch(
        variables={"CODEX_HOME": str(folder), KEY_VARIABLE: target.sent_key},
        files={"config.toml": "\n".join([*lines, ""])},
    )


def _toml(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value)}" for name, value in settings.items()]


def _claude(target: Target, folder: Path) -> Launch:
    sizes = ("HAIKU", "SONNET", "OPUS")
    names = ["ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in sizes)]
    return Launch(
        arguments=("--model", target.model),
        variables={
            **dict.fromkeys(names, target.model),
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_AUTH_TOKEN": target.sent_key,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CONFIG_DIR": str(folder),
        },
        unset=("ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX"),
        files={".claude.json": json.dumps({"hasCompletedOnboarding": True}) + "\n"},
    )


def _opencode(target: Target, folder: Path) -> Launch:
    model: dict[str, Any] = {"name": target.model}
    if target.context is not None:
        model["limit"] = {"context": target.context, "output": min(32_000, target.context // 4)}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Pippin",
        "options": {"baseURL": f"{target.url}/v1", "apiKey": f"{{env:{KEY_VARIABLE}}}"},
        "models": {target.model: model},
    }
    name = f"pippin/{target.model}"
    settings: dict[str, Any] = {"provider": {"pippin": provider}, "model": name, "small_model": name}
    settings |= {"share": "disabled", "autoupdate": False}
    homes = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "STATE", "CACHE")}
    return Launch(
        variables={**homes, "OPENCODE_CONFIG": str(folder / "opencode.json"), KEY_VARIABLE: target.sent_key},
        files={"opencode.json": json.dumps(settings, indent=2) + "\n"},
    )


def _aider(target: Target, folder: Path) -> Launch:
    name = f"openai/{target.model}"
    known: dict[str, Any] = {"litellm_provider": "openai", "mode": "chat"}
    known |= {"input_cost_per_token": 0, "output_cost_per_token": 0}
    if target.context is not None:
        known |= {"max_input_tokens": target.context, "max_output_tokens": target.context, "max_tokens": target.context}
    kept = ("chat-history-file", "input-history-file")
    return Launch(
        arguments=(
            *("--model", name, "--weak-model", name),
            *("--model-metadata-file", str(folder / "models.json")),
            *(part for option in kept for part in (f"--{option}", str(folder / option))),
            *("--no-gitignore", "--no-check-update", "--analytics-disable", "--no-show-model-warnings"),
        ),
        variables={"OPENAI_API_BASE": f"{target.url}/v1", "OPENAI_API_KEY": target.sent_key},
        files={"models.json": json.dumps({name: known}, indent=2) + "\n"},
    )


AGENTS: Mapping[str, Agent] = {
    "codex": Agent(command="codex", install="npm install -g @openai/codex", least_context=32_000, prepare=_codex),
    "opencode": Agent(
        command="opencode", install="npm install -g opencode-ai", least_context=32_000, prepare=_opencode
    ),
    "claude": Agent(
        command="claude", install="npm install -g @anthropic-ai/claude-code", least_context=64_000, prepare=_claude
    ),
    "aider": Agent(command="aider", install="pip install aider-chat", least_context=8_000, prepare=_aider),
}


def choose_model(models: Sequence[Mapping[str, Any]], wanted: str | None) -> Mapping[str, Any]:
    """Return the wanted model of `/v1/models`; else the first that is loaded, or the first. Raises ValueError."""
    if not models:
        raise ValueError("the server serves no model")
    if wanted is not None:
        found = [model for model in models if model["id"] == wanted]
        # the server resolves other names of a model, which the list lacks
        return found[0] if found else {"id": wanted}
    return next((model for model in models if model.get("state") == "loaded"), models[0])
