"""Tiny ViTs of every family, made by their own libraries, with weights that no initialisation would give."""

from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

SIZES = ((32, 32), (48, 48), (24, 40))  # their own, a larger one, one that is no square


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills all weights, so that none is 0, 1 or equal to another's."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.normal_(std=0.15, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def make(name: str, **fields: Any) -> PreTrainedModel:
    """A tiny model of transformers, by the name of its class, such as `"Dinov2Model"`."""
    shared = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 192,
        "image_size": 32,
        "patch_size": 8,
    }
    if name.startswith("Dinov2"):
        shared.pop("intermediate_size")
    config_class = getattr(transformers, name.replace("Model", "Config"))
    return randomise(getattr(transformers, name)(config_class(**{**shared, **fields})))  # type: ignore[return-value]


def make_timm(name: str, **fields: Any) -> nn.Module:
    """A tiny model of timm, by its name."""
    shared = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}
    return randomise(timm.create_model(name, dynamic_img_size=True, **{**shared, **fields}))


TRANSFORMERS: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": lambda: make("ViTModel", qkv_bias=False),
    "deit": lambda: make("DeiTModel"),
    "vit_mae": lambda: make("ViTMAEModel", mask_ratio=0.0),
    "vit_msn": lambda: make("ViTMSNModel"),
    "ijepa": lambda: make("IJepaModel"),
    "dinov2": lambda: make("Dinov2Model", mlp_ratio=2),
    "dinov2 giant": lambda: make("Dinov2Model", mlp_ratio=4, use_swiglu_ffn=True),
    "dinov2_with_registers": lambda: make("Dinov2WithRegistersModel", num_register_tokens=3),
    "dinov2_with_registers giant": lambda: make("Dinov2WithRegistersModel", mlp_ratio=3, use_swiglu_ffn=True),
    "dinov3_vit": lambda: make("DINOv3ViTModel", num_register_tokens=4),
    "dinov3_vit gated": lambda: make("DINOv3ViTModel", use_gated_mlp=True, hidden_act="silu", rope_theta=50.0),
    "dinov3_vit keys": lambda: make("DINOv3ViTModel", key_bias=True, num_register_tokens=1),
    "clip_vision_model": lambda: make("CLIPVisionModel"),
    "siglip_vision_model": lambda: make("SiglipVisionModel"),
}
TIMM: dict[str, Callable[[], nn.Module]] = {
    "vit_base_patch16_224": lambda: make_timm("vit_base_patch16_224"),
    "vit_small_patch14_dinov2": lambda: make_timm("vit_small_patch14_dinov2"),
    "vit_small_patch14_reg4_dinov2": lambda: make_timm("vit_small_patch14_reg4_dinov2"),
    "vit_giant_patch14_dinov2": lambda: make_timm("vit_giant_patch14_dinov2"),
    "vit_small_patch16_dinov3": lambda: make_timm("vit_small_patch16_dinov3"),
    "vit_small_patch16_dinov3_qkvb": lambda: make_timm("vit_small_patch16_dinov3_qkvb"),
    "vit_small_plus_patch16_dinov3": lambda: make_timm("vit_small_plus_patch16_dinov3"),
    "vit_base_patch16_siglip_224": lambda: make_timm("vit_base_patch16_siglip_224"),
    "vit_base_patch16_clip_quickgelu_224": lambda: make_timm("vit_base_patch16_clip_quickgelu_224"),
    "deit_tiny_distilled_patch16_224": lambda: make_timm("deit_tiny_distilled_patch16_224"),
    "vit_little_patch16_reg4_gap_256": lambda: make_timm(  # its registers have positions here
        "vit_little_patch16_reg4_gap_256", fc_norm=False, class_token=True, no_embed_class=False
    ),
}


@torch.no_grad()
def features_of(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What the model's own library gives as the last hidden state, after the final norm."""
    if not isinstance(model, PreTrainedModel):
        return model.forward_features(pixels)
    kind = model.config.model_type
    keywords: dict[str, Any] = {}
    if kind in ("vit", "deit", "vit_mae", "vit_msn", "ijepa", "clip_vision_model", "siglip_vision_model"):
        keywords["interpolate_pos_encoding"] = True
    if kind == "vit_mae":  # its model shuffles patches by this noise
        count = pixels.shape[-2] * pixels.shape[-1] // model.config.patch_size**2
        keywords["noise"] = torch.arange(float(count)).expand(len(pixels), -1)
    tokens = model(pixels, **keywords).last_hidden_state
    return model.post_layernorm(tokens) if kind == "clip_vision_model" else tokens


def images(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, in units of the largest value where that is over 1."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def assert_equal_features(found: Any, expected: Any, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    """Both give the same last hidden state to 1e-5 at all sizes."""
    for size in sizes:
        pixels = images(*size)
        assert relative_error(features_of(found, pixels), features_of(expected, pixels)) < 1e-5, size


def take_a_step(model: nn.Module) -> None:
    """One step of training that every weight takes part in."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model(images(*SIZES[0])).last_hidden_state.square().mul(torch.linspace(0, 1, 128)).mean().backward()
    optimizer.step()
    model.eval()
    # masks and keys' biases get no gradient: nothing is masked, and softmax does not feel a constant
    still = [name for name, value in before.items() if torch.equal(value, model.get_parameter(name))]
    assert all("mask_token" in name for name in still), still
