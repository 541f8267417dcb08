"""Semantic segmentation by a feature pyramid over four layers of the trunk, trained end to end."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.pyramid import layers_of_maps
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions, Task, TaskResult
from hf_geossl.evaluation.protocols.segmenters import (
    SegmentationHead,
    SegmentationTraining,
    measure_end_to_end,
    upsample,
)


@dataclass(frozen=True)
class SemanticFPNSettings(SegmentationTraining):
    """A feature pyramid and its head, trained with the trunk. Widths, dropout, weight decay and schedule are the GTSA authors';
    steps, warm-up, crop and learning rate are of desk scale. Theirs: 40,000 steps of 16 images, warm-up 1500, learning rate
    6e-5, frames of 512 pixels.

    Args:
        pyramid_channels (`int`): Channels of the pyramid.
        head_channels (`int`): Channels of its head.
        dropout (`float`): Share of channels that are dropped before the last layer.
        others: As in `SegmentationTraining`.
    """

    steps: int = 200
    learning_rate: float = 5e-4
    warmup_steps: int = 20
    pyramid_channels: int = 256
    head_channels: int = 128
    dropout: float = 0.1


class SemanticFPNHead(SegmentationHead):
    """A top-down pyramid over the maps of layers 2, 5, 8 and 11 of 12 before the final norm, whose levels are summed.

    The four maps have one stride, that of the patches, as in the GTSA authors' configuration, which has no rescaling neck;
    still its head is told strides 4, 8, 16 and 32: levels are convolved 1, 1, 2 and 3 times, and enlarged by 2 each time (but
    the first), then brought back.

    Args:
        encoder (`Encoder`): The trunk, for its width.
        num_classes (`int`): Classes.
        settings (`SemanticFPNSettings`): Widths and dropout.

    Source: Panoptic Feature Pyramid Networks (arXiv 1901.02446), section 3; GTSA (arXiv 2304.08014), section 4.
    """

    def __init__(self, encoder: Encoder, num_classes: int, settings: SemanticFPNSettings) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork([encoder.width] * 4, settings.pyramid_channels)
        channels = settings.head_channels
        self.levels = nn.ModuleList()
        for level in range(4):
            layers: list[nn.Module] = []
            for step in range(max(1, level)):
                layers += [
                    nn.Conv2d(channels if step else settings.pyramid_channels, channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                ]
                if level:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.levels.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(settings.dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        maps = encoder.maps(pixel_values, layers_of_maps(encoder.num_layers))
        pyramid = self.pyramid(OrderedDict((str(level), part) for level, part in enumerate(maps)))
        levels = [level(part) for level, part in zip(self.levels, pyramid.values(), strict=True)]
        total = levels[0] + sum(upsample(level, levels[0].shape[-2:]) for level in levels[1:])
        return [self.classifier(self.dropout(total))]


def measure_semantic_fpn(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: SemanticFPNSettings
) -> TaskResult:
    """Mean IoU of Semantic FPN, trained with the whole trunk on all training images.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): With `semantic` maps in both splits.
        options (`EvaluationOptions`): How to evaluate.
        settings (`SemanticFPNSettings`): The protocol's own numbers.

    Returns:
        `TaskResult`: `mean_iou`, `pixel_accuracy`, `mean_class_accuracy`; IoU by class in the details.

    Raises:
        ValueError: If the data have no semantic maps.
    """

    def make_head(num_classes: int) -> SemanticFPNHead:
        return SemanticFPNHead(encoder, num_classes, settings)

    return measure_end_to_end(encoder, data, options, settings, make_head, "Semantic FPN")


TASKS = {
    "semantic_fpn": Task(
        measure_semantic_fpn,
        SemanticFPNSettings,
        "semantic segmentation, Semantic FPN trained end to end as by the GTSA authors (mean IoU)",
    )
}
