"""EquiCoherent models: trunk, backbone, image classification and semantic segmentation (arXiv 2503.18753)."""

from typing import ClassVar

from .configuration_equicoherent import EquiCoherentConfig
from .modeling_vit import GeometricViTPreTrainedModel
from .modeling_vit_heads import (
    ViTTrunkBackbone,
    ViTTrunkForImageClassification,
    ViTTrunkForSemanticSegmentation,
    ViTTrunkModel,
)


class EquiCoherentPreTrainedModel(GeometricViTPreTrainedModel):
    """Base of all EquiCoherent classes."""

    config: EquiCoherentConfig
    base_model_prefix = "equicoherent"
    pools_class_token = True
    auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_equicoherent.EquiCoherentConfig",
        "AutoModel": "modeling_equicoherent.EquiCoherentModel",
        "AutoBackbone": "modeling_equicoherent.EquiCoherentBackbone",
        "AutoModelForImageClassification": "modeling_equicoherent.EquiCoherentForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_equicoherent.EquiCoherentForSemanticSegmentation",
    }


class EquiCoherentModel(EquiCoherentPreTrainedModel, ViTTrunkModel):
    """The plain ViT trunk; its `pooler_output` is the class token."""


class EquiCoherentBackbone(EquiCoherentPreTrainedModel, ViTTrunkBackbone):
    """Feature maps of chosen layers, for UperNet, DPT, Mask2Former and others that take a `backbone_config`."""


class EquiCoherentForImageClassification(EquiCoherentPreTrainedModel, ViTTrunkForImageClassification):
    """Class token, layer norm, linear classifier."""

    trunk_class = EquiCoherentModel


class EquiCoherentForSemanticSegmentation(EquiCoherentPreTrainedModel, ViTTrunkForSemanticSegmentation):
    """A linear decoder on the patch tokens, resized bilinearly to the input."""

    trunk_class = EquiCoherentModel
