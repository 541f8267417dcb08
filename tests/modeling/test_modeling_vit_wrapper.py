"""Heads over trunks of other libraries: features are those of the library, and what is saved opens without this one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Aimv2VisionConfig, Aimv2VisionModel

from hf_geossl.modeling.configuration_vit import ViTWrapperConfig
from hf_geossl.modeling.modeling_vit_wrapper import ViTWrapperForSemanticSegmentation, ViTWrapperModel
from hf_geossl.tasks.finetuning.kinds import find_task
from hf_geossl.tasks.finetuning.layers import choose_layers
from hf_geossl.tasks.finetuning.models import Start
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.training.adaptation.adapters import inject_adapters
from hf_geossl.training.adaptation.trunk import freeze_layers, lr_multiplier
from tests.helpers.foreign_trunks import DEPTH, PATCH, SIDE, WRITERS, own_features, write_foreign_trunk, write_xcit


def _with_head(folder: Path, **settings: Any) -> Any:
    return Start.open(folder).build(find_task("segmentation"), ["a", "b"], HeadSettings(**settings)).eval()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each family a folder, and the model in it."""
    folders = {name: tmp_path_factory.mktemp(name) / name for name in WRITERS}
    return {name: (folder, write_foreign_trunk(name, folder)) for name, folder in folders.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_tokens_feature_and_maps_are_those_of_the_library(name: str, theirs: dict[str, Any]) -> None:
    folder, model = theirs[name]
    images = torch.randn(2, 3, SIDE, SIDE)
    tokens, feature, maps = own_features(name, model, images)
    trunk = _with_head(folder).base_model
    with torch.no_grad():
        outputs, ours = trunk.layer_maps(images)
    torch.testing.assert_close(outputs.last_hidden_state, tokens, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs.pooler_output, feature, rtol=1e-5, atol=1e-6)
    assert len(ours) == DEPTH
    for one, expected in zip(ours, maps, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)
    assert outputs.hidden_states is None


OPENER = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
found = {}
for name in sys.argv[1:]:
    model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=True)
    images = load_file("images.safetensors")["images"]
    with torch.no_grad():
        found[name] = model(images).logits
        found[f"{name}.trunk"] = AutoModel.from_pretrained(name, trust_remote_code=True)(images).last_hidden_state
assert "hf_geossl" not in sys.modules
save_file(found, "found.safetensors")
"""


def test_what_is_saved_opens_where_this_library_is_not(theirs: dict[str, Any], tmp_path: Path) -> None:
    images = torch.randn(1, 3, SIDE, SIDE)
    models = {name: _with_head(folder, decoder="upernet", decoder_channels=8) for name, (folder, _) in theirs.items()}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    save_file({"images": images}, tmp_path / "images.safetensors")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OPENER, *models], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "found.safetensors")
    for name, model in models.items():
        with torch.no_grad():
            torch.testing.assert_close(found[name], model(images).logits, rtol=1e-5, atol=1e-6)
        tokens, _, _ = own_features(name, theirs[name][1], images)
        torch.testing.assert_close(found[f"{name}.trunk"], tokens, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WRITERS)
def test_layers_are_known_by_their_depth(name: str, theirs: dict[str, Any]) -> None:
    model = _with_head(theirs[name][0])
    names = [parameter for parameter, _ in model.named_parameters()]
    layers = {"beit": "vit_wrapper.trunk.layers"}.get(name, "vit_wrapper.trunk.timm_model.blocks")
    rates = {parameter: lr_multiplier(parameter, model, 0.5, 1.0) for parameter in names}
    for parameter, rate in rates.items():
        if parameter.startswith(f"{layers}."):
            assert rate == 0.5 ** (DEPTH - int(parameter[len(layers) + 1 :].partition(".")[0]))
        elif any(part in parameter for part in ("patch_embed", "pos_embed", ".embeddings.")):
            assert rate == 0.5 ** (DEPTH + 1)
    assert rates["classifier.weight"] == 1
    freeze_layers(model, "last:1")
    trained = {parameter for parameter, value in model.named_parameters() if value.requires_grad}
    assert {parameter for parameter in trained if ".layers." in parameter or ".blocks." in parameter} == {
        parameter for parameter in names if parameter.startswith(f"{layers}.{DEPTH - 1}.")
    }
    assert not any(".embeddings." in parameter or "patch_embed" in parameter for parameter in trained)
    assert "classifier.weight" in trained


def test_what_is_frozen_is_in_eval_mode(tmp_path: Path) -> None:
    """XCiT's batch norms: three in the patch embedding of patches of 8, one a layer."""
    write_xcit(tmp_path / "xcit")
    for train_layers, moving in {"head": 0, "last:1": 1, "all": 3 + DEPTH}.items():
        model = _with_head(tmp_path / "xcit")
        choose_layers(model, train_layers, 0, 16)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train()(torch.randn(4, 3, SIDE, SIDE))
        moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
        assert sum(name.endswith("running_mean") for name in moved) == moving
        assert all("running" in name or "batches" in name for name in moved)


def test_rms_norms_are_norms(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    Aimv2VisionModel(Aimv2VisionConfig(num_hidden_layers=2, **sizes)).save_pretrained(tmp_path / "aimv2")
    model = _with_head(tmp_path / "aimv2")
    freeze_layers(model, "norms")
    trained = [name for name, value in model.base_model.named_parameters() if value.requires_grad]
    assert len(trained) == 6  # two of each layer, one before and one after them
    assert all("norm" in name for name in trained)


def test_adapters_are_in_every_linear_layer_of_the_layers(theirs: dict[str, Any]) -> None:
    model = _with_head(theirs["beit"][0])
    layers = model.base_model.trunk.layers
    expected = sum(isinstance(part, torch.nn.Linear) for part in layers[-1].modules())
    images = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        before = model(images).logits
        inject_adapters(model.base_model, 2, 16.0, "last:1")
        assert torch.equal(model(images).logits, before)
    adapted = [name for name, part in model.named_modules() if hasattr(part, "lora_A")]
    assert len(adapted) == expected == 6
    assert all(name.startswith(f"vit_wrapper.trunk.layers.{DEPTH - 1}.") for name in adapted)


@pytest.mark.parametrize("name", ["beit", "cait"])
def test_checkpointing_and_compilation_change_nothing(name: str, theirs: dict[str, Any]) -> None:
    model = _with_head(theirs[name][0], decoder="upernet", decoder_channels=8)
    images, labels = torch.randn(2, 3, SIDE, SIDE), torch.zeros(2, SIDE, SIDE, dtype=torch.long)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.base_model.train()
            for part in model.modules():
                if isinstance(part, torch.nn.Dropout) or "DropPath" in type(part).__name__:
                    part.eval()
        model.zero_grad()
        model(images, labels=labels).loss.backward()
        found.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-6)
    model.gradient_checkpointing_disable()
    compiled = torch.compile(model.eval(), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).logits, model(images).logits, rtol=1e-5, atol=1e-6)


def test_a_configuration_without_a_trunk_is_refused(theirs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="trunk_config must be a trunk's configuration with its model_type, got"):
        ViTWrapperForSemanticSegmentation(ViTWrapperConfig())
    config = Start.open(theirs["beit"][0]).build(find_task("segmentation"), ["a", "b"], HeadSettings()).config
    config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="num_hidden_layers must be that of BeitModel, got 5"):
        ViTWrapperModel(config)
