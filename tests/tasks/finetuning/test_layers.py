"""What is trained of a model beside its head."""

import pytest

from hf_geossl import GTSAConfig, GTSAForImageClassification
from hf_geossl.tasks.finetuning.layers import choose_layers


def _model() -> GTSAForImageClassification:
    return GTSAForImageClassification(
        GTSAConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8)
    )


@pytest.mark.parametrize(
    ("train_layers", "rank", "trained"),
    [
        ("all", 0, {"embeddings", "0", "1", "2", "layernorm"}),
        ("head", 0, set()),
        ("last:1", 0, {"2", "layernorm"}),
        ("last:2", 2, {"1", "2"}),
    ],
)
def test_what_is_not_chosen_is_frozen(train_layers: str, rank: int, trained: set[str]) -> None:
    model = _model()
    line = choose_layers(model, train_layers, rank, 16.0)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {"norm.weight", "classifier.weight"} <= set(names)
    of_trunk = [name.removeprefix("gtsa.") for name in names if name.startswith("gtsa.")]
    assert {name.split(".")[2 if name.startswith("encoder") else 0] for name in of_trunk} == trained
    if rank:
        assert all(".lora_" in name for name in of_trunk)
        assert line.startswith("LoRA of rank 2: ")
    total = sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith("gtsa."))
    count = sum(p.numel() for name, p in model.named_parameters() if name.startswith("gtsa.") and p.requires_grad)
    assert f"{count:,} of the trunk's {total:,} parameters" in line


def test_a_trunk_without_so_many_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at most the 3 layers that the trunk has, got 'last:4'"):
        choose_layers(_model(), "last:4", 0, 16.0)
