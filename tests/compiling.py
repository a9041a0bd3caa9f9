"""Compilation of grammars for tests without an event loop, each in its own process as in the server."""

from __future__ import annotations

import asyncio
import atexit
from collections import deque

from server.grammars.compiler import GrammarBudget, GrammarCompiler
from server.grammars.process import Grammar
from server.text.grammar import GrammarSource
from server.text.reasoning import Reasoning
from server.text.tokenizer import ByteTokenizer, Tokenizer

_MOST_HELD = 16


class BlockingCompiler:
    """A GrammarCompiler with a blocking `compile`. Its host lives as long as the test process."""

    def __init__(self, tokenizer: Tokenizer, budget: GrammarBudget | None = None) -> None:
        self.compiler = GrammarCompiler(tokenizer, budget)
        self._newest: deque[Grammar] = deque()
        atexit.register(self.compiler.close)

    def compile(self, source: GrammarSource, thought: Reasoning | None = None, *, for_good: bool = False) -> Grammar:
        """Compile a grammar that lasts until many others are compiled, or `for_good`. Raises GrammarError."""
        grammar = asyncio.run(self.compiler.compile(source, thought))
        if not for_good:
            self._newest.append(grammar)
        if len(self._newest) > _MOST_HELD:
            self._newest.popleft().release()
        return grammar


TOKENIZER = ByteTokenizer()
COMPILER = BlockingCompiler(TOKENIZER)
