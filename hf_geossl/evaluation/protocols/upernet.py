"""Semantic segmentation by transformers' UPerNet over four layers of the trunk, trained end to end."""

from dataclasses import dataclass

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.segmenters import SegmentationTraining, measure_end_to_end
from hf_geossl.evaluation.heads.upernet import UPerNetHead
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult


@dataclass(frozen=True)
class UPerNetSettings(SegmentationTraining):
    """UPerNet's decoder and auxiliary head, trained with the trunk.

    The defaults are of desk scale; iBOT's recipe, which EquiCoherent follows: 160,000 steps of 16 images, frames of 512 pixels,
    512 channels (256 auxiliary), learning rate 8e-5, weight decay .05, warm-up 1500, layer decay .65 (ViT-S) to .9.

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
        return UPerNetHead(
            encoder,
            num_classes,
            hidden_size=settings.hidden_size,
            pool_scales=settings.pool_scales,
            auxiliary_channels=settings.auxiliary_channels,
            auxiliary_weight=settings.auxiliary_weight,
        )

    return measure_end_to_end(encoder, data, options, settings, make_head, "UPerNet")


PROTOCOLS = {
    "upernet": EvaluationProtocol(measure_upernet, UPerNetSettings),
}
