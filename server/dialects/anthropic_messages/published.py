"""Published schema of the answers: the message, the events of a stream, and every failure."""

from __future__ import annotations

from server.dialects.anthropic_messages.schema import AnsweredMessage, MessagesError, StreamEvent
from server.dialects.openai_schema import Responses

_REF = "#/components/schemas/{model}"
_FAILURES = {
    400: "The request cannot be served as it is",
    401: "No key was sent, or one that is not known, where keys are asked for",
    403: "The `Host` or `Origin` is not one that this server answers to",
    404: "No served model has this name",
    408: "The body did not come in time",
    413: "The body is larger than `security.max_body_bytes`",
    429: "The key has used up what it may use in a minute",
    431: "More headers, or longer ones, than are read",
    500: "A fault of the server, or of the computation",
    503: "Not now: the model loads, the queue is full, or the engine is dead",
}
FAILURES: Responses = {status: {"model": MessagesError, "description": about} for status, about in _FAILURES.items()}


def _answers() -> Responses:
    found = StreamEvent.model_json_schema(ref_template=_REF, mode="serialization")
    names = [_REF.format(model=model.__name__) for model in (StreamEvent, MessagesError)]
    data = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [{"$ref": name} for name in names]}}
    event = {
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": {"type": "string", **data}},
        "required": ["event", "data"],
        "$defs": {**found.pop("$defs", {}), StreamEvent.__name__: found},  # `server.openapi` moves them into place
    }
    about = "The answer whole, or with `stream` as server-sent events"
    return {
        200: {"model": AnsweredMessage, "description": about, "content": {"text/event-stream": {"itemSchema": event}}}
    }


ANSWERS: Responses = _answers()
