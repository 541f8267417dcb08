"""GTSA models: trunk, backbone, classification, segmentation, depth and detection (arXiv 2304.08014)."""

from typing import ClassVar

from .configuration_gtsa import GTSAConfig
from .modeling_vit import GeometricViTPreTrainedModel
from .modeling_vit_heads import (
    ViTTrunkBackbone,
    ViTTrunkForDepthEstimation,
    ViTTrunkForImageClassification,
    ViTTrunkForObjectDetection,
    ViTTrunkForSemanticSegmentation,
    ViTTrunkModel,
)


class GTSAPreTrainedModel(GeometricViTPreTrainedModel):
    """Base of all GTSA classes."""

    config: GTSAConfig
    base_model_prefix = "gtsa"
    auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_gtsa.GTSAConfig",
        "AutoModel": "modeling_gtsa.GTSAModel",
        "AutoBackbone": "modeling_gtsa.GTSABackbone",
        "AutoModelForImageClassification": "modeling_gtsa.GTSAForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_gtsa.GTSAForSemanticSegmentation",
        "AutoModelForDepthEstimation": "modeling_gtsa.GTSAForDepthEstimation",
        "AutoModelForObjectDetection": "modeling_gtsa.GTSAForObjectDetection",
    }


class GTSAModel(GTSAPreTrainedModel, ViTTrunkModel):
    """The plain ViT trunk. The class token is there but not trained directly: use the patch tokens or their mean."""


class GTSABackbone(GTSAPreTrainedModel, ViTTrunkBackbone):
    """Feature maps of chosen layers, for UperNet, DPT, Mask2Former and others that take a `backbone_config`."""


class GTSAForImageClassification(GTSAPreTrainedModel, ViTTrunkForImageClassification):
    """Mean of the patch tokens, layer norm, linear classifier."""

    trunk_class = GTSAModel


class GTSAForSemanticSegmentation(GTSAPreTrainedModel, ViTTrunkForSemanticSegmentation):
    """A linear decoder on the patch tokens, resized bilinearly to the input, or UPerNet on four layers."""

    trunk_class = GTSAModel


class GTSAForDepthEstimation(GTSAPreTrainedModel, ViTTrunkForDepthEstimation):
    """DPT on four layers of the trunk, or a linear map of the patch tokens; metres of each pixel."""

    trunk_class = GTSAModel


class GTSAForObjectDetection(GTSAPreTrainedModel, ViTTrunkForObjectDetection):
    """torchvision's Faster R-CNN on a simple pyramid of the trunk's patch tokens."""

    trunk_class = GTSAModel
