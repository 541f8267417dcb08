"""Semantic segmentation by transformers' UPerNet over four layers of the trunk, trained end to end."""

from dataclasses import dataclass

import torch
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.pyramid import RescaleNeck, layers_of_maps
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions, Task, TaskResult
from hf_geossl.evaluation.protocols.segmenters import SegmentationHead, SegmentationTraining, measure_end_to_end


@dataclass(frozen=True)
class UPerNetSettings(SegmentationTraining):
    """UPerNet's decoder and auxiliary head, trained with the trunk. The defaults are of desk scale; iBOT's recipe, which
    EquiCoherent follows: 160,000 steps of 16 images, frames of 512 pixels, 512 channels (256 auxiliary), learning rate 8e-5,
    weight decay .05, warm-up 1500, layer decay .65 (ViT-S) to .9.

    Args:
        hidden_size (`int`): Channels of the decoder.
        auxiliary_channels (`int`): Channels of the auxiliary head, on the third map.
        auxiliary_weight (`float`): Of its cross-entropy.
        pool_scales (`tuple[int, ...]`): Cells a side that the last map is pooled to.
        others: As in `SegmentationTraining`.
    """

    steps: int = 200
    learning_rate: float = 5e-4
    layer_decay: float = 0.9
    weight_decay: float = 0.05
    warmup_steps: int = 20
    hidden_size: int = 64
    auxiliary_channels: int = 64
    auxiliary_weight: float = 0.4
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2 for the BatchNorm of what is pooled to one cell, got {self.batch_size}"
            )


class UPerNetHead(SegmentationHead):
    """transformers' UPerNet over the maps of layers 2, 5, 8 and 11 of 12 before the final norm, which a `RescaleNeck` brings
    to a quarter, a half, once and twice the stride of the patches.

    Args:
        encoder (`Encoder`): The trunk, for its width.
        num_classes (`int`): Classes.
        settings (`UPerNetSettings`): Widths and weights.

    Source: UPerNet (arXiv 1807.10221), section 3; neck and auxiliary head as in iBOT (arXiv 2111.07832), appendix.
    """

    def __init__(self, encoder: Encoder, num_classes: int, settings: UPerNetSettings) -> None:
        super().__init__()
        config = UperNetConfig(
            hidden_size=settings.hidden_size,
            pool_scales=list(settings.pool_scales),
            auxiliary_channels=settings.auxiliary_channels,
        )
        config.num_labels = num_classes
        self.loss_weights = (1.0, settings.auxiliary_weight)
        self.neck = RescaleNeck(encoder.width)
        self.decoder = UperNetHead(config, [encoder.width] * 4)
        self.auxiliary = UperNetFCNHead(config, [encoder.width] * 4)

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        maps = self.neck(encoder.maps(pixel_values, layers_of_maps(encoder.num_layers)))
        return [self.decoder(maps), self.auxiliary(maps)]


def measure_upernet(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: UPerNetSettings
) -> TaskResult:
    """Mean IoU of UPerNet, trained with the whole trunk on all training images.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): With `semantic` maps in both splits.
        options (`EvaluationOptions`): How to evaluate.
        settings (`UPerNetSettings`): The protocol's own numbers.

    Returns:
        `TaskResult`: `mean_iou`, `pixel_accuracy`, `mean_class_accuracy`; IoU by class in the details.

    Raises:
        ValueError: If the data have no semantic maps.
    """

    def make_head(num_classes: int) -> UPerNetHead:
        return UPerNetHead(encoder, num_classes, settings)

    return measure_end_to_end(encoder, data, options, settings, make_head, "UPerNet")


TASKS = {
    "upernet": Task(
        measure_upernet,
        UPerNetSettings,
        "semantic segmentation, UPerNet with a rescale neck trained end to end (mean IoU)",
    )
}
