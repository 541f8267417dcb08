"""Semantic segmentation by a feature pyramid over four layers of the trunk, trained end to end."""

from dataclasses import dataclass

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.segmenters import SegmentationTraining, measure_end_to_end
from hf_geossl.evaluation.heads.semantic_fpn import SemanticFPNHead
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult


@dataclass(frozen=True)
class SemanticFPNSettings(SegmentationTraining):
    """A feature pyramid and its head, trained with the trunk.

    Widths, dropout, weight decay and schedule are the GTSA authors'; steps, warm-up, crop and learning rate are of desk scale.
    Theirs: 40,000 steps of 16 images, warm-up 1500, learning rate 6e-5, frames of 512 pixels.

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
        return SemanticFPNHead(
            encoder,
            num_classes,
            pyramid_channels=settings.pyramid_channels,
            head_channels=settings.head_channels,
            dropout=settings.dropout,
        )

    return measure_end_to_end(encoder, data, options, settings, make_head, "Semantic FPN")


PROTOCOLS = {
    "semantic_fpn": EvaluationProtocol(measure_semantic_fpn, SemanticFPNSettings),
}
