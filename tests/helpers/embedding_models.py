"""Folders of small models with their image processors, as users have them."""

from pathlib import Path

import torch
from transformers import ViTImageProcessor

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.hub.export import make_image_processor
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers.tiny_models import foreign_model


def own_folder(path: Path, image_format: ImageFormat | None = None) -> Path:
    """A trunk of this library for images of 32 pixels, random weights."""
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    if image_format is not None:
        fields |= {"num_channels": image_format.num_channels, "image_format": image_format.to_dict()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GTSAModel(GTSAConfig(**fields)).save_pretrained(path)
    make_image_processor((32, 32), image_format=image_format).save_pretrained(path)
    return path


def foreign_folder(path: Path) -> Path:
    """A ViT of transformers for images of 64 pixels, with a mean and deviation of its own."""
    foreign_model("transformers").save_pretrained(path)
    ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        path
    )
    return path
