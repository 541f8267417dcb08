"""Registers, mask token and layer scale of the trunk, in all methods, against the formulas and transformers' DINOv2."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from hf_geossl import load_backbone
from hf_geossl.hub.export import export_model
from tests.helpers.methods import METHODS, Method, images, literal_trunk, randomise

ALL = {"num_register_tokens": 3, "use_mask_token": True, "layerscale_value": 0.3}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def _masks(batch_size: int, patches: int) -> torch.Tensor:
    """The last image has none."""
    masks = torch.rand(batch_size, patches, generator=torch.Generator().manual_seed(3)) < 0.4
    masks[-1] = False
    assert masks.any()
    return masks


# ---- the trunk


@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
@pytest.mark.parametrize(
    "fields", [{name: value} for name, value in ALL.items()] + [ALL], ids=["registers", "mask", "scale", "all"]
)
def test_trunk_with_options_equals_the_formulas(method: Method, fields: dict[str, Any], size: tuple[int, int]) -> None:
    model, pixels = method.model("Model", num_hidden_layers=2, **fields), images(3, 3, *size)
    masks = _masks(3, size[0] * size[1] // 64) if "use_mask_token" in fields else None
    outputs = model(pixels, bool_masked_pos=masks)
    expected = literal_trunk(model.config, model.state_dict(), pixels, bool_masked_pos=masks)
    prefix = int(model.config.use_class_token) + fields.get("num_register_tokens", 0)
    assert outputs.last_hidden_state.shape == (3, prefix + size[0] * size[1] // 64, 32)
    torch.testing.assert_close(outputs.last_hidden_state.double(), expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(model.patch_tokens(outputs).double(), expected[:, prefix:], rtol=0, atol=5e-5)
    pooled = expected[:, 0] if method.pools_class_token else expected[:, prefix:].mean(1)
    torch.testing.assert_close(outputs.pooler_output.double(), pooled, rtol=0, atol=5e-5)


@pytest.mark.parametrize("use_positions", [True, False])
def test_options_with_kept_tokens_and_without_positions(method: Method, use_positions: bool) -> None:
    """Masks are about patches of the image, whichever of them are kept."""
    model, pixels, kept = method.model("Model", num_hidden_layers=2, **ALL), images(2, 3, 40, 24), [11, 0, 7, 3]
    masks = _masks(2, 15)
    assert masks[0, kept].any()
    assert not masks[0, kept].all()
    found = model(pixels, torch.tensor(kept), use_positions, masks).last_hidden_state
    expected = literal_trunk(model.config, model.state_dict(), pixels, kept, use_positions, masks)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-5)


def test_what_stands_under_a_mask_does_not_matter_and_registers_have_no_position(method: Method) -> None:
    model, pixels, masks = method.model("Model", **ALL), images(2, 3, 32, 32), _masks(2, 16)
    masks[1, 5] = True
    other = pixels.clone()
    for image, cell in masks.nonzero().tolist():
        row, column = cell // 4 * 8, cell % 4 * 8
        other[image, :, row : row + 8, column : column + 8] = 9.0
    found = [model(x, bool_masked_pos=masks).last_hidden_state for x in (pixels, other)]
    assert torch.equal(*found)
    embedded = model.embeddings(pixels)
    first = int(model.config.use_class_token)
    for image in embedded:
        assert torch.equal(image[first : first + 3], model.embeddings.register_tokens[0])


def test_registers_and_scale_and_mask_token_learn(method: Method) -> None:
    model = method.model("Model", **ALL)
    model(images(2, 3, 32, 32), bool_masked_pos=_masks(2, 16)).last_hidden_state.square().sum().backward()
    extra = [n for n, _ in model.named_parameters() if any(w in n for w in ("register", "mask", "layer_scale"))]
    assert len(extra) == 2 + 2 * 4
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_options_are_absent_by_default(method: Method) -> None:
    plain = method.config()
    assert (plain.num_register_tokens, plain.layerscale_value) == (0, None)
    assert plain.use_mask_token is False  # pretraining gives its student one where the host masks
    names = set(method.kind("Model")(method.config(use_mask_token=False, **_host(method, "dino"))).state_dict())
    assert not [name for name in names if "register" in name or "mask" in name or "scale" in name]
    extra = set(method.kind("Model")(method.config(**ALL)).state_dict()) - names
    scales = {f"encoder.layer.{index}.layer_scale{one}.weight" for index in range(4) for one in (1, 2)}
    assert extra == {"embeddings.register_tokens", "embeddings.mask_token", *scales}


def _host(method: Method, host: str) -> dict[str, str]:
    return {"host": host} if method.name == "EquiCoherent" else {}


@pytest.mark.parametrize("kind", ["Model", "Backbone", "ForSemanticSegmentation", "ForPreTraining"])
def test_initial_values(method: Method, kind: str) -> None:
    """Registers nearly 0 (a normal of deviation 1e-6), the mask token 0, the scale what the configuration says."""
    torch.manual_seed(0)
    registers = {} if (method.name, kind) == ("LOCA", "ForPreTraining") else {"num_register_tokens": 16}
    for value in (1e-5, 1, 0.0):
        config = method.config(hidden_size=64, num_labels=3, use_mask_token=True, layerscale_value=value, **registers)
        found = set()
        for name, parameter in method.kind(kind)(config).named_parameters():
            if "layer_scale" in name:
                assert torch.equal(parameter, torch.full((64,), float(value))), name
                found.add("scale")
            elif name.endswith("mask_token"):
                assert torch.equal(parameter, torch.zeros(1, 64)), name
                found.add("mask")
            elif name.endswith("register_tokens"):
                assert parameter.shape == (1, 16, 64)
                assert parameter.std().item() == pytest.approx(1e-6, rel=4 / (2 * 16 * 64) ** 0.5), name
                assert parameter.abs().max() < 6e-6, name
                found.add("registers")
        assert found == {"scale", "mask", *(["registers"] if registers else [])}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.zeros(2, 15, dtype=torch.bool), r"bool of shape \(2, 16\), got torch.bool of \(2, 15\)"),
        (torch.zeros(1, 16, dtype=torch.bool), r"bool of shape \(2, 16\), got torch.bool of \(1, 16\)"),
        (torch.zeros(2, 16), r"bool of shape \(2, 16\), got torch.float32 of \(2, 16\)"),
        (torch.zeros(2, 4, 4, dtype=torch.bool), r"bool of shape \(2, 16\), got torch.bool of \(2, 4, 4\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(method: Method, given: torch.Tensor, told: str) -> None:
    with pytest.raises(ValueError, match="bool_masked_pos must be " + told):
        method.model("Model", use_mask_token=True)(images(2, 3, 32, 32), bool_masked_pos=given)


def test_masks_without_a_mask_token_are_refused(method: Method) -> None:
    model = method.model("Model", use_mask_token=False, **_host(method, "vicreg"))
    with pytest.raises(ValueError, match="needs a mask token: set use_mask_token=True"):
        model(images(2, 3, 32, 32), bool_masked_pos=_masks(2, 16))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_register_tokens": -1}, "num_register_tokens must be 0 or more, got -1"),
        ({"layerscale_value": float("nan")}, "layerscale_value must be a number, or None for no scale, got nan"),
        ({"layerscale_value": float("inf")}, "layerscale_value must be a number, or None for no scale, got inf"),
        ({"use_mask_token": 2}, "use_mask_token"),
    ],
)
def test_options_that_make_no_sense_are_refused(method: Method, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=told):
        method.config(**fields)


# ---- what is made of it


def test_backbones_leave_registers_out(method: Method) -> None:
    """The last stage is the trunk of the formulas; without a class token the mean of the patches stands in for it."""
    pixels = images(2, 3, 24, 56)
    for reshape in (True, False):
        model = method.model("Backbone", num_hidden_layers=2, reshape_hidden_states=reshape, **ALL)
        expected = literal_trunk(model.config, model.state_dict(), pixels)
        prefix = int(model.config.use_class_token) + 3
        patches = expected[:, prefix:]
        if reshape:
            wanted = torch.stack([patches[:, 7 * row : 7 * row + 7] for row in range(3)], dim=1).permute(0, 3, 1, 2)
        else:
            first = expected[:, :1] if model.config.use_class_token else patches.mean(1, keepdim=True)
            wanted = torch.cat([first, patches], dim=1)
            assert wanted.shape == (2, 1 + 21, 32)
        (found,) = model(pixels).feature_maps
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=5e-5)


def test_segmentation_leaves_registers_out(method: Method) -> None:
    model, pixels = method.model("ForSemanticSegmentation", num_labels=5, **ALL), images(2, 3, 24, 40)
    trunk = method.trunk(model)
    patches = literal_trunk(trunk.config, trunk.state_dict(), pixels)[:, int(trunk.config.use_class_token) + 3 :]
    logits = patches @ model.classifier.weight.double().T + model.classifier.bias.double()
    maps = torch.stack([logits[:, 5 * row : 5 * row + 5] for row in range(3)], dim=1).permute(0, 3, 1, 2)
    expected = F.interpolate(maps, (24, 40), mode="bilinear")
    torch.testing.assert_close(model(pixels).logits.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("weights", ["teacher", "student"])
def test_exported_trunk_with_all_options_reloads_equal(method: Method, weights: str, tmp_path: Path) -> None:
    fields = ALL if method.name != "LOCA" else {**ALL, "num_register_tokens": 0}  # LOCA's objective takes no registers
    model = method.model("ForPreTraining", **fields)
    randomise(model.teacher, seed=5)
    trunk = method.trunk(model.teacher if weights == "teacher" else model)
    export_model(model, tmp_path / "exported", weights=weights)
    pixels, masks = images(2, 3, 32, 48), _masks(2, 24)
    again = AutoModel.from_pretrained(tmp_path / "exported").eval()
    assert {name: value.tolist() for name, value in again.state_dict().items()} == {
        name: value.tolist() for name, value in trunk.state_dict().items()
    }
    found, expected = again(pixels, bool_masked_pos=masks), trunk(pixels, bool_masked_pos=masks)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    backbone = load_backbone(tmp_path / "exported").eval()
    (map_,) = backbone(pixels).feature_maps
    tokens = trunk.patch_tokens(trunk(pixels))
    assert torch.equal(map_.flatten(2).transpose(1, 2), tokens)


# ---- a peer


@pytest.mark.parametrize("registers", [1, 4])
def test_features_are_those_of_transformers_dinov2_with_the_same_weights(registers: int) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 42, "patch_size": 14}
    config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers, layerscale_value=0.5)
    peer = randomise(Dinov2WithRegistersModel(config))
    model = (
        METHODS["equicoherent"]
        .kind("Model")(
            METHODS["equicoherent"].config(
                **sizes, num_register_tokens=registers, layerscale_value=0.5, use_mask_token=True
            )
        )
        .eval()
    )
    theirs, ours = peer.state_dict(), {}
    for name, value in theirs.items():
        name = name.replace("attention.o_proj", "attention.projection")
        name = name.replace("patch_embeddings.projection", "patch_embeddings").replace(".lambda1", ".weight")
        if "_proj." in name:
            layer, kind = name.split("attention.")[0], name.rsplit(".", 1)[1]
            parts = [theirs[f"{layer}attention.{one}_proj.{kind}"] for one in "qkv"]
            name, value = f"{layer}attention.qkv.{kind}", torch.cat(parts)
        ours[name] = value
    model.load_state_dict(ours)
    pixels, masks = images(3, 3, 42, 42), _masks(3, 9)
    for given in (None, masks):
        expected = peer(pixels, bool_masked_pos=given, output_hidden_states=True)
        found = model(pixels, bool_masked_pos=given, output_hidden_states=True)
        assert found.last_hidden_state.shape == (3, 1 + registers + 9, 32)
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=2e-5)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=2e-5)
        for mine, other in zip(found.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=2e-5)
