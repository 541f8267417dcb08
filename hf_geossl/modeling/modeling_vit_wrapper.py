"""Heads over vision transformers of transformers and timm that no trunk of this library stands for, such as BEiT and CaiT."""

import inspect
from dataclasses import replace
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_vit import ViTWrapperConfig
from .dense_heads import layers_of_maps
from .modeling_vit import GeometricViTPreTrainedModel, PatchTokens
from .modeling_vit_heads import (
    ViTTrunkForDepthEstimation,
    ViTTrunkForImageClassification,
    ViTTrunkForObjectDetection,
    ViTTrunkForSemanticSegmentation,
)


class ViTWrapperPreTrainedModel(GeometricViTPreTrainedModel):
    """Base of all models over a trunk of another library."""

    config: ViTWrapperConfig
    base_model_prefix = "vit_wrapper"
    _no_split_modules = []  # beside the trunk's
    auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_vit.ViTWrapperConfig",
        "AutoModel": "modeling_vit_wrapper.ViTWrapperModel",
        "AutoModelForImageClassification": "modeling_vit_wrapper.ViTWrapperForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_vit_wrapper.ViTWrapperForSemanticSegmentation",
        "AutoModelForDepthEstimation": "modeling_vit_wrapper.ViTWrapperForDepthEstimation",
        "AutoModelForObjectDetection": "modeling_vit_wrapper.ViTWrapperForObjectDetection",
    }

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """As transformers', or timm's own of a model of timm."""
        trunk: Any = self.base_model.trunk
        if self.config.is_of_timm:
            trunk.timm_model.set_grad_checkpointing(enable)
        else:
            super()._set_gradient_checkpointing(enable, *args, **kwargs)


class ViTWrapperModel(PatchTokens, ViTWrapperPreTrainedModel):
    """A vision transformer of transformers or timm with the outputs of this library's trunks.

    Attributes:
        trunk (`PreTrainedModel`): The model, `TimmWrapperModel` over one of timm.
        layers_name (`str`): Name of the list of its layers.
        embedding_names (`tuple[str, ...]`): Names of the parameters before them.

    Raises:
        ValueError: If the configuration has no trunk, or one of another number of layers.
    """

    def __init__(self, config: ViTWrapperConfig) -> None:
        super().__init__(config)
        described = config.trunk_config or {}
        if "model_type" not in described:
            raise ValueError(f"trunk_config must be a trunk's configuration with its model_type, got {described}")
        self.trunk = AutoModel.from_config(AutoConfig.for_model(**described))
        self.layers_name = "trunk.timm_model.blocks" if config.is_of_timm else self._find_layers()
        names = [name for name, _ in self.named_parameters()]
        first = next(place for place, name in enumerate(names) if name.startswith(f"{self.layers_name}."))
        self.embedding_names = tuple(names[:first])
        self.num_prefix_tokens = config.num_prefix_tokens
        resamples = "interpolate_pos_encoding" in inspect.signature(self.trunk.forward).parameters
        self.given = {"interpolate_pos_encoding": True} if resamples else {}
        self.post_init()

    def train(self, mode: bool = True) -> "ViTWrapperModel":
        """Parts that are frozen whole stay in eval mode: their batch statistics do not move, and nothing of them is dropped."""
        super().train(mode)
        for part in self.trunk.modules():
            own = list(part.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                part.eval()
        return self

    def _find_layers(self) -> str:
        depth = self.config.num_hidden_layers
        lists = (name for name, part in self.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
        name = next(lists, None)
        if name is None:
            raise ValueError(f"num_hidden_layers must be that of {type(self.trunk).__name__}, got {depth}")
        return name

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithPooling:
        """Encodes normalised images `(batch, channels, height, width)`, of the sizes that the trunk takes.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state (batch, tokens, hidden_size)`: `num_prefix_tokens`, then the
            patches in raster order; `pooler_output (batch, hidden_size)`: what timm's classifiers would get, of others
            the class token, or the mean of the patch tokens.
        """
        outputs = self.trunk(pixel_values, **self.given, **kwargs)
        tokens, pooled = outputs.last_hidden_state, outputs.pooler_output
        if not self.config.is_of_timm:
            patches = tokens[:, self.num_prefix_tokens :]
            pooled = tokens[:, 0] if self.config.use_class_token else patches.mean(dim=1)
        elif isinstance(norm := getattr(self.trunk.timm_model, "fc_norm", None), nn.Module):
            tokens = norm(tokens)  # of models that average tokens the norm comes after the average
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=pooled,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def layer_maps(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Any, list[torch.Tensor]]:
        """See `PatchTokens`; the hidden states of a model of timm are maps, and of no more layers than these."""
        if not self.config.is_of_timm:
            return super().layer_maps(pixel_values, **kwargs)
        layers = layers_of_maps(self.config.num_hidden_layers)
        asked, kwargs["output_hidden_states"] = kwargs.get("output_hidden_states"), cast(Any, sorted(set(layers)))
        outputs = self(pixel_values, **kwargs)
        maps = dict(zip(sorted(set(layers)), outputs.hidden_states, strict=True))
        return replace(outputs, hidden_states=outputs.hidden_states if asked else None), [maps[n] for n in layers]


class ViTWrapperForImageClassification(ViTWrapperPreTrainedModel, ViTTrunkForImageClassification):
    """The trunk's `pooler_output`, layer norm, linear classifier."""

    trunk_class = ViTWrapperModel


class ViTWrapperForSemanticSegmentation(ViTWrapperPreTrainedModel, ViTTrunkForSemanticSegmentation):
    """A linear decoder on the patch tokens, resized bilinearly to the input, or UPerNet on four layers."""

    trunk_class = ViTWrapperModel


class ViTWrapperForDepthEstimation(ViTWrapperPreTrainedModel, ViTTrunkForDepthEstimation):
    """DPT on four layers of the trunk, or a linear map of the patch tokens; metres of each pixel."""

    trunk_class = ViTWrapperModel


class ViTWrapperForObjectDetection(ViTWrapperPreTrainedModel, ViTTrunkForObjectDetection):
    """torchvision's Faster R-CNN on a simple pyramid of the trunk's patch tokens."""

    trunk_class = ViTWrapperModel
