"""What a comparison measures, layer by layer or at once; losses that are measured by computing the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.conversion import entry
from mlx_backend.conversion.entry import Choice, ConversionError, Sample, cut
from tests.published_models import write_published
from tests.tiny_models import VOCAB_SIZE

pytestmark = pytest.mark.mlx

IDS = [(7 * place * place + 3 * place) % VOCAB_SIZE for place in range(32)]
TEXT = cut(IDS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("quality") / "source", "qwen3_moe")


def converted(source: Path, out: Path, bits: int) -> Path:
    entry.prepare(source, "tiny", Choice(bits=bits)).run(out, lambda _: None)
    return out


def test_fewer_bits_are_farther_and_a_copy_is_no_way(source: Path, tmp_path: Path) -> None:
    found = {
        bits: entry.compare(source, converted(source, tmp_path / f"{bits}", bits), TEXT, lambda _: None)
        for bits in (16, 8, 3)
    }
    assert (found[16].kl, found[16].agreement, found[16].num_tokens) == (0.0, 1.0, 31)
    assert 0 < found[8].kl < found[3].kl / 10
    assert (
        found[16].perplexity == pytest.approx(found[16].source_perplexity) == pytest.approx(found[3].source_perplexity)
    )


def test_what_it_measures_is_what_is_meant() -> None:
    import mlx.core as mx

    from mlx_backend.conversion.quality import log_probabilities, mean_kl, measure

    expected = [mx.log(mx.array([[0.5, 0.5], [0.9, 0.1]]))]
    found = [mx.log(mx.array([[0.25, 0.75], [0.2, 0.8]]))]
    quality = measure(expected, found, [Sample((0, 1, 0))])
    kls = (0.14384, 1.14564)
    assert quality.kl == pytest.approx(sum(kls) / 2, abs=1e-4)
    assert (quality.num_tokens, quality.agreement) == (2, 0.0)
    assert quality.perplexity == pytest.approx((1 / 0.75 / 0.2) ** 0.5)
    assert quality.source_perplexity == pytest.approx((1 / 0.5 / 0.9) ** 0.5)
    assert mean_kl([log_probabilities(expected[0])], found) == pytest.approx(sum(kls) / 2, abs=1e-4)


def test_layer_by_layer_is_the_same(source: Path) -> None:
    """The samples are of two lengths and predicted from a place on: they are filled up where they go together."""
    import mlx.core as mx

    from mlx_backend.conversion.quality import logits_of

    told: list[Any] = []
    samples = (Sample(tuple(IDS[:16])), Sample(tuple(IDS[16:25]), 4), Sample(tuple(IDS[5:21]), 9))
    at_once = logits_of(source, samples, 1 << 40, lambda _: None)
    by_layer = logits_of(source, samples, 0, told.append)
    assert [each.shape[0] for each in at_once] == [sample.num_predicted for sample in samples] == [15, 5, 7]
    assert all(mx.allclose(a, b, atol=1e-5).item() for a, b in zip(at_once, by_layer, strict=True))
    assert [each.done_bytes for each in told] == sorted(each.done_bytes for each in told) and len(told) == 2


def test_what_cannot_be_compared_is_refused(source: Path, tmp_path: Path) -> None:
    other = write_published(tmp_path / "other", "qwen3_moe", vocab_size=300)
    for samples, told in ((cut(IDS[:1]), "no two tokens"), (cut([1, 2, 3]), "320 tokens and .* 300")):
        with pytest.raises(ConversionError, match=told):
            entry.compare(source, other, samples, lambda _: None)


def test_quality_is_written_into_the_card(source: Path, tmp_path: Path) -> None:
    out = converted(source, tmp_path / "out", 4)
    assert "were not compared with the source's" in (out / "README.md").read_text()
    for _ in range(2):
        quality = entry.add_quality(source, out, TEXT, "text.txt", lambda _: None)
        card = (out / "README.md").read_text()
        assert f"on 31 tokens of text.txt: KL divergence {quality.kl:.5f}" in card and "were not compared" not in card
    assert json.loads((out / "conversion.json").read_text())["quality"]["kl"] == quality.kl
    from server.model_files import compare, find_record

    record = find_record(out)
    assert record is not None and {"README.md", "conversion.json"} < record.digests.keys()
    assert compare(out, record) == []
