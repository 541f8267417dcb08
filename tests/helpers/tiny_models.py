"""Small models of this library and of others, with fresh weights, for the protocols of evaluation."""

from typing import Any

import timm
import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from hf_geossl import LOCAConfig, LOCAForPreTraining
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder


def foreign_model(kind: str, *, size: int = 64, width: int = 48, layers: int = 2) -> nn.Module:
    """A fresh vision transformer of `kind` "timm" or "transformers", with patches of 16 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "timm":
            return timm.models.VisionTransformer(
                img_size=size, patch_size=16, embed_dim=width, depth=layers, num_heads=2, num_classes=0
            )
        return ViTModel(
            ViTConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=2,
                intermediate_size=2 * width,
                image_size=size,
                patch_size=16,
            ),
            add_pooling_layer=False,
        )


def tiny_loca(**given: Any) -> LOCAForPreTraining:
    """A fresh LOCA model for images of 32 pixels in patches of 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
        config |= {"patch_size": 8, "num_prototypes": 16, "head_hidden_size": 32, "head_bottleneck_size": 16}
        return LOCAForPreTraining(LOCAConfig(**config | given)).eval()


def timm_encoder(patch_size: int, size: int) -> Encoder:
    """Two layers of timm's ViT-Tiny with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_encoder(
            timm.create_model(
                "vit_tiny_patch16_224",
                img_size=size,
                patch_size=patch_size,
                depth=2,
                num_classes=0,
                dynamic_img_size=True,
            )
        )
