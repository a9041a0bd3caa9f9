"""Access control: keys, hosts and origins, rates, and the form of requests. docs/security.md lists every guarantee."""
