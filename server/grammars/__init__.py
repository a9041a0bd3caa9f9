"""Compiled grammars, each in its own process, so that no grammar can block or crash anything else.

    server ── control socket ──> host                one for each model; holds the vocabulary, forks and kills
       └───── socket of a grammar ──> grammar process   compiles it, then computes which tokens may come next

A grammar process lives as long as its socket: the host kills it when the server closes the socket, and a process that
reads the end of its socket exits. `wire`, `limits`, `host` and `matching` run in those processes and import only the
standard library and llguidance; `compiler` and `process` run in the server and never import llguidance.
"""
