"""One server for each module of tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.server.dialects.anthropic_messages.serving import Server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.aclose()
