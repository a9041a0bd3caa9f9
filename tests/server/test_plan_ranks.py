"""`pippin plan --count` as a person and as a program meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server import profiles
from server.cli import main
from tests.tiny_models import write_model

pytestmark = pytest.mark.mlx

PROFILES = Path(profiles.__file__).parent
R1 = str(PROFILES / "deepseek-r1-4bit.json")
GPT_OSS = str(PROFILES / "gpt-oss-120b-mxfp4.json")
MAC = ("--machine", "m3-ultra-512")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    return int(ended.value.code or 0)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_two_m3_ultras_take_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(R1, *MAC, "--count", "2") == 0
    text = said(capsys)
    assert "2 ranks, tensor parallel, over Thunderbolt 5 with RDMA (MLX's jaccl)" in text
    assert "0 61 189.7 70,272" in text and "1 61 189.7 70,272" in text
    assert "A token takes 123 messages of 1,748,996 bytes" in text
    assert "-> tensor: about" in text
    assert "Speeds are estimates" in text


def test_a_pipeline_as_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(R1, *MAC, "--count", "2", "--parallel", "pipeline", "--split", "29,32", "--link", "10gbe") == 0
    text = said(capsys)
    assert "a pipeline of 29+32 layers, over 10 Gb/s Ethernet, TCP (MLX's ring)" in text
    assert "-> pipeline" not in text  # no reason is given for what was asked for


def test_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(R1, *MAC, "--count", "2", "--json", "--users", "1,3") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parallel"], found["count"], found["split"], found["fits"]) == ("tensor", 2, None, True)
    assert [rank["weights_bytes"] for rank in found["ranks"]] == [189_691_845_632] * 2
    assert found["shape"]["weights_bytes"] == 377_606_822_912
    assert [row["num_users"] for row in found["users"]] == [1, 3]
    for memory in found["users"][0]["memory"]:
        parts = ("weights_bytes", "kv_bytes", "transient_bytes", "reserve_bytes")
        assert memory["total_bytes"] == sum(memory[part] for part in parts) <= found["budget_bytes"]
    assert set(found["decode_tokens_per_s"]) == {"tensor", "pipeline"}
    assert found["messages"]["num_per_token"] == 123


def test_json_of_a_pipeline_has_its_split(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(R1, *MAC, "--count", "2", "--json", "--split", "31,30") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parallel"], found["split"]) == ("pipeline", [31, 30])
    assert [rank["kv_bytes_per_token"] for rank in found["ranks"]] == [35_712, 34_560]


def test_what_does_not_fit_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(R1, "--machine", "m4-max-128", "--count", "2") == 3
    text = said(capsys)
    assert "1 does not fit" in text
    assert "neither fits; its largest rank holds 189.7 GB" in text


def test_an_uneven_split_is_offered_where_it_gives_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("r1-two-m2-ultra-192", "--users", "1") == 0
    assert "--split 29,32 balances the weights: 163,840 tokens fit, instead of" in said(capsys)


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "tiny", "llama")
    assert run(str(folder), *MAC, "--count", "2") == 0
    text = said(capsys)
    assert "tiny: llama" in text
    assert "-> tensor: the alternative is not possible: mlx-lm has no pipeline parallelism for llama models" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GPT_OSS, "--count", "4"), "cannot split this gpt_oss model over 4 ranks; possible: tensor over 2 ranks"),
        (
            (GPT_OSS, "--count", "4", "--parallel", "tensor"),
            "cannot divide 90 quantization groups of mlp.experts",
        ),
        (
            (GPT_OSS, "--count", "2", "--parallel", "pipeline"),
            "pipeline parallelism for gpt_oss models; possible: tensor over 2",
        ),
        ((R1, "--count", "2", "--split", "31,31"), "split 31,31 has 62 layers, but the model has 61"),
        ((R1, "--count", "2", "--split", "a"), "split 'a' must be the layers of each rank"),
        ((R1, "--count", "2", "--parallel", "tensor", "--split", "31,30"), "split applies only to a pipeline"),
        ((R1, "--count", "2", "--parallel", "data"), "--parallel 'data' must be one of tensor, pipeline"),
        ((R1, "--count", "2", "--link", "wifi"), "link 'wifi' must be one of tb5, tb4, 10gbe, 1gbe"),
        (
            (R1, "--parallel", "tensor", "--link", "tb5"),
            "--parallel, --link: only for several machines; set their number",
        ),
        ((R1, "--count", "2", "--plot", "x.png"), "--plot supports one machine only; omit --count"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(*arguments, *MAC) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pippin: ")
    assert message in line


def test_a_mac_without_thunderbolt_5(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(R1, "--machine", "m2-ultra-192", "--count", "2", "--link", "tb5") == 2
    assert "has no Thunderbolt 5; use --link tb4, 10gbe or 1gbe" in capsys.readouterr().err
