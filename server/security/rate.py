"""Rate limits of a key, in requests and tokens per minute, as steadily refilled buckets.

A full bucket holds a minute's worth. A request takes its tokens at admission, the prompt and its maximal output, and
returns what it did not write. One that may write more than a full bucket needs the bucket full and drives it below
zero, which the next request waits out. Independent of HTTP except for the names of OpenAI's headers.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from server.config import SecurityConfig
from server.security.keys import Key
from server.security.refusals import RateLimited

Clock = Callable[[], float]


class Bucket:
    """At most `per_minute`, refilled at that rate."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def take(self, amount: int) -> None:
        """Take an amount, even beyond the level."""
        self._level = self.level - amount

    def give_back(self, amount: int) -> None:
        """Return part of what was taken."""
        self._level = min(self.per_minute, self.level + amount)

    def wait_s(self, level: float) -> float:
        """Return the seconds until the level is reached."""
        return max(0.0, (level - self.level) * 60 / self.per_minute)


class Account:
    """Remaining requests and tokens of one key; unlimited without a limit."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.limits = (requests_per_minute, tokens_per_minute)
        self._requests = None if requests_per_minute is None else Bucket(requests_per_minute, clock)
        self._tokens = None if tokens_per_minute is None else Bucket(tokens_per_minute, clock)

    def admit(self) -> None:
        """Count one request. Raises RateLimited without counting it."""
        for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            if bucket is not None and bucket.level < 1:
                raise RateLimited(what, bucket.per_minute, bucket.wait_s(1))
        if self._requests is not None:
            self._requests.take(1)

    def reserve(self, num_tokens: int) -> RateGrant:
        """Take tokens for a request that may need this many. Raises RateLimited without taking any."""
        bucket = self._tokens
        if bucket is None:
            return RateGrant(None, num_tokens)
        needed = min(num_tokens, bucket.per_minute)
        if bucket.level < needed:
            raise RateLimited("tokens", bucket.per_minute, bucket.wait_s(needed), num_tokens)
        bucket.take(num_tokens)
        return RateGrant(bucket, num_tokens)

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers for the limits that apply."""
        found = {}
        for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            if bucket is not None:
                found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.level)))
                found[f"x-ratelimit-reset-{what}"] = _duration(bucket.wait_s(bucket.per_minute))
        return found


class RateGrant:
    """The tokens that one request has taken. Without a bucket, nothing is counted."""

    def __init__(self, bucket: Bucket | None, num_tokens: int) -> None:
        self._bucket = bucket
        self._num_tokens = num_tokens

    def use(self, num_tokens: int) -> None:
        """Record the tokens used so far; takes those beyond the reservation."""
        if num_tokens > self._num_tokens:
            if self._bucket is not None:
                self._bucket.take(num_tokens - self._num_tokens)
            self._num_tokens = num_tokens

    def settle(self, num_tokens: int) -> None:
        """Record the tokens used in total and return the others. Idempotent."""
        self.use(num_tokens)
        if self._bucket is not None:
            self._bucket.give_back(self._num_tokens - num_tokens)
            self._bucket = None


class Accounts:
    """The accounts of all keys; without keys, one shared account."""

    def __init__(self, config: SecurityConfig, clock: Clock = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def take_limits(self, config: SecurityConfig) -> None:
        """Apply new limits; an account with changed limits is replaced at its next request."""
        self._config = config

    def of(self, key: Key | None) -> Account:
        """Return a key's account; a new one if its limits have changed."""
        name = key.name if key else ""
        requests = key.requests_per_minute if key else None
        tokens = key.tokens_per_minute if key else None
        limits = (requests or self._config.requests_per_minute, tokens or self._config.tokens_per_minute)
        account = self._accounts.get(name)
        if account is None or account.limits != limits:
            account = self._accounts[name] = Account(*limits, self._clock)
        return account


def _duration(seconds: float) -> str:
    """Format a duration as OpenAI does: 250ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{round(seconds, 1):g}s"
    return f"{int(seconds // 60)}m{int(seconds % 60)}s"
