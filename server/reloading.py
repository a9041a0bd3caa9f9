"""Reload on SIGHUP: each part registers the settings that it can change while running.

An invalid configuration changes nothing. A changed setting that no part covers is logged: it needs a restart.
Independent of the parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from server.config import Config, ConfigError, fields, value_of

logger = logging.getLogger("pippin.reload")


@dataclass(frozen=True, slots=True)
class _Part:
    what: str
    keys: frozenset[str]
    apply: Callable[[Config], None]


class Reloading:
    """The parts, and the current configuration. `reread` returns it anew from its sources; None: nothing changes."""

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        self._config = config
        self._reread = reread
        self._parts: list[_Part] = []
        self._values = {f.key: value_of(config, f.key) for f in fields()}
        """Current values, by dotted key."""

    def register(self, what: str, apply: Callable[[Config], None], keys: Iterable[str] = ()) -> None:
        """Call `apply` with every new configuration. It either changes all its settings, or raises and changes nothing.

        `keys`: its settings; empty if it rereads something else, such as a file.
        """
        self._parts.append(_Part(what, frozenset(keys), apply))

    def reload(self) -> None:
        """Read the sources again and apply them to every part. Logs the outcome; raises nothing."""
        try:
            config = self._config if self._reread is None else self._reread()
        except (ConfigError, OSError) as error:
            logger.error("nothing is reloaded: %s", error)
            return
        changed = {key for key, value in self._values.items() if value_of(config, key) != value}
        taken = [part for part in self._parts if _is_applied(part, config)]
        done = frozenset[str]().union(*(part.keys for part in taken)) & changed
        self._values |= {key: value_of(config, key) for key in done}
        if waiting := sorted(changed - done):
            logger.warning("changed, and not taken before a restart: %s", ", ".join(waiting))
        logger.info("reloaded: %s; changed: %s", _list(part.what for part in taken), _list(sorted(done)))


def _is_applied(part: _Part, config: Config) -> bool:
    try:
        part.apply(config)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, the server goes on as it was
        logger.error("not reloaded: %s: %s", part.what, error)
        return False
    return True


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
