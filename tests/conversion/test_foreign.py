"""Foreign checkpoints come in with equal features, go out to timm, and never run code."""

import argparse
import os
import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from hf_geossl import GTSABackbone, GTSAConfig, GTSAForPreTraining, GTSAModel
from hf_geossl.conversion import convert_dino_checkpoint, convert_gtsa_checkpoint, convert_timm_checkpoint, to_timm
from tests.helpers.golden import SHARED, SHIPPED
from tests.helpers.methods import METHODS, randomise

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

State = dict[str, torch.Tensor]

needs_full_set = pytest.mark.skipif(
    not (SHARED / "gtsa" / "golden.safetensors").is_file(), reason="the full golden set is not beside the checkout"
)


def _vit(**fields: Any) -> VisionTransformer:
    """A timm ViT with weights that no initialisation would give."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
    model = VisionTransformer(**{**size, **fields})
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(std=0.1, generator=generator)
    return model.eval()


def _images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _authors_state(vit: VisionTransformer, projector: int = 24, projection: int = 20, predictor: int = 28) -> State:
    """A full checkpoint in the authors' key names; the student's trunk is `vit`, the teacher's twice that."""
    width = vit.embed_dim
    shapes = {
        "base_projector.blocks.0.0": (projector, width, 3, 3),
        "base_projector.blocks.1.0": (projector, projector, 3, 3),
        "base_projector.proj": (projection, projector, 1, 1),
        "base_predictor.blocks.0.0": (predictor, projection, 3, 3),
        "base_predictor.proj": (projection, predictor, 1, 1),
        "rot_predictor.0": (40, width),
        "rot_predictor.1": (40,),
        "rot_predictor.3": (36, 40),
        "rot_predictor.4": (36,),
        "rot_predictor.6": (12, 36),
        "rot_predictor.7": (12,),
        "rot_predictor.8": (4, 12),
    }
    generator = torch.Generator().manual_seed(2)
    state = {f"base_encoder.{key}": value.clone() for key, value in vit.state_dict().items()}
    state |= {f"momentum_encoder.{key}": 2 * value for key, value in vit.state_dict().items()}
    for key, shape in shapes.items():
        state[f"{key}.weight"] = torch.randn(shape, generator=generator)
        state[f"{key}.bias"] = torch.randn(shape[0], generator=generator)
    for key in [key for key in state if key.startswith("base_projector.")]:
        state[key.replace("base_", "momentum_")] = 3 * state[key]
    return state


def _save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def _features(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.forward_features(pixels) if isinstance(model, VisionTransformer) else model(pixels)[0]


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


# ---- the authors' checkpoints


@pytest.mark.parametrize("place", ["model", "top", "distributed"])
def test_full_checkpoint_goes_where_it_belongs(place: str, tmp_path: Path) -> None:
    vit = _vit()
    state = _authors_state(vit)
    content: Any = {"model": state, "epoch": 99, "args": argparse.Namespace(lr=0.1, crops=[2, 4]), "scaler": {}}
    if place == "top":
        content = state
    if place == "distributed":
        content["model"] = {f"module.{key}": value for key, value in state.items()}
    model = convert_gtsa_checkpoint(_save(content, tmp_path / "checkpoint-99.pth"))
    assert type(model) is GTSAForPreTraining
    assert not model.training
    assert (model.config.num_attention_heads, model.config.num_hidden_layers) == (1, 2)
    assert (model.config.image_size, model.config.patch_size) == (32, 8)
    assert model.config.position_interpolation_offset == 0.1
    assert list(model.config.rotation_hidden_sizes) == [40, 36, 12]
    pixels = _images(2, 3, 32, 32)
    _close(_features(model.gtsa, pixels), _features(vit, pixels))
    for parameter in vit.parameters():
        with torch.no_grad():
            parameter.mul_(2)
    _close(_features(model.teacher.gtsa, pixels), _features(vit, pixels))
    for ours, theirs in (
        ("projector.blocks.0.convolution.weight", "base_projector.blocks.0.0.weight"),
        ("projector.blocks.1.convolution.bias", "base_projector.blocks.1.0.bias"),
        ("projector.projection.weight", "base_projector.proj.weight"),
        ("teacher.projector.blocks.1.convolution.weight", "momentum_projector.blocks.1.0.weight"),
        ("teacher.projector.projection.bias", "momentum_projector.proj.bias"),
        ("predictor.block.convolution.weight", "base_predictor.blocks.0.0.weight"),
        ("predictor.projection.weight", "base_predictor.proj.weight"),
    ):
        assert torch.equal(model.state_dict()[ours], state[theirs]), ours
    features = _images(3, 64)
    layers = {
        "0": lambda x, w, b: F.linear(x, w, b),
        "1": lambda x, w, b: F.gelu(F.layer_norm(x, x.shape[-1:], w, b)),
        "3": lambda x, w, b: F.linear(x, w, b),
        "4": lambda x, w, b: F.gelu(F.layer_norm(x, x.shape[-1:], w, b)),
        "6": lambda x, w, b: F.linear(x, w, b),
        "7": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        "8": lambda x, w, b: F.linear(x, w, b),
    }
    expected = features
    for index, layer in layers.items():
        expected = layer(expected, state[f"rot_predictor.{index}.weight"], state[f"rot_predictor.{index}.bias"])
    _close(model.rotation_head(features), expected, 1e-5)


@pytest.mark.parametrize("under", ["top", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_flat_trunk_gives_teacher_equal_to_student_and_fresh_heads(under: str, suffix: str, tmp_path: Path) -> None:
    vit, path = _vit(), tmp_path / f"CoCo_GTSA_99ep{suffix}"
    if suffix == ".safetensors":
        save_file(vit.state_dict(), path)
    else:
        _save({"model": vit.state_dict()} if under == "model" else vit.state_dict(), path)
    torch.manual_seed(0)
    model = convert_gtsa_checkpoint(path)
    assert not model.training
    pixels = _images(2, 3, 32, 32)
    _close(_features(model.gtsa, pixels), _features(vit, pixels))
    for teacher, student in zip(*model.teacher_pairs(), strict=True):
        assert torch.equal(teacher, student)
    assert model.projector.projection.weight.shape == (768, 384, 1, 1)  # the paper's, where nothing else is told
    assert model.projector.projection.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_tensors_win_over_the_configuration_which_is_not_changed(tmp_path: Path) -> None:
    path = _save({"model": _authors_state(_vit(num_heads=4))}, tmp_path / "checkpoint.pth")
    config = GTSAConfig(
        hidden_size=192,
        num_attention_heads=4,
        num_hidden_layers=7,
        intermediate_size=100,
        image_size=224,
        patch_size=16,
        num_channels=1,
        projector_hidden_size=8,
        projection_size=9,
        predictor_hidden_size=10,
        rotation_hidden_sizes=(5,),
        out_indices=[1, 6],
        position_interpolation_offset=0.25,
        num_matches=(5, 4),
        id2label={0: "a", 1: "b", 2: "c"},
    )
    before = config.to_dict()
    model = convert_gtsa_checkpoint(path, config)
    assert config.to_dict() == before
    told = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 256,
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 3,
        "projector_hidden_size": 24,
        "projection_size": 20,
        "predictor_hidden_size": 28,
        "num_attention_heads": 4,
        "position_interpolation_offset": 0.25,
    }
    assert {name: getattr(model.config, name) for name in told} == told
    assert list(model.config.rotation_hidden_sizes) == [40, 36, 12]
    assert list(model.config.num_matches) == [5, 4]
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.stage_names == ["stem", "stage1", "stage2"]
    pixels = _images(2, 3, 32, 32)
    _close(_features(model.gtsa, pixels), _features(_vit(num_heads=4), pixels))


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"embed_dim": 128, "num_heads": 2, "depth": 1}, (32, 32)),
        ({"patch_size": 4, "img_size": 16}, (16, 16)),
        ({"in_chans": 5, "mlp_ratio": 3.0}, (32, 32)),
        ({"qkv_bias": False}, (32, 32)),
    ],
)
def test_other_widths_patches_and_channels(fields: dict[str, Any], size: tuple[int, int], tmp_path: Path) -> None:
    vit = _vit(**fields)
    pixels = _images(2, vit.patch_embed.proj.in_channels, *size)
    full = convert_gtsa_checkpoint(_save(_authors_state(vit), tmp_path / "full.pth"))
    flat = convert_gtsa_checkpoint(_save(vit.state_dict(), tmp_path / "flat.pth"))
    for model in (full, flat):
        _close(_features(model.gtsa, pixels), _features(vit, pixels))


def test_heads_must_be_given_where_the_width_is_no_multiple_of_64(tmp_path: Path) -> None:
    vit = _vit(embed_dim=48, num_heads=3)
    for content in (_authors_state(vit), vit.state_dict()):
        path = _save(content, tmp_path / "checkpoint.pth")
        with pytest.raises(ValueError, match="checkpoint.pth is 48 wide.*number of heads"):
            convert_gtsa_checkpoint(path)
        pixels = _images(1, 3, 32, 32)
        model = convert_gtsa_checkpoint(path, GTSAConfig(num_attention_heads=3))
        _close(_features(model.gtsa, pixels), _features(vit, pixels))


def test_half_precision_checkpoints_come_in_as_float32(tmp_path: Path) -> None:
    vit = _vit()
    path = _save({key: value.half() for key, value in vit.state_dict().items()}, tmp_path / "half.pth")
    model = convert_gtsa_checkpoint(path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for parameter in vit.parameters():
        with torch.no_grad():
            parameter.copy_(parameter.half())
    pixels = _images(1, 3, 32, 32)
    _close(_features(model.gtsa, pixels), _features(vit, pixels))


def test_the_authors_trunk_loads_strictly_into_timm_and_agrees(tmp_path: Path) -> None:
    """Weights of the authors' program (the part that ships), stripped of their prefix, at 224 pixels."""
    tensors = load_file(SHIPPED / "gtsa" / "encoder.safetensors")
    prefix = "state.base_encoder."
    trunk = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    vit = VisionTransformer(embed_dim=48, depth=2, num_heads=3, num_classes=0).eval()
    vit.load_state_dict(trunk, strict=True)
    model = convert_gtsa_checkpoint(_save(trunk, tmp_path / "flat.pth"), GTSAConfig(num_attention_heads=3))
    pixels = _images(1, 3, 224, 224)
    _close(_features(model.gtsa, pixels), _features(vit, pixels))
    exported = to_timm(model, image_size=96)  # at another size the authors' resampling is baked in
    expected = tensors["enc.96x96.patch_tokens"]
    _close(_features(exported, tensors["view.2"].float())[:, 1:], expected, 1e-5)


@needs_full_set
def test_the_authors_teacher_agrees_with_timm(golden: Any, authors_file: Path) -> None:
    tensors, _ = golden
    prefix = "state.momentum_encoder."
    trunk = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    vit = VisionTransformer(embed_dim=48, depth=2, num_heads=3, num_classes=0).eval()
    vit.load_state_dict(trunk, strict=True)
    model = convert_gtsa_checkpoint(authors_file, GTSAConfig(num_attention_heads=3))
    pixels = tensors["view.0"].float()
    _close(_features(model.teacher.gtsa, pixels), _features(vit, pixels))


# ---- what is refused


class _Touch:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _converters() -> list[Any]:
    return [convert_gtsa_checkpoint, convert_timm_checkpoint, convert_dino_checkpoint]


@pytest.mark.parametrize("convert", _converters())
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(convert: Any, zipped: bool, tmp_path: Path) -> None:
    created = tmp_path / "created"
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": _authors_state(_vit()), "args": _Touch(created)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"checkpoint.pth holds the object (posix|nt)\.mkdir, which could run code"):
        convert(path)
    assert not created.exists()
    path.write_bytes(pickle.dumps(_Touch(created)))
    with pytest.raises(ValueError, match="checkpoint.pth"):
        convert(path)
    assert not created.exists()
    os.rename(path, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        convert(tmp_path / "model.safetensors")
    assert not created.exists()
    torch.load(_save({"args": _Touch(created)}, path), weights_only=False)
    assert created.exists(), "the attack works on a reader that runs what it reads"


def test_a_path_in_the_arguments_is_refused_with_what_to_do(tmp_path: Path) -> None:
    content = {"model": _authors_state(_vit()), "args": argparse.Namespace(output_dir=Path("somewhere"))}
    with pytest.raises(ValueError, match=r"object pathlib\.\w+, .*save it again with its state_dict alone"):
        convert_gtsa_checkpoint(_save(content, tmp_path / "checkpoint.pth"))


@pytest.mark.parametrize("convert", _converters())
def test_files_that_are_no_checkpoints(convert: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        convert(tmp_path / "missing.pth")
    whole = _save({"model": _vit().state_dict()}, tmp_path / "whole.pth").read_bytes()
    path = tmp_path / "broken.pth"
    contents = {
        "text": b"hello world\n",
        "page": b"<!DOCTYPE html><html></html>",
        "json": b'{"model": 1}',
        "empty": b"",
        "picture": b"\xff\xd8\xff\xe0\x00\x10JFIF",
        "half": whole[: len(whole) // 2],
        "start": whole[:10],
        "pickle": pickle.dumps({"a": 1}),
    }
    for content in contents.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.pth is not a readable PyTorch checkpoint") as caught:
            convert(path)
        assert "weights_only" not in str(caught.value), "no advice to load it unsafely"
    for content in ([1, 2], torch.zeros(3)):
        with pytest.raises(ValueError, match="expected a mapping"):
            convert(_save(content, path))


def test_damaged_bytes_never_give_another_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    content = {"model": {"a": torch.zeros(3)}, "args": argparse.Namespace(a=1)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 3, 20])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="broken.pth"):  # {"a"} alone is no ViT either
            convert_gtsa_checkpoint(path)
        refused += 1
    assert refused == 200


def test_checkpoints_of_something_else(tmp_path: Path) -> None:
    path, state = tmp_path / "other.pth", _vit().state_dict()
    without_mlp = {key.replace("mlp.fc1", "mlp.w12"): value for key, value in state.items()}
    cases = [
        ({"weight": torch.zeros(3, 3)}, "no plain ViT checkpoint: it lacks cls_token"),
        ({"epoch": 3}, "holds no tensors under the expected names"),
        ({}, "holds no tensors under the expected names"),
        ({1: torch.zeros(2), "a": 3}, "holds no tensors under the expected names"),
        ({"model": {"backbone.conv1.weight": torch.zeros(3, 3)}}, "no plain ViT checkpoint"),
        (without_mlp, "lacks blocks.0.mlp.fc1.weight"),
        ({**state, "mask_token": torch.zeros(1, 1, 64)}, "has unknown mask_token"),
        ({**state, "blocks.0.ls1.gamma": torch.zeros(64)}, "has unknown .*ls1.gamma"),
        ({**state, "norm.weight": torch.zeros(7)}, "has other shapes for layernorm.weight"),
        ({**state, "pos_embed": torch.zeros(1, 16, 64)}, "15 positions .* no square grid"),
        ({**state, "pos_embed": torch.zeros(1, 1, 64)}, "0 positions"),
        ({**state, "pos_embed": torch.zeros(17, 64)}, "pos_embed must have 3 dimensions"),
        ({**state, "patch_embed.proj.weight": torch.zeros(64, 192)}, "must have 4 dimensions"),
        ({key: value for key, value in state.items() if key != "blocks.1.norm2.bias"}, "lacks encoder.layer.1.norm2"),
    ]
    for content, told in cases:
        with pytest.raises(ValueError, match=told):
            convert_gtsa_checkpoint(_save(content, path))
    state = _authors_state(_vit())
    for missing in ("base_projector.proj.weight", "momentum_projector.proj.bias", "rot_predictor.3.weight"):
        with pytest.raises(ValueError, match="lacks"):
            convert_gtsa_checkpoint(_save({key: v for key, v in state.items() if key != missing}, path))


# ---- timm


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_heads": 4, "embed_dim": 48},
        {"num_classes": 10},
        {"img_size": (32, 48)},
        {"img_size": (16, 64)},  # 16 positions, as many as 4 x 4
        {"norm_layer": partial(nn.LayerNorm, eps=1e-2)},
        {"global_pool": "avg", "fc_norm": False},
    ],
)
def test_timm_models_come_in_and_go_back(fields: dict[str, Any]) -> None:
    vit = _vit(**fields)
    model = convert_timm_checkpoint(vit)
    assert type(model) is GTSAModel
    assert not model.training
    pixels = _images(2, 3, *vit.patch_embed.img_size)
    expected = _features(vit, pixels)
    _close(_features(model, pixels), expected)
    back = to_timm(model)
    assert not back.training
    assert back.patch_embed.img_size == vit.patch_embed.img_size
    _close(_features(back, pixels), expected)
    with torch.no_grad():
        _close(back(pixels), expected[:, 1:].mean(1))
    state = vit.state_dict()
    assert back.state_dict().keys() == {key for key in state if not key.startswith("head.")}
    for key, value in back.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_what_a_timm_model_tells_wins_over_the_configuration() -> None:
    vit, config = _vit(num_heads=4), GTSAConfig(hidden_size=64, num_attention_heads=2, projection_size=9)
    before = config.to_dict()
    model = convert_timm_checkpoint(vit, config)
    assert config.to_dict() == before
    assert (model.config.num_attention_heads, model.config.projection_size) == (4, 9)
    pixels = _images(2, 3, 32, 32)
    _close(_features(model, pixels), _features(vit, pixels))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_files_and_state_dicts(suffix: str, tmp_path: Path) -> None:
    vit, path, pixels = _vit(num_classes=3), tmp_path / f"model{suffix}", _images(2, 3, 32, 32)
    if suffix == ".pth":
        _save({"state_dict": vit.state_dict()}, path)
    else:
        save_file(vit.state_dict(), path)
    for source in (path, str(path), vit.state_dict()):
        model = convert_timm_checkpoint(source)
        assert model.config.position_interpolation_offset == 0.0
        _close(_features(model, pixels), _features(vit, pixels))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"act_layer": nn.ReLU}, "exact GELU"),
        ({"act_layer": partial(nn.GELU, approximate="tanh")}, "exact GELU"),
        ({"reg_tokens": 2}, "the timm model"),
        ({"init_values": 0.1}, "has unknown .*ls1.gamma"),
        ({"qk_norm": True}, "has unknown .*k_norm"),
        ({"class_token": False, "global_pool": "avg"}, "lacks cls_token"),
        ({"global_pool": "avg"}, "lacks norm.weight"),
        ({"no_embed_class": True}, "15 positions"),
        ({"pre_norm": True}, "has unknown norm_pre"),
    ],
)
def test_timm_models_with_other_parts_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        convert_timm_checkpoint(_vit(**fields))


def test_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="plain VisionTransformer, got Linear"):
        convert_timm_checkpoint(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model with a ViT trunk.*got Linear"):
        to_timm(nn.Linear(2, 2))


@pytest.mark.parametrize("size", [None, 32, 64, 16, (48, 24), (16, 64)])
@pytest.mark.parametrize("offset", [0.1, 0.0])
def test_to_timm_has_equal_features_at_the_size_asked_for(size: Any, offset: float) -> None:
    config = GTSAConfig(
        hidden_size=97,  # 100 / 97 * 97 is 99.99...
        intermediate_size=100,
        num_attention_heads=1,
        num_hidden_layers=2,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-3,
        position_interpolation_offset=offset,
    )
    model = GTSAModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(std=0.1, generator=generator)
    height, width = (32, 32) if size is None else (size, size) if isinstance(size, int) else size
    pixels = _images(2, 3, height, width)
    vit = to_timm(model, image_size=size)
    with torch.no_grad():
        outputs = model(pixels)
        _close(vit.forward_features(pixels), outputs.last_hidden_state, 5e-6)
        _close(vit(pixels), outputs.pooler_output, 5e-6)


@pytest.mark.parametrize("fields", [{}, {"num_register_tokens": 3, "layerscale_value": 0.3, "host": "dino"}])
def test_to_timm_takes_registers_layer_scale_and_a_class_token_that_is_pooled(fields: dict[str, Any]) -> None:
    model = randomise(METHODS["equicoherent"].model("Model", **fields))
    pixels = _images(2, 3, 32, 32)
    vit = to_timm(model)
    _close(_features(vit, pixels), _features(model, pixels))
    with torch.no_grad():
        _close(vit(pixels), model(pixels).pooler_output)


@pytest.mark.parametrize("size", [None, (48, 16), 64])
def test_to_timm_takes_loca(size: Any) -> None:
    model = randomise(METHODS["loca"].model("Model"))
    height, width = (size, size) if isinstance(size, int) else size or model.config.image_height_width
    pixels = _images(2, 3, height, width)
    vit = to_timm(model, image_size=size)
    _close(_features(vit, pixels), _features(model, pixels))
    with torch.no_grad():
        _close(vit(pixels), model(pixels).pooler_output)


def test_to_timm_takes_any_class_and_refuses_what_timm_has_not() -> None:
    config = GTSAConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=3, image_size=32, patch_size=8)
    pixels = _images(1, 3, 32, 32)
    backbone = GTSABackbone(config).eval()
    expected = backbone(pixels).feature_maps[0].flatten(2).mT
    _close(_features(to_timm(backbone), pixels)[:, 1:], expected)
    pretraining = GTSAForPreTraining(config).eval()
    _close(_features(to_timm(pretraining), pixels), _features(pretraining.gtsa, pixels))
    with pytest.raises(ValueError, match="multiple of the patch size 8, got 36 x 36"):
        to_timm(backbone, image_size=36)
    config.hidden_act = "relu"
    with pytest.raises(ValueError, match="hidden_act gelu or gelu_pytorch_tanh, got 'relu'"):
        to_timm(GTSAModel(config))


# ---- DINO


def _dino_features(vit: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    """DINO's own way with positions (grid + 0.1 over the old grid, bicubic), on timm's other parts."""
    with torch.no_grad():
        tokens = vit.patch_embed.proj(pixels)
        rows, columns = tokens.shape[-2:]
        positions = vit.pos_embed
        old = round((positions.shape[1] - 1) ** 0.5)
        table = positions[:, 1:]
        if (rows, columns) != (old, old):
            table = F.interpolate(
                table.reshape(1, old, old, -1).permute(0, 3, 1, 2),
                scale_factor=((rows + 0.1) / old, (columns + 0.1) / old),
                mode="bicubic",
            )
            assert table.shape[-2:] == (rows, columns)
            table = table.permute(0, 2, 3, 1).flatten(1, 2)
        first = vit.cls_token.expand(len(pixels), -1, -1)
        tokens = torch.cat([first, tokens.flatten(2).mT], dim=1) + torch.cat([positions[:, :1], table], dim=1)
        for block in vit.blocks:
            tokens = block(tokens)
        return vit.norm(tokens)


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (16, 40)])
def test_dino_checkpoints_have_equal_features_at_every_size(size: tuple[int, int], tmp_path: Path) -> None:
    teacher, student = _vit(), _vit()
    for parameter in student.parameters():
        with torch.no_grad():
            parameter.mul_(-0.5)
    head = {"mlp.0.weight": torch.zeros(8, 64), "last_layer.weight_g": torch.ones(4, 1)}
    content = {
        "student": {f"module.backbone.{key}": value for key, value in student.state_dict().items()}
        | {f"module.head.{key}": value for key, value in head.items()},
        "teacher": {f"backbone.{key}": value for key, value in teacher.state_dict().items()}
        | {f"head.{key}": value for key, value in head.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", data_path="/data"),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }
    full = _save(content, tmp_path / "checkpoint.pth")
    flat = _save(teacher.state_dict(), tmp_path / "dino_pretrain.pth")
    pixels = _images(2, 3, *size)
    for path, weights, vit in (
        (full, "teacher", teacher),
        (full, "student", student),
        (flat, "teacher", teacher),
    ):
        model = convert_dino_checkpoint(path, weights)
        assert type(model) is GTSAModel
        assert not model.training
        assert model.config.position_interpolation_offset == 0.1
        _close(_features(model, pixels), _dino_features(vit, pixels))
    assert (_dino_features(teacher, pixels) - _dino_features(student, pixels)).abs().max() > 0.1


def test_dino_weights_are_teacher_or_student(tmp_path: Path) -> None:
    path = _save(_vit().state_dict(), tmp_path / "dino.pth")
    with pytest.raises(ValueError, match="weights must be 'teacher' or 'student', got 'both'"):
        convert_dino_checkpoint(path, "both")
    heads = convert_dino_checkpoint(path, config=GTSAConfig(num_attention_heads=4))
    pixels = _images(1, 3, 32, 32)
    _close(_features(heads, pixels), _dino_features(_vit(num_heads=4), pixels))
