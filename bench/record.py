"""One request as its client saw it: the record of `pippin bench`."""

from __future__ import annotations

from server.client.record import Record

__all__ = ["Record"]
