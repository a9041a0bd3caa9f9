"""Allowed host names, allowed origins of pages, and configurations that are unsafe on a network.

A page of any site can make a browser call this server; two headers that a page cannot forge reveal it. `Host` is the
name the browser connected to: if a site points its own name here (DNS rebinding), it is that name. `Origin` is the
page's site.
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
"""Schemes of apps and extensions: no site has one. `null` and `file`, as of downloaded pages, are not included."""


class UnsafeSetup(Exception):
    """A configuration that would expose the server unintentionally; a one-line message with the remedy."""


def check_setup(config: Config) -> None:
    """Raise UnsafeSetup if other machines could use the server without this being configured explicitly."""
    if is_loopback(config.host):
        return
    security = config.security
    if security.keys_file is None and not security.allow_open:
        raise UnsafeSetup(
            f"listening on {config.host} would let anyone on the network use this server. Add a key with "
            "`pippin keys add NAME --file FILE` and set security.keys_file to FILE, or, if open access is "
            "intended, set security.allow_open"
        )
    if security.keys_file is None and is_wildcard(config.host) and not security.allowed_hosts:
        raise UnsafeSetup(
            f"listening on {config.host} without keys needs security.allowed_hosts: the names and addresses of "
            "this machine. Otherwise any web page opened on this network could use the server"
        )


class HostRule:
    """Allowed `Host` headers, whatever their port."""

    def __init__(self, config: Config) -> None:
        security = config.security
        named = split(security.allowed_hosts)
        # A foreign page has no key, so with keys a server on all addresses need not list its names.
        all_by_key = is_wildcard(config.host) and security.keys_file is not None and not named
        self._allows_all = all_by_key or _ANY in named
        self._names = frozenset(_bare(name) for name in (config.host, *named))

    def allows(self, host: str) -> bool:
        name = _bare(host)
        return bool(name) and (self._allows_all or name in self._names or is_loopback(name))


class OriginRule:
    """Origins of pages that may use the server: its own, `security.cors_origins`, and for the API alone local ones.

    No site can serve pages from a local origin: they belong to installed programs and extensions, which can also reach
    a server on loopback without a browser. Elsewhere they need keys, too.
    """

    def __init__(self, config: Config) -> None:
        is_guarded = is_loopback(config.host) or config.security.keys_file is not None
        self._opens_local = config.security.local_origins and is_guarded
        self._opened = frozenset(origin.rstrip("/").lower() for origin in split(config.security.cors_origins))

    def is_opened(self, origin: str) -> bool:
        """Return whether the configuration allows a foreign page."""
        return _ANY in self._opened or origin.lower() in self._opened

    def is_local(self, origin: str) -> bool:
        """Return whether it is a page of this machine, an app or an extension, and these are allowed."""
        scheme, found, authority = origin.lower().partition("://")
        if not self._opens_local or not found or not authority:
            return False
        if scheme in ("http", "https"):
            name = _bare(authority)
            return name in _LOCAL_NAMES or _is_loopback_ip(name)
        return scheme in _APP_SCHEMES

    @staticmethod
    def is_own(origin: str, host: str) -> bool:
        """Return whether the page came from here. Behind a proxy that terminates TLS the scheme differs."""
        scheme, _, authority = origin.lower().partition("://")
        return scheme in ("http", "https") and bool(authority) and authority == host.lower()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    name = _bare(host)
    return name == "localhost" or name.endswith(".localhost") or _is_loopback_ip(name)


def _is_loopback_ip(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Return whether it stands for every address of this machine."""
    try:
        return ipaddress.ip_address(_bare(host)).is_unspecified
    except ValueError:
        return not host


def split(names: str | None) -> tuple[str, ...]:
    """Return the names of a comma-separated setting."""
    return tuple(_stripped((names or "").split(",")))


def _stripped(names: Iterable[str]) -> Iterable[str]:
    return (name.strip() for name in names if name.strip())


def _bare(host: str) -> str:
    """Return the host in lower case, without port, brackets and trailing dot; empty if it is not a host."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or rest.startswith(":")) else ""
    if host.count(":") == 1:
        host = host.partition(":")[0]
    return host.removesuffix(".")
