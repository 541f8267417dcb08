"""What accelerate, PEFT, torchao and torch.compile make of a model is the model: every method, every class without a detector."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.helpers.methods import METHODS, images

KINDS = ["Model", "Backbone", "ForImageClassification", "ForSemanticSegmentation", "ForDepthEstimation"]
NAMES = {"Model": "last_hidden_state", "Backbone": "feature_maps", "ForDepthEstimation": "predicted_depth"}
PIXELS = images(2, 3, 40, 24)


@pytest.fixture(params=[(name, kind) for name in METHODS for kind in KINDS], ids="-".join)
def model(request: pytest.FixtureRequest) -> Any:
    name, kind = request.param
    return METHODS[name].model(kind, 0.05, num_hidden_layers=2, num_labels=3, num_register_tokens=1)


def answer(model: Any, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    with torch.no_grad():
        outputs = model(pixels)
    (name,) = {"logits", *NAMES.values()} & set(outputs)
    return torch.cat([part.flatten() for part in outputs[name]])


def test_a_model_divided_over_memory_and_disk_gives_the_same_bits(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    size = sum(weights.nbytes for weights in model.parameters())
    divided = type(model).from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": size * 3 // 4}, offload_folder=tmp_path / "rest"
    )
    assert "disk" in divided.hf_device_map.values()
    assert torch.equal(answer(divided), answer(model))
    with torch.device("meta"):
        empty = type(model)(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(answer(empty.eval()), answer(model))


def test_adapters_by_the_layers_names_are_saved_loaded_and_merged(model: Any, tmp_path: Path) -> None:
    settings = LoraConfig(r=2, target_modules=["qkv", "projection", "fc1", "fc2"], init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model), settings).eval()
    assert sum(hasattr(module, "lora_A") for module in adapted.modules()) >= 4 * 2
    changed = answer(adapted)
    assert not torch.allclose(changed, answer(model), atol=1e-5)
    adapted.save_pretrained(tmp_path)
    assert torch.equal(answer(PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()), changed)
    torch.testing.assert_close(answer(adapted.merge_and_unload()), changed, rtol=1e-4, atol=1e-5)


def test_int8_weights_of_torchao_are_in_every_linear_layer_and_close(model: Any) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is no requirement of the tests")
    quantised = copy.deepcopy(model)
    torchao.quantize_(quantised, torchao.Int8WeightOnlyConfig())
    linear = [module for module in quantised.modules() if isinstance(module, nn.Linear)]
    assert len(linear) >= 4 * 2
    assert all(type(module.weight) is not nn.Parameter for module in linear)
    found, expected = answer(quantised), answer(model)
    assert (found - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [
        ("Model", None),
        ("Backbone", None),
        ("ForImageClassification", None),
        *(("ForSemanticSegmentation", name) for name in ("linear", "upernet")),
        ("ForDepthEstimation", "dpt"),
    ],
)
def test_the_first_forward_pass_is_one_graph(kind: str, decoder: str | None) -> None:
    """`fullgraph` refuses whatever would end a graph, as the start of capturing hidden states; at a second size too."""
    model = METHODS["gtsa"].model(kind, num_hidden_layers=1, num_labels=3, decoder_type=decoder)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for pixels in (PIXELS, images(2, 3, 32, 32)):
        assert torch.equal(answer(compiled, pixels), answer(model, pixels))
    torch._dynamo.reset()
