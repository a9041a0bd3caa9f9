"""The body of `/v1/completions` to a job. Decides defaults and what is refused; knows nothing of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.dialects.openai_completions.schema import CompletionRequest, PromptInput
from server.dialects.openai_shared import NO_EFFECT, UNSUPPORTED, check_extra, check_stream_options, decode_sampling
from server.service.job import GenerationJob, Prompt, TextPrompt, TokenPrompt

DEFAULT_MAX_TOKENS = 16

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **UNSUPPORTED,
    "echo": (False,),
    "suffix": ("",),
    "add_special_tokens": (True,),
    "prompt_embeds": (),
}


def decode(body: CompletionRequest, request_id: str) -> tuple[GenerationJob, list[str]]:
    """The job, and the names of the fields that nobody looked at. Raises InvalidRequest."""
    n = body.n or 1
    ignored = check_extra(body.model_extra or {}, {**_UNSUPPORTED, "best_of": (n,)}, NO_EFFECT)
    ignored += check_stream_options(body)
    job = GenerationJob(
        request_id=f"cmpl-{request_id}",
        model=body.model or "",
        prompts=_decode_prompts(body.prompt),
        prompt_param="prompt",
        n=n,
        max_tokens=body.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        sampling=decode_sampling(body, body.logprobs),
        stop=tuple(body.stop or ()),
        ignore_eos=bool(body.ignore_eos),
    )
    return job, ignored


def _decode_prompts(prompt: PromptInput) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (TextPrompt(prompt),)
    if isinstance(prompt[0], int):
        return (_decode_prompt(prompt),)
    return tuple(_decode_prompt(item) for item in prompt)


def _decode_prompt(item: Any) -> Prompt:
    return TextPrompt(item) if isinstance(item, str) else TokenPrompt(tuple(item))
