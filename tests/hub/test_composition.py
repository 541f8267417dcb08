"""UperNet, DPT and Mask2Former over a trained trunk: made, saved, opened and saved again, with the package and without it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_geossl import compose_model
from tests.helpers.golden import ROOT
from tests.helpers.methods import METHODS, images

UPERNET = {"num_labels": 3, "hidden_size": 16, "auxiliary_channels": 8, "pool_scales": [1, 2]}
DPT = {"neck_hidden_sizes": [4, 4, 8, 8], "fusion_hidden_size": 8}
MASK2FORMER = {
    "num_labels": 3,
    **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32),  # 32 groups are normalised
    **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 16),
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "num_queries": 4,
    "feature_strides": [8, 8, 8, 8],
}
# method of the trunk, class, Auto class, settings, output that is compared
COMPOSED: dict[str, tuple[str, str, str, dict[str, Any], str]] = {
    "upernet": ("gtsa", "UperNetForSemanticSegmentation", "AutoModelForSemanticSegmentation", UPERNET, "logits"),
    "dpt": ("loca", "DPTForDepthEstimation", "AutoModelForDepthEstimation", DPT, "predicted_depth"),
    "mask2former": (
        "equicoherent",
        "Mask2FormerForUniversalSegmentation",
        "AutoModelForUniversalSegmentation",
        MASK2FORMER,
        "masks_queries_logits",
    ),
}

# argv: "registered" or "remote", the folder of folders, Auto class and output by folder
OPENER = """
import json, sys
from pathlib import Path

side, root, opened_by = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
if side == "remote":
    sys.modules["hf_geossl"] = None  # `import hf_geossl` raises ImportError
else:
    import hf_geossl
import torch, transformers
from safetensors.torch import load_file, save_file

trust = {"trust_remote_code": True} if side == "remote" else {}
pixels = load_file(root / "pixels.safetensors")["pixels"]
found = {}
for name, (auto, output) in opened_by.items():
    folder = root / name
    for times in range(3):  # what was saved before, and what was opened and saved here
        model = getattr(transformers, auto).from_pretrained(folder, **trust)
        with torch.no_grad():
            found[f"{name}.{times}"] = model(pixels)[output].contiguous()
        folder = root / f"{side}-{times}" / name
        model.save_pretrained(folder)
if side == "remote":
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    backbone = get_class_from_dynamic_module("modeling_gtsa.GTSABackbone", root / "trunk-gtsa")  # as the README says
    backbone = backbone.from_pretrained(root / "trunk-gtsa", out_indices=[1, 3])
    try:
        transformers.AutoConfig.from_pretrained(root / "upernet", trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise SystemExit("code was executed that nobody trusts")
else:
    backbone = transformers.AutoBackbone.from_pretrained(root / "trunk-gtsa", out_indices=[1, 3])
with torch.no_grad():
    for index, maps in enumerate(backbone(pixels).feature_maps):
        found[f"backbone.{index}"] = maps
save_file(found, root / f"{side}.safetensors")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("composed")
    save_file({"pixels": images(2, 3, 32, 48)}, root / "pixels.safetensors")
    for name, (prefix, kind, _, fields, _) in COMPOSED.items():
        trunk = METHODS[prefix].model("Model", std=0.1)
        trunk.save_pretrained(root / f"trunk-{prefix}")
        model = compose_model(getattr(transformers, kind), str(root / f"trunk-{prefix}"), [1, 2, 3, 4], **fields)
        model.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def answers(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    opened_by = json.dumps({name: (auto, output) for name, (_, _, auto, _, output) in COMPOSED.items()})
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    found = {}
    for side in ("remote", "registered"):
        paths = {"PYTHONPATH": str(ROOT)} if side == "registered" else {}
        command = [sys.executable, "-c", OPENER, side, str(root), opened_by]
        done = subprocess.run(
            command, cwd=root, env=environment | paths, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[side] = load_file(root / f"{side}.safetensors")
    return found


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_model_has_the_trunk_and_its_folder_the_code(name: str, root: Path) -> None:
    prefix, kind, auto, *_ = COMPOSED[name]
    trunk = METHODS[prefix].kind("Model").from_pretrained(root / f"trunk-{prefix}")
    model = getattr(transformers, auto).from_pretrained(root / name)
    (backbone,) = [part for part in model.modules() if isinstance(part, METHODS[prefix].kind("Backbone"))]
    assert type(model).__name__ == kind
    assert backbone.config.reshape_hidden_states == (name != "dpt")
    assert backbone.out_indices == [1, 2, 3, 4]
    assert backbone.state_dict().keys() == trunk.state_dict().keys()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, trunk.state_dict()[key]), key
    code = {path.name for path in (root / name).glob("*.py")}
    assert code == {path.name for path in (root / f"trunk-{prefix}").glob("*.py")} | {"composition.py"}
    config = json.loads((root / name / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": f"composition.{type(model.config).__name__}"}


@pytest.mark.parametrize("side", ["registered", "remote"])
@pytest.mark.parametrize("name", COMPOSED)
def test_it_opens_and_opens_again_when_saved_with_the_package_and_without(
    name: str, side: str, root: Path, answers: dict[str, dict[str, torch.Tensor]]
) -> None:
    _, _, auto, _, output = COMPOSED[name]
    model = getattr(transformers, auto).from_pretrained(root / name)
    with torch.no_grad():
        expected = model(images(2, 3, 32, 48))[output]
    for times in range(3):
        torch.testing.assert_close(answers[side][f"{name}.{times}"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["registered", "remote"])
def test_backbones_open_from_folders(side: str, root: Path, answers: dict[str, dict[str, torch.Tensor]]) -> None:
    trunk = METHODS["gtsa"].kind("Model").from_pretrained(root / "trunk-gtsa")
    with torch.no_grad():
        states = trunk(images(2, 3, 32, 48), output_hidden_states=True).hidden_states
        for index, layer in enumerate([1, 3]):
            expected = trunk.layernorm(states[layer])[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
            torch.testing.assert_close(answers[side][f"backbone.{index}"], expected, rtol=0, atol=1e-5)


def test_settings_come_from_a_configuration_or_by_name_and_other_models_are_refused(root: Path) -> None:
    config = transformers.UperNetConfig(**UPERNET)
    model = compose_model(
        transformers.UperNetForSemanticSegmentation, str(root / "trunk-gtsa"), config=config, num_labels=5
    )
    assert (model.config.hidden_size, model.config.num_labels, model.training) == (16, 5, False)
    assert model.backbone.out_indices == [1, 2, 3, 4]  # a quarter of the layers apart
    with pytest.raises(
        ValueError, match="must be a model of DPTConfig, Mask2FormerConfig, UperNetConfig, got ViTModel"
    ):
        compose_model(transformers.ViTModel, str(root / "trunk-gtsa"))


def test_a_backbone_config_alone_says_that_weights_are_random(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.AutoConfig.from_pretrained(root / "trunk-gtsa", out_indices=[1, 2, 3, 4])
    model = transformers.UperNetForSemanticSegmentation(transformers.UperNetConfig(backbone_config=config, **UPERNET))
    (record,) = [record for record in caplog.records if "GTSABackbone has random weights" in record.message]
    call = f"load_state_dict(AutoModel.from_pretrained('{root / 'trunk-gtsa'}', trust_remote_code=True).state_dict())"
    assert call in record.message
    eval("model.backbone." + call, {"model": model, "AutoModel": transformers.AutoModel})
    trunk = METHODS["gtsa"].kind("Model").from_pretrained(root / "trunk-gtsa")
    assert torch.equal(model.backbone.layernorm.weight, trunk.layernorm.weight)
    caplog.clear()
    model.save_pretrained(root / "plain")
    transformers.UperNetForSemanticSegmentation.from_pretrained(root / "plain")
    compose_model(transformers.UperNetForSemanticSegmentation, str(root / "trunk-gtsa"), **UPERNET)
    assert "random weights" not in caplog.text  # theirs are there


@pytest.mark.parametrize("layers", [2, 3])
def test_a_shallow_trunk_gives_its_embeddings_too_or_is_refused(layers: int, tmp_path: Path) -> None:
    METHODS["gtsa"].model("Model", num_hidden_layers=layers).save_pretrained(tmp_path)
    if layers == 2:
        with pytest.raises(ValueError, match="features of four layers, and the trunk has 2: give out_indices"):
            compose_model(transformers.UperNetForSemanticSegmentation, str(tmp_path), **UPERNET)
        return
    model = compose_model(transformers.UperNetForSemanticSegmentation, str(tmp_path), **UPERNET)
    assert model.config.backbone_config.out_indices == [0, 1, 2, 3]
    assert model(images(1, 3, 32, 48)).logits.shape == (1, 3, 32, 48)
