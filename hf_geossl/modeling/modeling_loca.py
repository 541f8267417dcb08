"""LOCA models: trunk, backbone, image classification and semantic segmentation (arXiv 2212.02400)."""

from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init

from .configuration_loca import LOCAConfig
from .modeling_vit import (
    GeometricViTPreTrainedModel,
    ViTAttentionBase,
    ViTEmbeddings,
    ViTEncoder,
    ViTMLP,
    ViTPatchEmbeddings,
    init_extra_tokens,
    is_part_of,
)
from .modeling_vit_heads import (
    ViTTrunkBackbone,
    ViTTrunkForImageClassification,
    ViTTrunkForSemanticSegmentation,
    ViTTrunkModel,
)

_TRUNCATION = 0.87962566103423978  # standard deviation of a unit normal cut off at 2


def init_lecun_normal(weight: torch.Tensor) -> None:
    """Normal of standard deviation `1 / sqrt(inputs)` after being cut off at 2 sigma (`jax.nn.initializers.lecun_normal`)."""
    std = weight[0].numel() ** -0.5 / _TRUNCATION
    init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class LOCAPreTrainedModel(GeometricViTPreTrainedModel):
    """Base of all LOCA classes: their initialisation is that of the authors' Flax modules."""

    config: LOCAConfig
    base_model_prefix = "loca"
    auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_loca.LOCAConfig",
        "AutoModel": "modeling_loca.LOCAModel",
        "AutoBackbone": "modeling_loca.LOCABackbone",
        "AutoModelForImageClassification": "modeling_loca.LOCAForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_loca.LOCAForSemanticSegmentation",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """LeCun normal for patches and plain linear layers, Xavier uniform in attention (each of its square matrices) and MLPs."""
        if isinstance(module, ViTEmbeddings):
            init_extra_tokens(module)
            if module.cls_token is not None:
                init.zeros_(module.cls_token)
            if self.config.location_target == "self":  # no token gets its position, which it has to predict
                init.zeros_(module.position_embeddings)
            else:
                init.normal_(module.position_embeddings, std=self.config.hidden_size**-0.5)
        elif isinstance(module, (ViTPatchEmbeddings, nn.Linear)):
            fan_out, fan_in = module.weight.shape[:2]
            in_attention, in_mlp = is_part_of(self, module, ViTAttentionBase), is_part_of(self, module, ViTMLP)
            if in_attention:
                fan_out = fan_in
            if in_attention or in_mlp:
                bound = (6 / (fan_in + fan_out)) ** 0.5
                init.uniform_(module.weight, -bound, bound)
            else:
                init_lecun_normal(module.weight)
            if in_mlp and module.bias is not None:
                init.normal_(module.bias, std=1e-6)
            elif module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class LOCAEncoder(LOCAPreTrainedModel, ViTEncoder):
    """The stack of layers; transformers initialises an inner model by that model's own rules, so they must be LOCA's."""


class LOCAModel(LOCAPreTrainedModel, ViTTrunkModel):
    """The plain ViT trunk, without a class token."""

    encoder_class = LOCAEncoder


class LOCABackbone(LOCAPreTrainedModel, ViTTrunkBackbone):
    """Feature maps of chosen layers, for UperNet, DPT, Mask2Former and others that take a `backbone_config`."""

    encoder_class = LOCAEncoder


class LOCAForImageClassification(LOCAPreTrainedModel, ViTTrunkForImageClassification):
    """Mean of the patch tokens, layer norm, linear classifier."""

    trunk_class = LOCAModel


class LOCAForSemanticSegmentation(LOCAPreTrainedModel, ViTTrunkForSemanticSegmentation):
    """A linear decoder on the patch tokens, resized bilinearly to the input: Segmenter's, which the authors evaluate with."""

    trunk_class = LOCAModel
