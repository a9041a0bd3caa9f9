"""What schemathesis changes in the bodies that it makes up, so that more of them get as far as an answer.

Imported by the environment of `make fuzz`, not by the tests. Bodies that are meant to be refused stay as they are.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import schemathesis

MAX_TOKENS = 8
GRAMMARS = ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")
NOT_OF_THE_MOCK = ("model", "thinking_budget", "tools", "tool_choice", "suffix", "dimensions")
NOT_OF_RESPONSES = ("max_tokens", "previous_response_id", "n", "background", "text")
NOT_OF_OLLAMA = ("images", "template", "context", "keep_alive", "max_tokens")
NOT_WITH_A_GRAMMAR = ("min_tokens", "allowed_token_ids")


def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Take out what the mock has not, and what cannot be combined; short answers, half of them streamed."""
    if not isinstance(case.body, dict) or case.meta.generation.mode.value != "positive":
        return
    body = {name: value for name, value in case.body.items() if name not in NOT_OF_THE_MOCK and value is not None}
    grammars = [name for name in GRAMMARS if name in body]
    for name in (*grammars[1:], *(NOT_WITH_A_GRAMMAR if grammars else ())):
        body.pop(name, None)
    if "messages" in body or "max_tokens" in body:
        body["max_tokens"] = MAX_TOKENS
        body.pop("max_completion_tokens", None)
    if case.path == "/v1/responses":
        body = {name: value for name, value in body.items() if name not in NOT_OF_RESPONSES}
        body["max_output_tokens"] = MAX_TOKENS
    if case.path in ("/api/chat", "/api/generate"):
        body = {name: value for name, value in body.items() if name not in NOT_OF_OLLAMA}
        body |= {"options": {**(body.get("options") or {}), "num_predict": MAX_TOKENS}, "stream": False}
    if case.path.startswith(("/v1/", "/api/")) and zlib.crc32(json.dumps(body).encode()) % 2:
        body["stream"] = True
        body.pop("best_of", None)
    else:
        body.pop("stream_options", None)
    case.body = body


schemathesis.hook(before_call)
