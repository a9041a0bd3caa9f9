"""`pippin import` as a user has it: GGUF files, Modelfiles and stores, listed, imported, written down and served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.app import create_app
from server.cli import main
from server.config import resolve
from server.importing.adapter import layers_of
from server.models import build_models
from server.service.registry import ModelRegistry
from tests.gguf_models import write_gguf, write_original
from tests.serving import wait_until
from tests.stores import add_to_ollama
from tests.tiny_adapters import write_adapter

pytestmark = pytest.mark.mlx
MARIO = "FROM {source}\nPARAMETER temperature 0\nPARAMETER num_ctx 256\nPARAMETER num_gpu 9\nSYSTEM You are Mario.\n"
LIBRARY = "registry.ollama.ai/library"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    original = write_original(folder / "original", "llama")
    return write_gguf(folder / "tiny llama.Q8_0.gguf", original, "llama", "Q8_0")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, where the command is run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Run:
    """A command's end: its code, and what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["import", *arguments])
        self.code = caught.value.code
        self.out, self.err = capsys.readouterr()


@asynccontextmanager
async def served(config: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of that configuration, with all of its models loaded."""
    resolved = resolve(config, {}, {}).config
    models = build_models(resolved)
    for model in models:
        model.start()
    wait_until(lambda: all(model.state in ("loaded", "failed") for model in models))
    registry = ModelRegistry(models)
    try:
        transport = httpx.ASGITransport(create_app(resolved, registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client
    finally:
        await registry.close()


async def ask(client: httpx.AsyncClient, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


async def test_a_modelfile_is_imported_written_down_and_served(
    home: Path, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "mario").mkdir()
    (home / "mario" / "Modelfile").write_text(MARIO.format(source=gguf))
    (home / "pippin.yaml").write_text("# mine\nprefix_cache: {ram_gb: 0.1}\nmemory: {limit_gb: 2, reserve_gb: 0.1}\n")
    found = Run(capsys, "mario/Modelfile", "--write", "pippin.yaml")
    assert (found.code, found.out) == (0, "serve it: pippin serve --config pippin.yaml\n"), found.err
    assert "line 4: PARAMETER num_gpu has no effect: the server decides that itself\n" in found.err
    assert "tiny llama.Q8_0: llama, 2 layers, a context of 2048 tokens; Q8_0" in found.err
    layers = {path: sizes for path, sizes in layers_of(home / "tiny-llama.Q8_0").items() if "_proj" in path}
    write_adapter(home / "luigi" / "my adapter", layers, seed=1, rank=4)
    (home / "luigi" / "Modelfile").write_text(MARIO.format(source=gguf) + "ADAPTER ./my adapter\n")
    again = Run(capsys, "luigi/Modelfile", "--write", "pippin.yaml")
    assert again.code == 0 and "has it already" in again.err, again.err
    config = yaml.safe_load((home / "pippin.yaml").read_text())
    assert config["models"]["luigi"].pop("adapters") == {"my-adapter": str(home / "luigi" / "my adapter")}
    assert config["models"].pop("luigi") == {**config["models"]["mario"], "adapter": "my-adapter"}
    defaults = {"temperature": 0.0, "system": "You are Mario."}
    model = str(home / "tiny-llama.Q8_0")
    assert config["models"] == {"mario": {"model": model, "context": {"limit": 256}, "defaults": defaults}}
    async with served(home / "pippin.yaml") as client:
        answers = [await ask(client, "mario") for _ in range(2)]
        assert answers[0]["choices"] == answers[1]["choices"]  # temperature 0
        plain = [{"role": "system", "content": "You are Mario."}, {"role": "user", "content": "hello"}]
        counted = await client.post("/tokenize", json={"model": "mario", "messages": plain})
        assert answers[0]["usage"]["prompt_tokens"] == counted.json()["count"]
        listed = (await client.get("/v1/models")).json()["data"]
        assert [(each["id"], each["max_model_len"]) for each in sorted(listed, key=lambda each: each["id"])] == [
            ("luigi", 256),
            ("mario", 256),
        ]
        other = await ask(client, "luigi")
        assert other["model"] == "luigi" and other["choices"] != answers[0]["choices"]


async def test_a_store_of_ollama_s_is_listed_imported_and_served(
    home: Path, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = home / ".ollama" / "models"
    layers = {"system": "Be brief.", "params": {"stop": ["##"]}, "template": "{{ .Prompt }}"}
    add_to_ollama(store, f"{LIBRARY}/tiny/latest", gguf.read_bytes(), **layers)
    add_to_ollama(store, "hf.co/o/m/q8", gguf.read_bytes())
    listed = Run(capsys, "--list")
    assert listed.code == 0 and [line.split() for line in listed.out.splitlines()] == [
        ["ollama:hf.co/o/m:q8", "0.1", "MB"],
        ["ollama:tiny:latest", "0.1", "MB"],
    ]
    found = Run(capsys, "ollama:tiny", "--write", "pippin.yaml", "--out", "imported")
    assert found.code == 0, found.err
    assert "TEMPLATE has no effect: the model's own chat template is used\n" in found.err
    entry = yaml.safe_load((home / "pippin.yaml").read_text())["models"]["tiny"]
    assert entry == {"model": str(home / "imported"), "defaults": {"stop": ["##"], "system": "Be brief."}}
    (home / "Modelfile").write_text(MARIO.format(source="tiny"))
    again = Run(capsys, "Modelfile", "--out", "imported", "--name", "mario", "--write", "pippin.yaml")
    assert again.code == 0 and "imported has it already" in again.err, again.err
    defaults = yaml.safe_load((home / "pippin.yaml").read_text())["models"]["mario"]["defaults"]
    assert defaults == {"stop": ["##"], "system": "You are Mario.", "temperature": 0.0}
    async with served(home / "pippin.yaml") as client:
        first, second = await ask(client, "tiny"), await ask(client, "mario")
    assert first["model"] == "tiny" and second["model"] == "mario"
    (blob,) = (file for file in (store / "blobs").iterdir() if file.stat().st_size == gguf.stat().st_size)
    content = blob.read_bytes()
    blob.write_bytes(content[:-9000] + b"?" + content[-8999:])
    damaged = Run(capsys, "ollama:tiny", "--out", "other")
    assert damaged.code == 2 and f"{blob} is damaged: its SHA-256 is" in damaged.err
    assert not (home / "other").exists()


def test_lm_studio_s_models_are_served_in_place_or_imported(
    home: Path, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / ".lmstudio" / "models" / "owner"
    write_original(folder / "mlx", "llama")
    (folder / "tiny").mkdir()
    (folder / "tiny" / "a.gguf").write_bytes(gguf.read_bytes())
    listed = Run(capsys, "--list")
    assert listed.out.splitlines()[0].endswith(f"MLX, served as it is: pippin serve {folder / 'mlx'}")
    assert "lmstudio:owner/tiny/a.gguf" in listed.out
    in_place = Run(capsys, "lmstudio:owner/mlx")
    assert (in_place.code, in_place.out) == (0, f"serve it: pippin serve {folder / 'mlx'}\n")
    imported = Run(capsys, "lmstudio:owner/tiny/a")
    assert imported.out == f"serve it: pippin serve {home / 'owner-tiny'}\n", imported.err
    assert (home / "owner-tiny" / "config.json").exists()


def test_an_entry_is_printed_where_there_is_no_file_for_it(
    home: Path, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "luigi.modelfile").write_text(MARIO.format(source=gguf))
    found = Run(capsys, "luigi.modelfile", "--dry-run")
    assert found.code == 0 and "becomes 0.1 MB in MLX's format; matrices: 15 at 8 bits; the rest float16" in found.err
    assert yaml.safe_load(found.out)["models"]["luigi"]["model"] == str(home / "tiny-llama.Q8_0")
    assert not (home / "tiny-llama.Q8_0").exists()
    (home / "hub.modelfile").write_text("FROM mlx-community/a-4bit\nPARAMETER seed 1\n")
    hub = Run(capsys, "hub.modelfile")
    assert yaml.safe_load(hub.out) == {"models": {"hub": {"model": "mlx-community/a-4bit", "defaults": {"seed": 1}}}}


@pytest.mark.parametrize(
    ("source", "content", "says"),
    [
        ("none.gguf", None, "there is no file or folder none.gguf; name a GGUF file, a Modelfile, ollama:NAME"),
        ("ollama:none", None, "there is no none in"),
        ("lmstudio:a/b", None, "there is no a/b in"),
        ("a.gguf", b"", "a.gguf is not a whole GGUF file: it ends within its header"),
        ("Modelfile", b"\xff\xfe\x00", "Modelfile is neither a GGUF file nor the text of a Modelfile"),
        ("Modelfile", b"FROM .", "Modelfile: . has neither an MLX model nor a GGUF file"),
        ("Modelfile", b"FROM ./Modelfile", "Modelfile: FROM names the Modelfile itself"),
        ("Modelfile", b"FROM ../x y", "Modelfile: FROM names '../x y', which is no folder, no GGUF file and no hub id"),
        ("Modelfile", b"FROM llama3.2", "Ollama's store ("),
        ("Modelfile", b"FROM a/b\nADAPTER x", "Modelfile: ADAPTER names x, which is no folder"),
        ("Modelfile", b"FROM a/b\nADAPTER .\nADAPTER .", "Modelfile: line 3: a second ADAPTER"),
        ("Modelfile", b"FROM a/b\nADAPTER .", "Modelfile: ADAPTER: adapter "),
        ("Modelfile", b"FROM a/b\nADAPTER Modelfile", "Modelfile: ADAPTER names a file, Modelfile; adapters are read"),
    ],
)
def test_what_cannot_be_imported_is_said_in_a_line(
    home: Path, capsys: pytest.CaptureFixture[str], source: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (home / source).write_bytes(content)
    found = Run(capsys, source)
    assert found.code == 2 and found.out == ""
    assert found.err.startswith("pippin: ") and found.err.count("\n") == 1 and says in found.err


async def test_a_template_serves_a_file_that_has_none(
    home: Path, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = write_original(home / "original", "llama")
    bare = write_gguf(
        home / "bare.gguf", original, "llama", "Q8_0", lambda found, _: found.pop("tokenizer.chat_template")
    )
    for number, (template, says) in enumerate(
        (
            ("<u>{{ .Prompt }}<a>", "line 2: TEMPLATE is the chat template: the file has none of its own\n"),
            (
                "{{ range .Messages }}{{ end }}",
                "line 2: TEMPLATE has no effect: it says {{ range .Messages }}, which is",
            ),
        )
    ):
        (home / "Modelfile").write_text(f"FROM {bare}\nTEMPLATE {template}\nPARAMETER seed 1\n")
        found = Run(capsys, "Modelfile", "--out", f"out{number}", "--name", f"m{number}", "--write", "pippin.yaml")
        assert found.code == 0 and says in found.err, found.err
    (home / "Modelfile").write_text(f"FROM {gguf}\nTEMPLATE {{{{ .Prompt }}}}\n")
    kept = Run(capsys, "Modelfile", "--dry-run")
    assert "line 2: TEMPLATE has no effect: the model's own chat template is used\n" in kept.err
    async with served(home / "pippin.yaml") as client:
        chat = {"model": "m0", "messages": [{"role": "user", "content": "hello"}]}
        plain = {"model": "m0", "prompt": "<u>hello<a>", "add_special_tokens": False}
        counted = [(await client.post("/tokenize", json=body)).json()["tokens"] for body in (chat, plain)]
        assert counted[0] == counted[1]
        refused = await client.post("/v1/chat/completions", json={**chat, "model": "m1"})
        assert refused.status_code == 400 and "template" in refused.text


def test_an_adapter_for_another_base_is_said_in_a_line(
    home: Path, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = write_original(home / "served", "llama")
    (size,) = {sizes for path, sizes in layers_of(served).items() if path.endswith("layers.0.self_attn.q_proj")}
    for number, (path, says) in enumerate(
        (
            ("model.layers.0.self_attn.q_proj", f"is {size[0]} x {size[1]} there and {size[0]} x 7 in the adapter"),
            ("model.layers.0.self_attn.none", "that has no layer model.layers.0.self_attn.none"),
        )
    ):
        write_adapter(home / f"adapter{number}", {path: (size[0], 7)}, seed=1, rank=2)
        for source in (gguf, served):
            (home / "Modelfile").write_text(f"FROM {source}\nADAPTER ./adapter{number}")
            found = Run(capsys, "Modelfile")
            assert (found.code, found.out, found.err.count("\n")) == (2, "", 1), found.err
            assert "ADAPTER is for another model than FROM names" in found.err and says in found.err
    assert not (home / "tiny-llama.Q8_0").exists()


def test_wishes_that_cannot_be(gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "say what to import" in Run(capsys).err
    assert "--dtype is one of float16, bfloat16, float32, not 'int8'" in Run(capsys, str(gguf), "--dtype", "int8").err
    assert "--requantize takes 2, 3, 4, 5, 6, 8 bits, not 7" in Run(capsys, str(gguf), "--requantize", "7").err
    assert "has no tokenizer.json" in Run(capsys, str(gguf), "--tokenizer", ".").err
