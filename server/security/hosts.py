"""Which names this server answers to, which origins' pages may use it, and what may not be opened to a network.

A page of any site can make a browser call this server; two headers that a page cannot forge tell. `Host` is the name
that the browser believes it talks to: where a site has pointed its own name here (DNS rebinding), it is that name.
`Origin` is whose page it is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from server.config import Config

_ANY = "*"
_LOCAL_NAMES = frozenset({"localhost", "tauri.localhost"})
_APP_SCHEMES = frozenset(
    {
        *("app", "tauri", "electron", "capacitor", "ionic", "vscode-webview", "vscode-file"),
        *("chrome-extension", "moz-extension", "safari-web-extension"),
    }
)
"""Schemes of apps and extensions: no site has one. `null` and `file`, as downloaded pages have, are not here."""


class UnsafeSetup(Exception):
    """A configuration that would open the server to whom it should not be; one line that says what to do."""


def check_setup(config: Config) -> None:
    """Raise UnsafeSetup where others than this machine could use the server and nobody said so."""
    if is_loopback(config.host):
        return
    security = config.security
    if security.keys_file is None and not security.allow_open:
        raise UnsafeSetup(
            f"listening on {config.host} would let anybody on the network use this server. Make a key with "
            "`pippin keys add NAME --file FILE` and set security.keys_file to FILE, or say that it is "
            "meant so: security.allow_open"
        )
    if security.keys_file is None and is_wildcard(config.host) and not security.allowed_hosts:
        raise UnsafeSetup(
            f"listening on {config.host} without keys needs security.allowed_hosts: the names and addresses under "
            "which this machine is called. Else any page that somebody looks at on this network could use the server"
        )


class HostRule:
    """Which `Host` headers are answered, whatever their port."""

    def __init__(self, config: Config) -> None:
        security = config.security
        named = split(security.allowed_hosts)
        # A foreign page has no key, so that with keys a server on all addresses need not know its names.
        all_by_key = is_wildcard(config.host) and security.keys_file is not None and not named
        self._allows_all = all_by_key or _ANY in named
        self._names = frozenset(_bare(name) for name in (config.host, *named))

    def allows(self, host: str) -> bool:
        name = _bare(host)
        return bool(name) and (self._allows_all or name in self._names or is_loopback(name))


class OriginRule:
    """The origins whose pages may use the server: its own, those of `security.cors_origins`; local ones, the API alone.

    No site can have its pages come from a local origin: they are those of programs and extensions that somebody has
    installed, which reach a server on loopback without a browser as well. Elsewhere they need keys, too.
    """

    def __init__(self, config: Config) -> None:
        is_guarded = is_loopback(config.host) or config.security.keys_file is not None
        self._opens_local = config.security.local_origins and is_guarded
        self._opened = frozenset(origin.rstrip("/").lower() for origin in split(config.security.cors_origins))

    def is_opened(self, origin: str) -> bool:
        """Whether a foreign page may, by the configuration."""
        return _ANY in self._opened or origin.lower() in self._opened

    def is_local(self, origin: str) -> bool:
        """Whether it is a page of this machine, of an app or of an extension, and these may."""
        scheme, found, authority = origin.lower().partition("://")
        if not self._opens_local or not found or not authority:
            return False
        if scheme in ("http", "https"):
            name = _bare(authority)
            return name in _LOCAL_NAMES or _is_loopback_ip(name)
        return scheme in _APP_SCHEMES

    @staticmethod
    def is_own(origin: str, host: str) -> bool:
        """Whether the page came from here. Behind a proxy that ends TLS the scheme is another."""
        scheme, _, authority = origin.lower().partition("://")
        return scheme in ("http", "https") and bool(authority) and authority == host.lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine gets there."""
    name = _bare(host)
    return name == "localhost" or name.endswith(".localhost") or _is_loopback_ip(name)


def _is_loopback_ip(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether it stands for every address of this machine."""
    try:
        return ipaddress.ip_address(_bare(host)).is_unspecified
    except ValueError:
        return not host


def split(names: str | None) -> tuple[str, ...]:
    """The names of a setting with commas between."""
    return tuple(_stripped((names or "").split(",")))


def _stripped(names: Iterable[str]) -> Iterable[str]:
    return (name.strip() for name in names if name.strip())


def _bare(host: str) -> str:
    """Lower case, without a port, brackets and a last dot; empty for what is no host."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or rest.startswith(":")) else ""
    if host.count(":") == 1:
        host = host.partition(":")[0]
    return host.removesuffix(".")
