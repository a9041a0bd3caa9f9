"""What can be split among ranks and how, told before anything is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.core.membership import Membership
from mlx_backend.model import sharding

pytestmark = pytest.mark.mlx

CONFIG = {"model_type": "made_up", "num_attention_heads": 8, "num_key_value_heads": 4}


def model(*ways: str, num_layers: int = 3) -> Any:
    inner = SimpleNamespace(**({"pipeline": None} if "pipeline" in ways else {}))
    found = SimpleNamespace(model=inner, layers=[None] * num_layers)
    if "tensor" in ways:
        found.shard = None
    return found


@pytest.mark.parametrize(
    ("ways", "parallel", "count", "config", "says"),
    [
        (("tensor",), "pipeline", 2, {}, "made_up cannot be split as pipeline; use --parallel tensor"),
        (("pipeline",), "tensor", 2, {}, "made_up cannot be split as tensor; use --parallel pipeline"),
        ((), "tensor", 2, {}, "one process only"),
        (("tensor",), "tensor", 3, {}, "8 num_attention_heads cannot be divided among 3 ranks"),
        (("tensor",), "tensor", 8, {}, "4 num_key_value_heads cannot be divided among 8 ranks"),
        (("tensor",), "tensor", 2, {"text_config": {"num_key_value_heads": 1}}, "1 num_key_value_heads"),
        (("pipeline",), "pipeline", 4, {}, "3 layers are too few for 4 ranks"),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    ways: tuple[str, ...], parallel: Any, count: int, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelLoadError, match=says):
        sharding.check(model(*ways), {**CONFIG, **config}, count, parallel)


def test_what_can_be_split_is_not_refused() -> None:
    sharding.check(model("tensor"), CONFIG, 4, "tensor")
    sharding.check(model("tensor"), {**CONFIG, "kv_lora_rank": 16, "num_key_value_heads": 1}, 8, "tensor")
    sharding.check(model("pipeline"), {**CONFIG, "num_attention_heads": 7}, 3, "pipeline")


def test_a_rank_has_its_share_of_the_heads() -> None:
    nested = {**CONFIG, "text_config": {"num_attention_heads": 16}}
    tensor = sharding.local_config(nested, Membership(0, ("a:1", "b:2"), "tensor"))
    assert (tensor["num_attention_heads"], tensor["text_config"]["num_attention_heads"]) == (4, 8)
    assert sharding.local_config(nested, Membership(0, ("a:1", "b:2"), "pipeline")) == nested
    assert nested["num_attention_heads"] == 8


def test_a_process_belongs_to_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    membership = Membership(0, ("a:1",), "tensor")
    monkeypatch.setattr(sharding, "_joined", [membership])
    with pytest.raises(ModelLoadError, match="restart"):
        sharding.join(membership)
