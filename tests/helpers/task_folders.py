"""Folders of tiny models with heads, and models that see no farther than a few pixels."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    DPTForDepthEstimation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    UperNetForSemanticSegmentation,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

import hf_geossl
from hf_geossl.hub.export import make_image_processor
from hf_geossl.tasks.prediction.task_models import TaskModel

NAMES = {0: "road", 1: "house", 2: "tree"}
LABELS: dict[str, Any] = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
TRUNK = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
KINDS = {
    "classes": "classification",
    "linear": "segmentation",
    "upernet": "segmentation",
    "segformer": "segmentation",
    "dpt": "depth",
    "depth": "depth",
    "boxes": "detection",
    "yolos": "detection",
}


def task_folder(name: str, folder: Path) -> Path:
    """Saves one of KINDS with weights that are not zero anywhere, and its processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = _model(name, folder)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        if name == "dpt":
            model.head.head[4].bias.data.fill_(50.0)  # depths are not below 0, and cut there
    model.save_pretrained(folder)
    processor: Any = make_image_processor((32, 32))
    if name == "segformer":
        processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    elif name == "yolos":
        processor = YolosImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    processor.save_pretrained(folder)
    return folder


def _model(name: str, folder: Path) -> Any:
    if name == "classes":
        return hf_geossl.GTSAForImageClassification(hf_geossl.GTSAConfig(**TRUNK, **LABELS))
    if name == "linear":
        return hf_geossl.LOCAForSemanticSegmentation(hf_geossl.LOCAConfig(**TRUNK, **LABELS))
    if name == "depth":
        return hf_geossl.EquiCoherentForDepthEstimation(hf_geossl.EquiCoherentConfig(**TRUNK, decoder_type="linear"))
    if name == "boxes":
        return hf_geossl.GTSAForObjectDetection(hf_geossl.GTSAConfig(**TRUNK, **LABELS))
    if name == "segformer":
        sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4}
        return SegformerForSemanticSegmentation(SegformerConfig(**sizes, decoder_hidden_size=8, **LABELS))
    if name == "yolos":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return YolosForObjectDetection(
            YolosConfig(**sizes, image_size=[48, 48], patch_size=8, num_detection_tokens=12, **LABELS)
        )
    trunk = folder / "trunk"
    hf_geossl.GTSAModel(hf_geossl.GTSAConfig(**TRUNK)).save_pretrained(trunk)
    if name == "dpt":
        return hf_geossl.compose_model(
            DPTForDepthEstimation, str(trunk), neck_hidden_sizes=[8] * 4, fusion_hidden_size=8
        )
    return hf_geossl.compose_model(
        UperNetForSemanticSegmentation, str(trunk), hidden_size=8, use_auxiliary_head=False, **LABELS
    )


class LocalModel(nn.Module):
    """One convolution of 5 x 5 pixels: what it gives for a pixel depends on those up to two pixels away."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, classes, 5, padding=2)
        self.config = SimpleNamespace()
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.seen: list[tuple[int, ...]] = []  # shapes of the batches

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.seen.append(tuple(pixel_values.shape))
        return SimpleNamespace(logits=self.layer(pixel_values))


def local_model(classes: int = 3) -> TaskModel:
    """A segmenter that sees two pixels far, of images at their own size."""
    processor = make_image_processor((32, 32))
    processor.do_resize = False
    names = tuple(NAMES.get(number, str(number)) for number in range(classes))
    return TaskModel(LocalModel(classes), "segmentation", names, processor, None, "local")  # type: ignore[arg-type]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture in colours with some noise, uint8 `(height, width, 3)`."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin((y * a + x * b) / 9) for a, b in draw.normal(size=(3, 2))]
    return np.uint8(np.clip(127 + 90 * np.stack(waves, axis=-1) + draw.normal(size=(height, width, 3)) * 12, 0, 255))
