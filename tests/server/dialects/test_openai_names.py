"""The names that OpenAI's dialects give to the fields of a job are fields of their requests."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from pydantic import BaseModel

from server.dialects.openai_chat.schema import ChatRequest
from server.dialects.openai_completions.schema import CompletionRequest
from server.dialects.openai_names import CHAT_NAMES, COMPLETION_NAMES
from server.service.names import FieldNames


@pytest.mark.parametrize(
    ("names", "body", "absent"),
    [
        (COMPLETION_NAMES, CompletionRequest, {"tools", "must_call", "thinking_budget"}),
        (CHAT_NAMES, ChatRequest, {"suffix"}),
    ],
)
def test_every_name_is_a_field(names: FieldNames, body: type[BaseModel], absent: set[str]) -> None:
    missing = {field for field, name in asdict(names).items() if name not in body.model_fields}
    assert missing == absent
