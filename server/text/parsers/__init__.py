"""Parsing of an answer into reasoning, calls and content, by the marks of each model family."""
