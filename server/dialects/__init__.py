"""The public APIs of the server, one folder each; no dialect imports another. A new one is a row here."""

from __future__ import annotations

from server.dialects.admin.routes import build_router as admin
from server.dialects.anthropic_messages.errors import encode_error as messages_error
from server.dialects.anthropic_messages.routes import PREFIXES as MESSAGES_PREFIXES
from server.dialects.anthropic_messages.routes import build_router as anthropic_messages
from server.dialects.dashboard.routes import build_router as dashboard
from server.dialects.dialect import Dialect
from server.dialects.health.routes import build_router as health
from server.dialects.metrics.routes import build_router as metrics
from server.dialects.models.routes import build_router as models
from server.dialects.ollama.errors import encode_error as encode_ollama_error
from server.dialects.ollama.routes import PREFIX as OLLAMA_PREFIX
from server.dialects.ollama.routes import build_router as ollama
from server.dialects.openai_batches.routes import UPLOADS
from server.dialects.openai_batches.routes import build_router as openai_batches
from server.dialects.openai_chat.routes import build_router as openai_chat
from server.dialects.openai_completions.routes import build_router as openai_completions
from server.dialects.openai_embeddings.routes import build_router as openai_embeddings
from server.dialects.openai_responses.routes import build_router as openai_responses
from server.dialects.rerank.routes import build_router as rerank
from server.dialects.tokenize.routes import build_router as tokenize

DIALECTS: tuple[Dialect, ...] = (
    Dialect(openai_completions),
    Dialect(openai_chat),
    Dialect(openai_responses),
    Dialect(openai_embeddings),
    Dialect(openai_batches, takes_files=UPLOADS),
    Dialect(rerank),
    Dialect(anthropic_messages, MESSAGES_PREFIXES, messages_error, id_header="request-id"),
    Dialect(ollama, (OLLAMA_PREFIX,), encode_ollama_error, takes_unlabelled=True),
    Dialect(tokenize),
    Dialect(models),
    Dialect(admin),
    Dialect(health),
    Dialect(metrics),
    Dialect(dashboard),
)
