"""Compiled grammars, each in a process of its own, so that no grammar can block or end anything else.

    server ── control socket ──> host                one for each model; holds the vocabulary, forks and kills
       └───── socket of a grammar ──> grammar process   compiles it, then says which tokens may come next

The life of a grammar process is that of its socket: the host kills it when the server closes the socket, and a process
that reads the end of its socket exits. `wire`, `limits`, `host` and `matching` run in those processes and import the
standard library and llguidance alone; `compiler` and `process` run in the server and never import llguidance.
"""
