"""Tenant identity: which key a job belongs to. The only view of keys in the layers below the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_backend.api.interface import PRIORITIES, Priority
from server.security.rate import Account, RateGrant
from server.security.refusals import KeyRevoked


class Revocation:
    """Revocation state of a key, and its watchers. One for all requests of a key; on the event loop."""

    def __init__(self) -> None:
        self._is_revoked = False
        self._watchers: list[Callable[[], None]] = []

    def check(self) -> None:
        """Raise KeyRevoked if the key has been revoked."""
        if self._is_revoked:
            raise KeyRevoked

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when the key is revoked; return its cancellation. Raises KeyRevoked if it already is."""
        self.check()
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    def revoke(self) -> None:
        """Revoke the key and call the watchers."""
        self._is_revoked = True
        watchers, self._watchers = self._watchers, []
        for callback in watchers:
            callback()


@dataclass(frozen=True, slots=True)
class Tenant:
    """Name of the key that was sent, empty without keys; and the account that counts the job's tokens."""

    name: str = ""
    account: Account = field(default_factory=Account)
    shares_prefixes: bool = False
    revocation: Revocation = field(default_factory=Revocation)
    priority: Priority = "live"
    """The most urgent class that its requests may be of."""

    def allow(self, priority: Priority) -> Priority:
        """Return the class of a request that asks for one."""
        return max(priority, self.priority, key=PRIORITIES.index)

    def reserve(self, num_tokens: int) -> RateGrant:
        """Take tokens before they are computed. Raises RateLimited."""
        return self.account.reserve(num_tokens)

    @property
    def mark(self) -> str:
        """Its part of a log line, after the model's name."""
        return f" key={self.name}" if self.name else ""

    @property
    def fields(self) -> dict[str, str]:
        """The same in machine-readable form."""
        return {"key": self.name} if self.name else {}

    def salt(self, given: str) -> str:
        """Return the salt that keeps its prompts apart from those of other tenants, with the request's own salt."""
        return given if self.shares_prefixes or not self.name else f"{self.name}\0{given}"
