"""Folders of tiny vision transformers of other libraries that no trunk of this library stands for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn
from transformers import BeitConfig, BeitImageProcessor, BeitModel

DEPTH, SIDE, PATCH = 4, 32, 8
SIZES = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 24, "depth": DEPTH, "num_heads": 2}


def _beit(folder: Path) -> nn.Module:
    config = BeitConfig(
        hidden_size=24,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=SIDE,
        patch_size=PATCH,
        use_relative_position_bias=True,
        use_mean_pooling=False,
    )
    model = _shaken(BeitModel(config))
    model.save_pretrained(folder)
    BeitImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False).save_pretrained(folder)
    return model


def _of_timm(name: str) -> Callable[[Path], nn.Module]:
    def write(folder: Path) -> nn.Module:
        model = _shaken(timm.create_model(name, num_classes=0, **SIZES))
        save_for_hf(model, folder, model_args=SIZES)
        return model

    return write


def write_xcit(folder: Path) -> None:
    """A trunk with batch norms, in patch embedding and layers."""
    save_for_hf(_shaken(timm.create_model("xcit_tiny_12_p8_224", num_classes=0, **SIZES)), folder, model_args=SIZES)


def _shaken(model: Any) -> Any:
    """With weights that are zero nowhere, so that none can be lost unnoticed."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


WRITERS: dict[str, Callable[[Path], nn.Module]] = {
    "beit": _beit,  # relative positions
    "cait": _of_timm("cait_xxs24_224"),  # a class token that only the last layers know
    "beit_of_timm": _of_timm("beit_base_patch16_224"),  # the norm after the mean
}


def write_foreign_trunk(name: str, folder: Path) -> nn.Module:
    """Saves one of WRITERS as its library does; returns it, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return WRITERS[name](folder)


def own_features(name: str, model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Tokens, the feature of the image and the maps of all layers, as the model's own library gives them."""
    with torch.no_grad():
        if name == "beit":
            outputs = model(images, interpolate_pos_encoding=True, output_hidden_states=True)
            maps = [state[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for state in outputs.hidden_states[1:]]
            return outputs.last_hidden_state, outputs.last_hidden_state[:, 0], maps
        tokens = model.forward_features(images)
        maps = model.forward_intermediates(images, indices=list(range(DEPTH)), intermediates_only=True)
        features = model.forward_head(tokens, pre_logits=True)
        return model.fc_norm(tokens) if name == "beit_of_timm" else tokens, features, maps
