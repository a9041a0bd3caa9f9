"""What may be listened on, which hosts are answered, and whose pages may ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.config import Config, SecurityConfig
from server.security.hosts import HostRule, OriginRule, UnsafeSetup, check_setup
from server.security.keys import add


def config(host: str = "127.0.0.1", **security: object) -> Config:
    return Config(host=host, security=SecurityConfig(**security))  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "LOCALHOST"])
def test_loopback_needs_nothing(host: str) -> None:
    check_setup(config(host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "mac.local", "128.0.0.1", "localhost.example"])
def test_another_address_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(UnsafeSetup, match=r"pippin keys add.*allow_open"):
        check_setup(config(host))
    check_setup(config(host, keys_file="keys"))
    check_setup(config(host, allow_open=True, allowed_hosts="mac.local"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_all_addresses_without_a_key_need_names(host: str) -> None:
    with pytest.raises(UnsafeSetup, match="allowed_hosts"):
        check_setup(config(host, allow_open=True))
    check_setup(config("192.168.1.2", allow_open=True))


def test_the_process_ends_with_1_and_says_what_to_do(tmp_path: Path) -> None:
    def serve(*flags: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "server", "serve", "--backend", "mock", "--port", "0", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    code, told = serve("--host", "0.0.0.0")
    assert code == 1 and "pippin keys add" in told and "Traceback" not in told
    keys = tmp_path / "keys"
    add(keys, "alice")
    keys.chmod(0o644)
    code, told = serve("--security-keys-file", str(keys))
    assert code == 1 and "chmod 600" in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("pippin.localhost:8080", True),
        ("localhost.:8080", True),
        ("[::1]:8080", True),
        ("127.1.2.3", True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("evil.example/localhost", False),
        ("192.168.1.2", False),
        ("0.0.0.0:8080", False),
        ("[::]", False),
        ("[::1", False),
        ("[::1]evil.example", False),
        ("", False),
        (":8080", False),
        ("*", False),
    ],
)
def test_a_loopback_server_answers_to_its_own_names(host: str, answered: bool) -> None:
    assert HostRule(config()).allows(host) is answered


def test_names_are_added() -> None:
    rule = HostRule(config("192.168.1.2", allow_open=True, allowed_hosts="mac.local, Pippin.Example"))
    for host in ("192.168.1.2:80", "mac.local", "pippin.example:443", "localhost"):
        assert rule.allows(host)
    assert not rule.allows("evil.example")
    assert HostRule(config(allowed_hosts="*")).allows("whatever.example")


def test_on_all_addresses_a_key_stands_for_the_names_unless_they_are_named() -> None:
    assert HostRule(config("0.0.0.0", keys_file="k")).allows("whatever.example")
    assert not HostRule(config("0.0.0.0", keys_file="k", allowed_hosts="a.example")).allows("whatever.example")
    assert not HostRule(config("127.0.0.1", keys_file="k")).allows("whatever.example")


def test_origins() -> None:
    rule = OriginRule(config(cors_origins="https://a.example, http://b.example:3000/"))
    for origin in ("https://a.example", "HTTPS://A.example", "http://b.example:3000"):
        assert rule.is_opened(origin)
    for origin in ("http://a.example", "https://a.example:444", "https://x.a.example", "null", "", "https://a.exampl"):
        assert not rule.is_opened(origin)
    assert not OriginRule(config()).is_opened("https://a.example")


def test_local_origins_beyond_loopback_need_keys() -> None:
    origin = "tauri://localhost"
    assert OriginRule(config()).is_local(origin)
    assert OriginRule(config("0.0.0.0", keys_file="k")).is_local(origin)
    assert not OriginRule(config("0.0.0.0", allow_open=True)).is_local(origin)
    assert not OriginRule(config(local_origins=False)).is_local(origin)


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        ("http://localhost:8080", True),
        ("https://localhost:8080", True),
        ("http://localhost:8081", False),
        ("http://localhost", False),
        ("file://localhost:8080", False),
        ("null", False),
        ("", False),
        ("http://", False),
        ("localhost:8080", False),
    ],
)
def test_a_servers_own_page(origin: str, is_own: bool) -> None:
    assert OriginRule.is_own(origin, "localhost:8080") is is_own
