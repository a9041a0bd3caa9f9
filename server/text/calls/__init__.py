"""Calls of tools: the form of each family of models, read, written and demanded by grammar from one table."""
