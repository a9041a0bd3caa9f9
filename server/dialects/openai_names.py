"""Names of a job's fields in the OpenAI dialects, for refusals by the service."""

from __future__ import annotations

from server.service.names import FieldNames

COMPLETION_NAMES = FieldNames(prompt="prompt", num_logprobs="logprobs")
CHAT_NAMES = FieldNames(prompt="messages", must_call="tool_choice", num_logprobs="logprobs")
RESPONSES_NAMES = FieldNames(
    prompt="input", must_call="tool_choice", num_logprobs="top_logprobs", thinking_budget="reasoning.effort"
)
