"""Keys: the file, what is refused of it, the ring that reads it again, and how keys are compared."""

from __future__ import annotations

import hashlib
import hmac
import os
import types
from pathlib import Path

import pytest

from server import cli
from server.security import keys
from server.security.keys import Key, KeyRing, KeysError, add, hash_of, new_key, parse, read_keys, revoke

HASH = hashlib.sha256(b"secret").hexdigest()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_a_key_is_found_and_nowhere_in_the_file(path: Path) -> None:
    key = add(path, "alice")
    assert key.startswith("pippin_") and len(key) == 7 + 43
    assert key not in path.read_text() and key.removeprefix("pippin_") not in path.read_text()
    found = KeyRing(path).find(key)
    assert found is not None and found.name == "alice"
    assert KeyRing(path).find(key[:-1]) is None


def test_keys_differ() -> None:
    assert len({new_key() for _ in range(100)}) == 100


def test_the_file_is_its_owners_alone(path: Path) -> None:
    old = os.umask(0)
    try:
        add(path, "alice")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600


def test_lines_with_limits_and_comments(path: Path) -> None:
    text = f"# ours\n\nalice:{HASH}\n bob:{HASH}:requests_per_minute=60,tokens_per_minute=1000 \n"
    text += f"root:{HASH}:admin,priority=batch\n"
    alice, bob, root = parse(path, text)
    assert alice == Key(name="alice", hash=HASH)
    assert bob == Key(name="bob", hash=HASH, requests_per_minute=60, tokens_per_minute=1000)
    assert root == Key(name="root", hash=HASH, is_admin=True, priority="batch")
    assert alice.priority == "live"


@pytest.mark.parametrize(
    "line",
    [
        "alice",
        "alice:",
        "alice:abc",
        f"alice:{HASH.upper()}",
        f"alice:{HASH}:priority=urgent",
        f":{HASH}",
        f"a b:{HASH}",
        f"-a:{HASH}",
        f"alice:{HASH}:speed=3",
        f"alice:{HASH}:admin=1",
        f"alice:{HASH}:Admin",
        f"alice:{HASH}:tokens_per_minute=0",
        f"alice:{HASH}:tokens_per_minute=-1",
        f"alice:{HASH}:tokens_per_minute=٣",
        f"alice:{HASH}:tokens_per_minute",
        f"x:{HASH}",
        "alice:plain-text-key",
    ],
)
def test_a_broken_line_is_told_by_its_number_and_not_quoted(path: Path, line: str) -> None:
    with pytest.raises(KeysError, match="line 2") as caught:
        parse(path, f"x:{HASH}\n{line}")
    assert HASH not in str(caught.value) and "plain-text-key" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604, 0o602])
def test_a_file_that_others_can_read_or_write_is_refused(path: Path, mode: int) -> None:
    write(path, f"alice:{HASH}\n", mode)
    with pytest.raises(KeysError, match="chmod 600"):
        KeyRing(path)


def test_what_is_no_keys_file(path: Path, tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="No such file"):
        KeyRing(path)
    with pytest.raises(KeysError, match="directory"):
        KeyRing(tmp_path)
    path.write_bytes(b"\xff")
    path.chmod(0o600)
    with pytest.raises(KeysError, match="UTF-8"):
        KeyRing(path)
    write(path, "#" * ((1 << 20) + 1))
    with pytest.raises(KeysError, match="larger"):
        KeyRing(path)


def test_a_key_is_added_and_revoked_while_others_stay(path: Path) -> None:
    write(path, f"# ours\nold:{HASH}\n")
    add(path, "alice", requests_per_minute=5, tokens_per_minute=None)
    revoke(path, "old")
    assert path.read_text().startswith("# ours\nalice:")
    assert [(key.name, key.requests_per_minute) for key in read_keys(path)] == [("alice", 5)]
    with pytest.raises(KeysError, match="already"):
        add(path, "alice")
    with pytest.raises(KeysError, match="no key 'bob'"):
        revoke(path, "bob")
    with pytest.raises(KeysError, match="name"):
        add(path, "a:b")


def test_a_name_that_begins_like_another_is_another(path: Path) -> None:
    for name in ("bobby", "bob", "bo", "bobcat"):
        add(path, name)
    revoke(path, "bob")
    assert [key.name for key in read_keys(path)] == ["bobby", "bo", "bobcat"]
    with pytest.raises(KeysError, match="no key 'bob'"):
        revoke(path, "bob")


def test_a_file_behind_a_link_stays_behind_it(path: Path, tmp_path: Path) -> None:
    """Somewhere it is kept, and linked from where it is looked for."""
    kept = tmp_path / "elsewhere" / "kept"
    kept.parent.mkdir()
    write(kept, f"old:{HASH}\n")
    path.symlink_to(kept)
    key = add(path, "alice")
    revoke(path, "old")
    assert path.is_symlink() and path.resolve() == kept
    assert [each.name for each in read_keys(kept)] == ["alice"]
    assert kept.stat().st_mode & 0o777 == 0o600
    assert found(KeyRing(path), key) is not None


def found(ring: KeyRing, sent: str) -> Key | None:
    """As the gate does it: the file is looked at where that is due."""
    if ring.is_due:
        ring.reload()
    return ring.find(sent)


def test_a_revoked_key_is_refused_within_a_second_without_a_restart(path: Path) -> None:
    clock = Clock()
    alice, bob = add(path, "alice"), add(path, "bob")
    ring = KeyRing(path, clock)
    revoke(path, "alice")
    assert found(ring, alice) is not None  # looked at a moment ago
    clock.now += 1.0
    assert found(ring, alice) is None
    assert found(ring, bob) is not None
    carol = add(path, "carol")
    clock.now += 1.0
    assert found(ring, carol) is not None


def test_what_is_revoked_is_said(path: Path) -> None:
    alice, bob = add(path, "alice"), add(path, "bob")
    ring = KeyRing(path, Clock())
    assert ring.reload() == frozenset()
    revoke(path, "alice")
    assert ring.reload() == {hash_of(alice)}
    lines = path.read_text().splitlines()
    write(path, "\n".join(f"{line}:requests_per_minute=5" for line in lines))
    assert ring.reload() == frozenset(), "another limit is no other key"
    revoke(path, "bob")
    add(path, "bob")
    assert ring.reload() == {hash_of(bob)}, "another key of the same name is"


def test_a_file_that_could_not_be_read_is_read_once_it_can_be(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Written anew with a mode that is refused, then `chmod 600`, as the log says: the text did not change since."""
    clock = Clock()
    alice = add(path, "alice")
    ring = KeyRing(path, clock)
    write(path, f"bob:{HASH}", 0o644)
    clock.now += 1.0
    assert found(ring, alice) is not None
    assert "chmod 600" in caplog.text
    path.chmod(0o600)
    clock.now += 1.0
    assert found(ring, alice) is None


@pytest.mark.parametrize("at_start", [True, False])
def test_a_fifo_is_not_waited_for(path: Path, at_start: bool) -> None:
    alice = add(path, "alice")
    ring = KeyRing(path, Clock())
    path.unlink()
    os.mkfifo(path, 0o600)
    if at_start:
        with pytest.raises(KeysError, match="is not a file"):
            KeyRing(path)
    ring.reload()
    assert ring.find(alice) is not None


def test_the_file_is_looked_at_once_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = Clock(), list[object]()
    key = add(path, "alice")
    ring, stat = KeyRing(path, clock), os.stat

    def look(path: Path) -> os.stat_result:
        looks.append(path)
        return stat(path)

    monkeypatch.setattr(keys, "os", types.SimpleNamespace(stat=look))
    for _ in range(50):
        found(ring, key)
        clock.now += 0.1
    assert 4 <= len(looks) <= 5


@pytest.mark.parametrize("damage", ["text", "mode", "gone"])
def test_a_file_that_cannot_be_read_again_changes_nothing(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    key = add(path, "alice")
    ring = KeyRing(path, clock)
    if damage == "text":
        write(path, "rubbish")
    elif damage == "mode":
        write(path, f"thief:{HASH}", 0o666)
    else:
        path.unlink()
    for _ in range(3):
        clock.now += 1.0
        assert found(ring, key) is not None
        assert found(ring, "secret") is None
    assert caplog.text.count("keeping the previous keys") == 1
    path.unlink(missing_ok=True)
    fresh = add(path, "bob")
    clock.now += 1.0
    assert found(ring, fresh) is not None and found(ring, key) is None


def test_every_hash_is_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever key it is, and where it is none: the same comparisons."""
    sent = [add(path, name) for name in ("a", "b", "c")]
    ring, compared = KeyRing(path), []

    def compare(one: str, other: str) -> bool:
        compared.append(len(one))
        return hmac.compare_digest(one, other)

    stand_in = type("hmac", (), {"compare_digest": staticmethod(compare)})
    monkeypatch.setattr(keys, "hmac", stand_in)
    for key in (*sent, "nobody's"):
        compared.clear()
        ring.find(key)
        assert compared == [64, 64, 64]


@pytest.mark.parametrize("sent", ["", "\0", "ä", "\udcff", "x" * 100_000])
def test_whatever_is_sent_is_compared(path: Path, sent: str) -> None:
    add(path, "alice")
    assert KeyRing(path).find(sent) is None


# --- the command


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    return int(ended.value.code or 0)


def test_the_command_prints_the_key_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("keys", "add", "alice", "--file", str(path), "--requests-per-minute", "60") == 0
    told = capsys.readouterr()
    key = told.out.strip()
    assert KeyRing(path).find(key) is not None
    assert key not in told.err

    assert run("keys", "list", "--file", str(path)) == 0
    assert capsys.readouterr().out == "alice  60 requests per minute\n"
    assert (
        run("keys", "add", "root", "--admin", "--tokens-per-minute", "9", "--priority", "batch", "--file", str(path))
        == 0
    )
    capsys.readouterr()
    assert run("keys", "list", "--file", str(path)) == 0
    assert capsys.readouterr().out.splitlines()[1] == "root  admin, 9 tokens per minute, class batch"
    assert run("keys", "add", "urgent", "--priority", "urgent", "--file", str(path)) == 2
    assert "priority must be one of live, normal, batch" in capsys.readouterr().err

    assert run("keys", "revoke", "alice", "--file", str(path)) == 0
    assert KeyRing(path).find(key) is None
    capsys.readouterr()
    assert run("keys", "revoke", "alice", "--file", str(path)) == 2
    assert "no key 'alice'" in capsys.readouterr().err


def test_the_command_finds_the_configured_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIPPIN_SECURITY_KEYS_FILE", str(path))
    assert run("keys", "add", "alice") == 0
    assert [key.name for key in read_keys(path)] == ["alice"]
    monkeypatch.delenv("PIPPIN_SECURITY_KEYS_FILE")
    assert run("keys", "list") == 2
    assert "--file" in capsys.readouterr().err
