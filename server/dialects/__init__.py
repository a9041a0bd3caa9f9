"""The public APIs this server speaks, one folder each; no dialect imports another. A new one is a row here."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from server.dialects.admin.routes import build_router as admin
from server.dialects.dashboard.routes import build_router as dashboard
from server.dialects.health.routes import build_router as health
from server.dialects.metrics.routes import build_router as metrics
from server.dialects.models.routes import build_router as models
from server.dialects.openai_chat.routes import build_router as openai_chat
from server.dialects.openai_completions.routes import build_router as openai_completions
from server.dialects.openai_embeddings.routes import build_router as openai_embeddings
from server.dialects.parts import ServerParts
from server.dialects.tokenize.routes import build_router as tokenize

DIALECTS: tuple[Callable[[ServerParts], APIRouter], ...] = (
    openai_completions,
    openai_chat,
    openai_embeddings,
    tokenize,
    models,
    admin,
    health,
    metrics,
    dashboard,
)
