"""Settle volatile lines of a job's prompts as configured, and build the header that reports it."""

from __future__ import annotations

from dataclasses import replace

from server.config import ApiConfig
from server.service.job import ChatPrompt, GenerationJob
from server.text.volatile import settle

VOLATILE_HEADER = "X-Pippin-Volatile-Lines"
"""Lists each kind of line that was found, and whether it was moved or dropped."""


def settle_job(job: GenerationJob, config: ApiConfig) -> tuple[GenerationJob, dict[str, str]]:
    """Return the job with its chats settled, and the headers that report what was done."""
    headers: dict[str, str] = {}
    prompts = []
    for prompt in job.prompts:
        if isinstance(prompt, ChatPrompt):
            prompt, found = settle_prompt(prompt, config)
            headers |= found
        prompts.append(prompt)
    return (replace(job, prompts=tuple(prompts)) if headers else job), headers


def settle_prompt(prompt: ChatPrompt, config: ApiConfig) -> tuple[ChatPrompt, dict[str, str]]:
    """Return a chat without volatile lines in its system prompt, and the headers that report what was done."""
    if config.volatile_lines == "keep":
        return prompt, {}
    settled = settle(prompt.messages)
    if not settled.fates:
        return prompt, {}
    said = ", ".join(f"{name}={fate}" for name, fate in settled.fates)
    prompt = replace(prompt, messages=settled.messages, reminders=settled.reminders)
    return prompt, {VOLATILE_HEADER: said}
