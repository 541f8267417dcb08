"""BYOL models: trunk, backbone, image classification and semantic segmentation."""

from typing import ClassVar

from .configuration_byol import BYOLConfig
from .modeling_vit import GeometricViTPreTrainedModel
from .modeling_vit_heads import (
    ViTTrunkBackbone,
    ViTTrunkForDepthEstimation,
    ViTTrunkForImageClassification,
    ViTTrunkForObjectDetection,
    ViTTrunkForSemanticSegmentation,
    ViTTrunkModel,
)


class BYOLPreTrainedModel(GeometricViTPreTrainedModel):
    """Base of all BYOL classes."""

    config: BYOLConfig
    base_model_prefix = "byol"
    auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_byol.BYOLConfig",
        "AutoModel": "modeling_byol.BYOLModel",
        "AutoBackbone": "modeling_byol.BYOLBackbone",
        "AutoModelForImageClassification": "modeling_byol.BYOLForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_byol.BYOLForSemanticSegmentation",
        "AutoModelForDepthEstimation": "modeling_byol.BYOLForDepthEstimation",
        "AutoModelForObjectDetection": "modeling_byol.BYOLForObjectDetection",
    }


class BYOLModel(BYOLPreTrainedModel, ViTTrunkModel):
    """The plain ViT trunk."""


class BYOLBackbone(BYOLPreTrainedModel, ViTTrunkBackbone):
    """Feature maps of chosen layers."""


class BYOLForImageClassification(BYOLPreTrainedModel, ViTTrunkForImageClassification):
    """Mean of the patch tokens, layer norm, linear classifier."""

    trunk_class = BYOLModel


class BYOLForSemanticSegmentation(BYOLPreTrainedModel, ViTTrunkForSemanticSegmentation):
    """A linear decoder on the patch tokens."""

    trunk_class = BYOLModel


class BYOLForDepthEstimation(BYOLPreTrainedModel, ViTTrunkForDepthEstimation):
    """DPT on four layers of the trunk."""

    trunk_class = BYOLModel


class BYOLForObjectDetection(BYOLPreTrainedModel, ViTTrunkForObjectDetection):
    """Faster R-CNN on a pyramid of the trunk."""

    trunk_class = BYOLModel


__all__ = [
    "BYOLBackbone",
    "BYOLForDepthEstimation",
    "BYOLForImageClassification",
    "BYOLForObjectDetection",
    "BYOLForSemanticSegmentation",
    "BYOLModel",
    "BYOLPreTrainedModel",
]
