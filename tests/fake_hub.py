"""A hub of models on loopback, with the part of its API that a download uses. Records requests, and can stall."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub:
    """One repository. Files that end in .safetensors are large files, identified by their SHA-256."""

    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        self.name, self.files = name, dict(files)
        self.stalls_after: int | None = None
        """The next download of a large file stalls after this many bytes."""
        self.has_stalled = threading.Event()
        self.may_go_on = threading.Event()
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, path, range) of each."""
        self.url = ""

    def digest(self, name: str) -> str:
        content = self.files[name]
        return hashlib.sha256(content).hexdigest() if name.endswith(".safetensors") else git_sha1(content)

    def describe(self, path: str) -> bytes | None:
        """Return the response to an API request."""
        base = f"/api/models/{self.name}"
        if path in (base, f"{base}/revision/main", f"{base}/revision/{COMMIT}"):
            siblings = [self._sibling(name) for name in self.files]
            return json.dumps({"id": self.name, "modelId": self.name, "sha": COMMIT, "siblings": siblings}).encode()
        if path.startswith(f"{base}/tree/"):
            return json.dumps([self._entry(name) for name in self.files]).encode()
        return None

    def _sibling(self, name: str) -> dict[str, object]:
        size, large = len(self.files[name]), name.endswith(".safetensors")
        lfs = {"lfs": {"sha256": self.digest(name), "size": size, "pointerSize": 130}} if large else {}
        return {"rfilename": name, "size": size, "blobId": git_sha1(b"") if large else self.digest(name), **lfs}

    def _entry(self, name: str) -> dict[str, object]:
        size, large = len(self.files[name]), name.endswith(".safetensors")
        lfs = {"lfs": {"oid": self.digest(name), "size": size, "pointerSize": 130}} if large else {}
        oid = git_sha1(b"") if large else self.digest(name)
        return {"type": "file", "path": name, "size": size, "oid": oid, **lfs}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path, asked = self.server.hub, unquote(urlsplit(self.path).path), self.headers.get("Range")
        hub.requests.append((self.command, path, asked))
        prefix = f"/{hub.name}/resolve/"
        if path.startswith(prefix):
            self._send_file(path.removeprefix(prefix).partition("/")[2], asked, with_body)
            return
        body = hub.describe(path)
        self._send(b'{"error": "Repository not found"}' if body is None else body, 404 if body is None else 200)

    def _send(self, body: bytes, status: int) -> None:
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, name: str, asked: str | None, with_body: bool) -> None:
        content = self.server.hub.files[name]
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{self.server.hub.digest(name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if with_body:
            with contextlib.suppress(OSError):  # the client has disconnected
                self._send_content(name, content, start)

    def _send_content(self, name: str, content: bytes, start: int) -> None:
        hub, end = self.server.hub, len(content)
        if hub.stalls_after is not None and name.endswith(".safetensors"):
            end, hub.stalls_after = start + hub.stalls_after, None
        self.wfile.write(content[start:end])
        self.wfile.flush()
        if end < len(content):
            self.close_connection = True
            hub.has_stalled.set()
            hub.may_go_on.wait(60)


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve the hub at `hub.url`."""
    server = _Server(("127.0.0.1", 0), _Answers)
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.may_go_on.set()
        server.shutdown()
        server.server_close()
        thread.join(30)
