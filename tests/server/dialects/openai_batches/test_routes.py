"""`/v1/files` and `/v1/batches` over a socket: the SDK's way through, other keys, bad requests, uploads that fail."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sse_starlette.sse import SendTimeoutError

from server.batches.store import Upload
from server.config import BatchesConfig, Config, SecurityConfig
from server.dialects.openai_batches import files
from server.dialects.openai_batches.schema import BatchList, BatchObject, FileList, FileObject
from server.security import keys
from tests.server.batches.made import jsonl, request
from tests.serving import DEADLINE_S, LiveServer, mock_engine, serve, wait_until

ENDED = {"completed", "failed", "expired", "cancelled"}


class Site:
    """A server with two keys."""

    def __init__(self, live: LiveServer, keys: dict[str, str], folder: Path) -> None:
        self.live, self.keys, self.folder = live, keys, folder
        self.clients = {
            name: httpx.Client(
                base_url=live.url, headers={"Authorization": f"Bearer {key}"}, timeout=DEADLINE_S, trust_env=False
            )
            for name, key in keys.items()
        }
        self.ann, self.bob = self.clients["ann"], self.clients["bob"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    made = {name: keys.add(folder / "keys", name) for name in ("ann", "bob")}
    config = Config(
        batches=BatchesConfig(dir=str(folder / "store"), max_file_mb=1.0, max_files=40),
        security=SecurityConfig(keys_file=str(folder / "keys"), max_body_bytes=100_000),
    )
    with serve(mock_engine(), config) as live:
        found = Site(live, made, folder / "store")
        yield found
        for client in found.clients.values():
            client.close()


def upload(client: httpx.Client, content: bytes, name: str = "in.jsonl", **data: str) -> httpx.Response:
    return client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "batch", **data})


def create(client: httpx.Client, file_id: str, **body: Any) -> httpx.Response:
    given = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h", **body}
    return client.post("/v1/batches", json=given)


def ended(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(client.get(f"/v1/batches/{batch_id}").json())
        return found["status"] in ENDED

    wait_until(has_ended)
    return found


LINES = jsonl(*(request(f"id {n}", prompt=f"hello {n}", max_tokens=4) for n in range(12)))


def test_the_sdk_finds_its_way(site: Site) -> None:
    with openai.OpenAI(base_url=f"{site.live.url}/v1", api_key=site.keys["ann"], max_retries=0) as client:
        content = LINES + jsonl(b"{", request("id 0"), request("long", prompt="x", max_tokens=-7))
        file = client.files.create(
            file=("mine.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert (file.filename, file.bytes, file.purpose) == ("mine.jsonl", len(content), "batch")
        assert file.expires_at is not None
        assert 3599 <= file.expires_at - file.created_at <= 3601
        assert client.files.content(file.id).content == content
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", metadata={"night": "1"}
        )
        assert (batch.status, batch.metadata, batch.expires_at) == (
            "validating",
            {"night": "1"},
            batch.created_at + 86400,
        )
        found = client.batches.retrieve(ended(site.ann, batch.id)["id"])
        counts = found.request_counts
        assert counts is not None
        assert (found.status, counts.total, counts.completed, counts.failed) == ("completed", 15, 12, 3)
        assert found.output_file_id is not None
        assert found.error_file_id is not None
        output = [json.loads(line) for line in client.files.content(found.output_file_id).text.splitlines()]
        assert {record["custom_id"] for record in output} == {f"id {n}" for n in range(12)}
        assert all(len(record["response"]["body"]["choices"][0]["text"]) > 0 for record in output)
        errors = [json.loads(line) for line in client.files.content(found.error_file_id).text.splitlines()]
        assert sorted((record["error"] or {}).get("code") or "400" for record in errors) == [
            *("400", "duplicate_custom_id", "invalid_json"),
        ]
        assert {file.id, found.output_file_id, found.error_file_id} <= {each.id for each in client.files.list()}
        assert [each.id for each in client.files.list(purpose="batch_output", limit=1)]
        assert client.batches.list(limit=1).data[0].id == batch.id
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError, match="No file found"):
            client.files.retrieve(file.id)


def test_another_key_sees_nothing_and_can_do_nothing(site: Site) -> None:
    file = upload(site.ann, LINES).json()["id"]
    batch = create(site.ann, file).json()["id"]
    ended(site.ann, batch)
    for method, path in (
        ("GET", f"/v1/files/{file}"),
        ("GET", f"/v1/files/{file}/content"),
        ("DELETE", f"/v1/files/{file}"),
        ("GET", f"/v1/batches/{batch}"),
        ("POST", f"/v1/batches/{batch}/cancel"),
        ("GET", f"/v1/files?after={file}"),
        ("GET", f"/v1/batches?after={batch}"),
    ):
        assert site.bob.request(method, path).status_code == 404, path
        assert httpx.request(method, f"{site.live.url}{path}", trust_env=False).status_code == 401, path
    answer = create(site.bob, file)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "input_file_id")
    assert file not in site.bob.get("/v1/files").text
    assert site.bob.get("/v1/batches").json()["data"] == []
    assert site.ann.delete(f"/v1/files/{file}").status_code == 200


@pytest.mark.parametrize(
    "id", ["..%2f..%2fkeys", "%2e%2e", "..%5c..%5ckeys", "file-%00", "lock", f"file-{'0' * 32}", "é"]
)
def test_an_id_is_no_path(site: Site, id: str) -> None:
    for path in (f"/v1/files/{id}", f"/v1/files/{id}/content", f"/v1/batches/{id}"):
        assert site.ann.get(path).status_code == 404


def test_a_name_is_no_path_and_no_header(site: Site) -> None:
    file = upload(site.ann, b"x", '../../keys"\r\nX-Bad: 1').json()
    assert "/" not in file["filename"]
    answer = site.ann.get(f"/v1/files/{file['id']}/content")
    assert "X-Bad" not in answer.headers
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert not any("keys" in path.name for path in site.folder.rglob("*"))
    site.ann.delete(f"/v1/files/{file['id']}")


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_page_of_another_site_uploads_nothing(site: Site, origin: str) -> None:
    before = sorted(site.folder.rglob("*"))
    files, data = {"file": ("in.jsonl", LINES)}, {"purpose": "batch"}
    answer = site.ann.post("/v1/files", headers={"Origin": origin}, files=files, data=data)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert sorted(site.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"endpoint": 7}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "0s"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"completion_window": "9" * 50 + "s"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": [1]}, "metadata"),
        ({"input_file_id": None}, "input_file_id"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(site: Site, body: dict[str, Any], param: str) -> None:
    answer = create(site.ann, "file-x", **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_unknown_fields_are_listed(site: Site) -> None:
    file = upload(site.ann, LINES).json()["id"]
    answer = create(site.ann, file, output_expires_after={"seconds": 3600})
    assert answer.headers["X-Pippin-Ignored-Fields"] == "output_expires_after"
    BatchObject.model_validate_json(answer.text)
    ended(site.ann, answer.json()["id"])
    for path, kind in (("files", FileList), ("batches", BatchList)):
        kind.model_validate_json(site.ann.get(f"/v1/{path}").text)
    FileObject.model_validate_json(site.ann.get(f"/v1/files/{file}").text)


def test_lists_have_pages(site: Site) -> None:
    made = [upload(site.bob, b"x").json()["id"] for _ in range(3)]
    first = site.bob.get("/v1/files?limit=2").json()
    assert ([file["id"] for file in first["data"]], first["has_more"]) == (made[:0:-1], True)
    assert (first["first_id"], first["last_id"]) == (made[2], made[1])
    rest = site.bob.get(f"/v1/files?limit=2&after={first['last_id']}").json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (made[:1], False)
    assert [file["id"] for file in site.bob.get("/v1/files?order=asc").json()["data"]] == made
    assert site.bob.get("/v1/files?purpose=batch_output").json()["data"] == []
    for query in ("limit=0", "limit=x", "order=up", "limit=10001"):
        assert site.bob.get(f"/v1/files?{query}").status_code == 400
    for id in made:
        site.bob.delete(f"/v1/files/{id}")


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        ({"purpose": "fine-tune"}, {"file": ("a", b"x")}, "purpose"),
        ({}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "batch"}, {"other": ("a", b"x")}, "file"),
        ({"purpose": "batch", "expires_after[seconds]": "1"}, {"file": ("a", b"x")}, "expires_after"),
        ({"purpose": "batch", "expires_after[seconds]": "١٢٣٤٥"}, {"file": ("a", b"x")}, "expires_after"),
    ],
)
def test_an_upload_that_cannot_be_kept_leaves_nothing(
    site: Site, data: dict[str, str], files: dict[str, Any], param: str
) -> None:
    before = sorted(site.folder.rglob("*"))
    answer = site.ann.post("/v1/files", data=data, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert sorted(site.folder.rglob("*")) == before


def test_a_file_may_be_larger_than_other_bodies_but_not_than_a_file(site: Site) -> None:
    def chunked(size: int) -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(size // 10_000):
            yield b"x" * 10_000
        yield b"\r\n--b--\r\n"

    answer = upload(site.ann, b"x" * 900_000)
    assert answer.json()["bytes"] == 900_000
    site.ann.delete(f"/v1/files/{answer.json()['id']}")
    assert upload(site.ann, b"x" * 1_000_001).status_code == 413
    assert upload(site.ann, b"x" * 1_200_000).status_code == 413
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for size, status in ((900_000, 200), (1_010_000, 413), (1_500_000, 413)):
        answer = site.ann.post("/v1/files", content=chunked(size), headers=headers)
        assert answer.status_code == status
    site.ann.delete(f"/v1/files/{site.ann.get('/v1/files?limit=1').json()['data'][0]['id']}")
    assert list((site.folder / "partial").iterdir()) == []
    assert site.ann.post("/v1/completions", json={"prompt": "x" * 100_000}).status_code == 413


def test_a_client_that_leaves_in_the_middle_leaves_nothing(site: Site) -> None:
    begun = threading.Event()

    def content() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 100_000
        wait_until(lambda: bool(list((site.folder / "partial").iterdir())))
        begun.set()
        raise ConnectionError("the client dies")

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with pytest.raises(ConnectionError):
        site.ann.post("/v1/files", content=content(), headers=headers)
    assert begun.is_set()
    wait_until(lambda: not list((site.folder / "partial").iterdir()))


def test_a_full_disk_is_a_507_and_keeps_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Upload, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Upload, "write", fail)
        answer = upload(site.ann, LINES)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
    assert list((site.folder / "partial").iterdir()) == []


def test_a_file_in_use_is_not_deleted_and_a_cancel_keeps_what_is_answered(site: Site) -> None:
    engine: Any = site.live.engine
    many = jsonl(*(request(str(n), prompt=f"hello {n}", max_tokens=20) for n in range(400)))
    file = upload(site.ann, many).json()["id"]
    pace = engine._runner._pace
    try:
        engine._runner._pace = type(pace)(itl_s=0.01)
        batch = create(site.ann, file).json()["id"]
        wait_until(lambda: site.ann.get(f"/v1/batches/{batch}").json()["request_counts"]["completed"] > 0)
        answer = site.ann.delete(f"/v1/files/{file}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")
        assert site.ann.post(f"/v1/batches/{batch}/cancel").json()["status"] == "cancelling"
    finally:
        engine._runner._pace = pace
    found = ended(site.ann, batch)
    assert found["status"] == "cancelled"
    assert 0 < found["request_counts"]["completed"] < 400
    output = site.ann.get(f"/v1/files/{found['output_file_id']}/content").content.splitlines()
    assert len(output) == found["request_counts"]["completed"]
    site.live.wait_until_idle()
    assert site.ann.post(f"/v1/batches/{batch}/cancel").json()["status"] == "cancelled"
    for id in (file, found["output_file_id"]):
        assert site.ann.delete(f"/v1/files/{id}").status_code == 200
    assert site.ann.get(f"/v1/files/{found['output_file_id']}/content").status_code == 404


def test_too_many_files_are_refused(site: Site) -> None:
    made = []
    while (answer := upload(site.bob, b"x")).status_code == 200:
        made.append(answer.json()["id"])
        assert len(made) <= 20
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert upload(site.ann, b"x").status_code == 200  # the other key's half is left
    for id in made:
        site.bob.delete(f"/v1/files/{id}")


def test_a_key_that_is_revoked_ends_its_batches(site: Site) -> None:
    path = site.folder.parent / "keys"
    key = keys.add(path, "carl")
    with httpx.Client(base_url=site.live.url, headers={"Authorization": f"Bearer {key}"}, timeout=DEADLINE_S) as carl:
        wait_until(lambda: carl.get("/v1/files").status_code == 200)
        many = jsonl(*(request(str(n), prompt=f"hello {n}", max_tokens=500) for n in range(2000)))
        engine: Any = site.live.engine
        pace = engine._runner._pace
        engine._runner._pace = type(pace)(itl_s=0.005)
        try:
            batch = create(carl, upload(carl, many).json()["id"]).json()["id"]
            wait_until(lambda: carl.get(f"/v1/batches/{batch}").json()["status"] == "in_progress")
            keys.revoke(path, "carl")
            wait_until(lambda: carl.get("/v1/files").status_code == 401)
            record = site.folder / "batches" / f"{batch}.json"
            wait_until(lambda: json.loads(record.read_bytes())["status"] == "failed")
        finally:
            engine._runner._pace = pace
        assert json.loads(record.read_bytes())["failures"][0]["code"] == "key_revoked"


# --- without a folder, and without keys


@contextmanager
def plain(config: Config) -> Iterator[httpx.Client]:
    with serve(mock_engine(), config) as live, httpx.Client(base_url=live.url, timeout=DEADLINE_S) as client:
        yield client


def test_without_a_folder_it_is_said_how_to_have_one() -> None:
    with plain(Config()) as client:
        for answer in (
            upload(client, b"x" * 100),
            client.get("/v1/files"),
            client.get("/v1/files/file-1/content"),
            create(client, "file-1"),
            client.get("/v1/batches"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batches_not_enabled")
            assert "--batches-dir FOLDER" in answer.json()["error"]["message"]


def test_it_goes_on_after_a_restart_and_in_its_window(tmp_path: Path) -> None:
    config = Config(batches=BatchesConfig(dir=str(tmp_path)))
    many = jsonl(*(request(str(n), prompt=f"hello {n}", max_tokens=20) for n in range(60)))
    with serve(mock_engine(itl_s=0.005), config) as live, httpx.Client(base_url=live.url, timeout=DEADLINE_S) as client:
        batch = create(client, upload(client, many).json()["id"]).json()["id"]
        wait_until(lambda: client.get(f"/v1/batches/{batch}").json()["request_counts"]["completed"] > 3)
    with plain(config) as client:
        found = ended(client, batch)
        assert (found["status"], found["request_counts"]) == ("completed", {"total": 60, "completed": 60, "failed": 0})
        records = map(json.loads, client.get(f"/v1/files/{found['output_file_id']}/content").content.splitlines())
        assert sorted(record["custom_id"] for record in records) == sorted(map(str, range(60)))


def test_a_server_ends_while_a_batch_runs(tmp_path: Path) -> None:
    config = Config(batches=BatchesConfig(dir=str(tmp_path)))
    with serve(mock_engine(itl_s=5.0), config) as live, httpx.Client(base_url=live.url, timeout=DEADLINE_S) as client:
        batch = create(client, upload(client, LINES).json()["id"]).json()["id"]
        wait_until(lambda: client.get(f"/v1/batches/{batch}").json()["status"] == "in_progress")


async def test_a_client_that_reads_no_content_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 200_000)
    content = files._Content(tmp_path / "a", media_type="text/plain", filename="a", send_timeout_s=0.01)
    num_sent = 0

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal num_sent
        num_sent += 1
        if num_sent == 3:
            await asyncio.Event().wait()

    with pytest.raises(SendTimeoutError):
        await content({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
