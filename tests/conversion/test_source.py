"""Trunks come from folders, files, timm and this library's own models, in every form that weights are saved in."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from hf_geossl import GTSAConfig, compose_model
from hf_geossl.conversion.source import convert_source, read_source
from hf_geossl.conversion.trunk_weights import build_trunk
from hf_geossl.hub.repository import Repository
from tests.helpers.hub_server import WRITE_TOKEN, HubServer
from tests.helpers.methods import METHODS
from tests.helpers.vit_families import SIZES, TRANSFORMERS, assert_equal_features, features_of, images, make, make_timm

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.mark.parametrize("form", ["sharded", "bin", "sharded bin", "bfloat16", "float16"])
def test_folders_hold_weights_in_many_forms(form: str, tmp_path: Path) -> None:
    theirs = TRANSFORMERS["dinov2"]()
    if form in ("bfloat16", "float16"):
        theirs = theirs.to(getattr(torch, form)).float().eval()
        torch.nn.Module.to(theirs, getattr(torch, form)).save_pretrained(tmp_path)
        theirs.float()
    else:
        theirs.save_pretrained(tmp_path, max_shard_size="200KB" if form == "sharded" else "5GB")
    if "bin" in form:
        state = dict(AutoModel.from_pretrained(tmp_path).state_dict())
        (tmp_path / "model.safetensors").unlink()
        names = ["pytorch_model.bin"] if form == "bin" else [f"pytorch_model-{part}.bin" for part in "ab"]
        parts = [{key: state[key] for key in sorted(state)[start :: len(names)]} for start in range(len(names))]
        for name, part in zip(names, parts, strict=True):
            torch.save(part, tmp_path / name)
        if len(names) == 2:
            places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
            (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert len(list(tmp_path.glob("*.safetensors"))) == {"sharded": 7}.get(form, 0 if "bin" in form else 1)
    trunk = read_source(str(tmp_path))
    assert all(value.dtype == torch.float32 for value in trunk.state.values())
    assert_equal_features(convert_source(tmp_path), theirs, SIZES[1:2])


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "backbone.", "model.backbone._orig_mod.", "state_dict_ema/", "student/"],
)
@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov3_vit", "clip_vision_model"])
def test_files_of_every_naming_come_out_of_their_wrappers(name: str, prefix: str, tmp_path: Path) -> None:
    theirs = TRANSFORMERS[name]()
    inner = "vit." if name == "vit" and prefix else ""
    content: dict[str, Any] = {f"{prefix.partition('/')[0] if '/' not in prefix else ''}{inner}{key}": value
                               for key, value in theirs.state_dict().items()}  # fmt: skip
    if "/" in prefix:
        content = {prefix.strip("/"): content, "epoch": 3}
    torch.save({"state_dict": content, "optimizer": {"lr": 0.1}}, tmp_path / "lightning.ckpt")
    trunk = read_source(tmp_path / "lightning.ckpt", weights="student" if prefix == "student/" else None)
    assert trunk.family == name
    ours = convert_source(tmp_path / "lightning.ckpt", weights="student" if prefix == "student/" else None)
    assert_equal_features(
        ours, theirs, SIZES[2:]
    )  # a file says no epsilon and no activation: those of its family are taken


def test_teachers_are_taken_unless_the_student_is_asked_for(tmp_path: Path) -> None:
    teacher, student = make_timm("vit_base_patch16_224"), make_timm("vit_base_patch16_224", depth=1)
    content = {"state_dict": student.state_dict(), "state_dict_ema": teacher.state_dict()}
    torch.save(content, tmp_path / "last.pth.tar")
    assert read_source(tmp_path / "last.pth.tar").fields["num_hidden_layers"] == 2
    assert read_source(tmp_path / "last.pth.tar", weights="student").fields["num_hidden_layers"] == 1
    with pytest.raises(ValueError, match="weights must be 'teacher' or 'student', got 'both'"):
        read_source(tmp_path / "last.pth.tar", weights="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(METHODS))
def test_own_trunks_keep_their_method_and_pretraining_models_their_heads(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    whole = method.model("ForPreTraining")
    whole.save_pretrained(tmp_path / "whole")
    trunk = read_source(tmp_path / "whole")
    assert trunk.family == name
    assert type(trunk.pretraining) is type(whole)
    assert trunk.pretraining.state_dict().keys() == whole.state_dict().keys()
    student = getattr(whole, method.prefix)
    teacher = student if whole.teacher is None else getattr(whole.teacher, method.prefix)
    pixels = images(32, 32)
    assert torch.equal(features_of(convert_source(tmp_path / "whole"), pixels), features_of(teacher, pixels))
    model = convert_source(tmp_path / "whole", weights="student")
    assert torch.equal(features_of(model, pixels), features_of(student, pixels))
    model.save_pretrained(tmp_path / "trunk")
    again = read_source(tmp_path / "trunk")
    assert again.pretraining is None
    assert torch.equal(features_of(convert_source(tmp_path / "trunk"), pixels), features_of(student, pixels))
    with pytest.raises(ValueError, match="trunk is a trunk alone: leave weights out"):
        read_source(tmp_path / "trunk", weights="student")


def test_a_run_gives_its_checkpoint_to_training_and_its_trunk_to_conversion(tmp_path: Path) -> None:
    exported, inside = METHODS["gtsa"].model("Model"), METHODS["gtsa"].model("ForPreTraining", 0.1)
    exported.save_pretrained(tmp_path)
    inside.save_pretrained(tmp_path / "checkpoint-5")
    files = {name.name: name.stat().st_size for name in (tmp_path / "checkpoint-5").iterdir()}
    (tmp_path / "checkpoint-5" / "COMPLETE.json").write_text(json.dumps({"files": files}))
    trunk = read_source(tmp_path)
    assert trunk.name == f"{tmp_path.name} in checkpoint-5"
    assert trunk.pretraining is not None
    key = "embeddings.cls_token"
    assert torch.equal(trunk.state[key], inside.teacher.gtsa.state_dict()[key])
    assert torch.equal(convert_source(tmp_path).state_dict()[key], exported.state_dict()[key])
    student = convert_source(tmp_path, weights="student")
    assert torch.equal(student.state_dict()[key], inside.gtsa.state_dict()[key])


def test_normalization_is_that_of_the_sources_processor(tmp_path: Path) -> None:
    TRANSFORMERS["dinov2"]().save_pretrained(tmp_path)
    assert read_source(tmp_path).image_mean is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    trunk = read_source(tmp_path)
    assert (trunk.image_mean, trunk.image_std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for words in ({"rescale_factor": 1 / 127.5}, {"do_rescale": False}):  # what white is when the mean is subtracted
        white = 2.0 if "rescale_factor" in words else 255.0
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [1.0] * 3, "image_std": [0.5] * 3, **words})
        )
        trunk = read_source(tmp_path)
        assert trunk.image_mean == pytest.approx([1 / white] * 3)
        assert trunk.image_std == pytest.approx([0.5 / white] * 3)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("Beit", "BEiT has a relative position bias in each layer"),
        ("Swin", "Swin attends in windows"),
        ("ConvNext", "ConvNeXt has convolutions"),
        ("Siglip2Vision", "SigLIP 2 with patches of any aspect"),
        ("Bert", "is of type 'bert', which does not become a trunk"),
    ],
)
def test_other_families_are_refused_in_one_sentence(kind: str, why: str, tmp_path: Path) -> None:
    getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=f"^other .*{why}"):
        read_source(tmp_path / "other")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (["patch_embed.proj.weight", "blocks.0.attn.relative_position_bias_table"], "BEiT or Swin"),
        (["patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"], "Swin"),
        (["downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"], "ConvNeXt"),
        (["conv1.weight", "layer1.0.conv1.weight"], "ResNet"),
        (["visual.conv1.weight", "visual.transformer.resblocks.0.ln_1.weight"], "OpenCLIP"),
        (["patch_embed.conv.0.weight", "blocks.0.norm1.weight"], "a ViT with several convolutions"),
        (["patch_embed.proj.weight", "blocks.0.attn.rel_pos_h"], "SAM"),
    ],
)
def test_files_of_other_families_are_named(keys: list[str], why: str, tmp_path: Path) -> None:
    torch.save({key: torch.zeros(8, 3, 4, 4) for key in keys}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"other.pth .*looks like {why}"):
        read_source(tmp_path / "other.pth")


def test_what_a_trunk_has_not_is_named(tmp_path: Path) -> None:
    state = make_timm("vit_base_patch16_224").state_dict()
    torch.save(state | {"blocks.0.attn.gate.weight": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="unknown blocks.0.attn.gate.weight in its trunk, which no trunk"):
        read_source(tmp_path / "a.pth")
    torch.save({key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: value for key, value in state.items()},
               tmp_path / "b.pth")  # fmt: skip
    with pytest.raises(ValueError, match=r"lacks layernorm.weight: .*after pooling \(fc_norm\)"):
        read_source(tmp_path / "b.pth")


class _MakesFolder:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_pickles_and_code_of_a_folder_are_not_run(tmp_path: Path) -> None:
    TRANSFORMERS["vit"]().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"x": _MakesFolder(str(tmp_path / "run"))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin holds the object posix\.mkdir, which could run code"):
        read_source(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own_vit", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'run')!r})\n")
    with pytest.raises(ValueError, match="is no family of transformers, and its own code is not run"):
        read_source(tmp_path)
    assert not (tmp_path / "run").exists()


_CODE = """
import timm
from transformers import PreTrainedConfig, PreTrainedModel
class Config(PreTrainedConfig):
    model_type = "own_vit"
class Model(PreTrainedModel):
    config_class = Config
    def __init__(self, config):
        super().__init__(config)
        self.vit = timm.create_model("vit_base_patch16_224", img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2)
        self.post_init()
    def _init_weights(self, module):
        pass
"""


def test_code_that_is_trusted_gives_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder of such code stays in it
    theirs = make_timm("vit_base_patch16_224", num_classes=1000)
    config = {"model_type": "own_vit", "auto_map": {"AutoConfig": "code_own.Config", "AutoModel": "code_own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code_own.py").write_text(_CODE)
    save_file({f"vit.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    trunk = read_source(tmp_path, trust_remote_code=True)
    assert trunk.family == "timm"
    assert_equal_features(convert_source(tmp_path, trust_remote_code=True), theirs)


def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing is no model of the Hub, folder, file or timm:NAME"):
        read_source("nobody/nothing")
    with pytest.raises(ValueError, match="timm has no model 'vit_none'"):
        read_source("timm:vit_none")
    with pytest.raises(ValueError, match="holds no model: there is no config.json"):
        read_source(tmp_path)
    make("ViTModel").config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no weights: none of model.safetensors, "):
        read_source(tmp_path)


def test_a_folder_with_a_file_alone_names_the_file(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "dino.pth")
    with pytest.raises(
        ValueError, match="has no config.json, which a model's folder has; name the file in it: dino.pth"
    ):
        read_source(tmp_path)


def test_a_hub_id_is_read_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = [make("Dinov2Model", num_hidden_layers=layers) for layers in (1, 2)]
    with HubServer(tmp_path / "hub") as server:
        server.take_client(monkeypatch)
        repository, commits = Repository("tester/dinov2"), []
        repository.open(private=True)
        for model in theirs:
            model.save_pretrained(tmp_path / "m", max_shard_size="200KB")
            words = json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}).encode()
            files = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
            commits.append(repository.send(files | {"preprocessor_config.json": words}, "model", lambda path: True))
            shutil.rmtree(tmp_path / "m")
        trunk = read_source("tester/dinov2", revision=commits[0], token=WRITE_TOKEN)
        assert (trunk.name, trunk.family, trunk.image_mean) == ("tester/dinov2", "dinov2", (0.5, 0.5, 0.5))
        assert_equal_features(build_trunk(trunk), theirs[0], SIZES[2:])
        assert_equal_features(convert_source("tester/dinov2"), theirs[1], SIZES[2:])


def test_fields_that_a_file_does_not_say_are_the_configurations(tmp_path: Path) -> None:
    theirs = make_timm("vit_base_patch16_224", num_heads=4, img_size=(16, 64))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    config = GTSAConfig(
        num_attention_heads=4, image_size=(16, 64), patch_size=8, position_interpolation="bicubic_antialias"
    )
    config.position_interpolation_offset = 0.0
    ours = convert_source(tmp_path / "a.pth", config=config)
    assert ours.config.image_size == (16, 64)
    assert_equal_features(ours, theirs, ((16, 64), (64, 16), (32, 32)))


def test_a_folder_of_a_depth_model_gives_its_backbone(tmp_path: Path) -> None:
    backbone = transformers.Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, out_indices=[1, 2],
        reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8], reassemble_factors=[1, 0.5], reassemble_hidden_size=128,
        fusion_hidden_size=8, head_hidden_size=4,
    )  # fmt: skip
    model = transformers.DepthAnythingForDepthEstimation(config).eval()
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "depth_anything"
    trunk = read_source(tmp_path)
    assert trunk.family == "dinov2"
    assert any(part.startswith("neck") for part in trunk.left_out)
    pixels = images(32, 32)
    with torch.no_grad():
        expected = model.backbone(pixels).feature_maps[-1]
    assert torch.allclose(features_of(convert_source(tmp_path), pixels), expected, atol=1e-5)


def test_the_trunk_comes_out_of_a_model_that_is_composed_over_it(tmp_path: Path) -> None:
    trunk = METHODS["gtsa"].model("Model", std=0.1)
    trunk.save_pretrained(tmp_path / "trunk")
    fields = {"num_labels": 3, "hidden_size": 16, "auxiliary_channels": 8, "pool_scales": [1, 2]}
    model = compose_model(transformers.UperNetForSemanticSegmentation, str(tmp_path / "trunk"), [1, 2, 3, 4], **fields)
    model.save_pretrained(tmp_path / "upernet")
    source = read_source(tmp_path / "upernet")
    assert source.family == "gtsa"
    assert {part.split(".")[0] for part in source.left_out} == {"decode_head", "auxiliary_head"}
    assert_equal_features(build_trunk(source), trunk)
