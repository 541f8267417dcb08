"""
GTSA models: trunk, backbone, image classification and semantic segmentation (arXiv 2304.08014).

The pretraining class lives in a file of its own. transformers lets a file travel with remote code when a line of the
following form names it, wherever the line stands; so every folder saved from any class here opens with every Auto class:

    from .pretraining_gtsa import GTSAForPreTraining
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.utils.generic import can_return_tuple

from .configuration_gtsa import GTSAConfig
from .modeling_vit import GeometricViTPreTrainedModel, ViTEmbeddings, ViTEncoder


class GTSAPreTrainedModel(GeometricViTPreTrainedModel):
    """Base of all GTSA classes."""

    config: GTSAConfig
    base_model_prefix = "gtsa"
    _auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_gtsa.GTSAConfig",
        "AutoModel": "modeling_gtsa.GTSAModel",
        "AutoBackbone": "modeling_gtsa.GTSABackbone",
        "AutoModelForImageClassification": "modeling_gtsa.GTSAForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_gtsa.GTSAForSemanticSegmentation",
        "AutoModelForPreTraining": "pretraining_gtsa.GTSAForPreTraining",
    }


class GTSAModel(GTSAPreTrainedModel):
    """The plain ViT trunk. The class token is there but not trained directly: use the patch tokens or their mean."""

    def __init__(self, config: GTSAConfig) -> None:
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config)
        self.encoder = ViTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images of any height
                and width divisible by the patch size.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state (batch, 1 + patches, hidden_size)`, class token first,
            after the final norm; `pooler_output (batch, hidden_size)`, the mean of the patch tokens.

        Raises:
            ValueError: If the image has another number of channels or a size that the patch does not divide.
        """
        encoded = self.encoder(self.embeddings(pixel_values), **kwargs)
        tokens = self.layernorm(encoded.last_hidden_state)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=tokens[:, 1:].mean(dim=1),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class GTSABackbone(BackboneMixin, GTSAPreTrainedModel):
    """Feature maps of chosen layers, for UperNet, DPT, Mask2Former and others that take a `backbone_config`."""

    def __init__(self, config: GTSAConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.embeddings = ViTEmbeddings(config)
        self.encoder = ViTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images of any height
                and width divisible by the patch size.

        Returns:
            `BackboneOutput`: `feature_maps`, one a stage in `out_features`: `(batch, hidden_size, rows, columns)`, or
            tokens `(batch, 1 + patches, hidden_size)` where `config.reshape_hidden_states` is off.
        """
        encoded = self.encoder(self.embeddings(pixel_values), **kwargs)
        rows, columns = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        feature_maps = []
        for stage, tokens in zip(self.stage_names, encoded.hidden_states, strict=True):
            if stage not in self.out_features:
                continue
            if self.config.apply_layernorm:
                tokens = self.layernorm(tokens)
            if self.config.reshape_hidden_states:
                tokens = tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)).contiguous()
            feature_maps.append(tokens)
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class GTSAForImageClassification(GTSAPreTrainedModel):
    """Mean of the patch tokens, layer norm, linear classifier."""

    accepts_loss_kwargs = False  # the loss is a mean, so a Trainer must average accumulated batches itself

    def __init__(self, config: GTSAConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.gtsa = GTSAModel(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            labels (`torch.Tensor` of shape `(batch,)`, *optional*): Class indices (or targets, as
                `config.problem_type` says) to compute the loss with.

        Returns:
            `ImageClassifierOutput`: `loss` where labels are given, `logits (batch, num_labels)`.
        """
        outputs = self.gtsa(pixel_values, **kwargs)
        logits = self.classifier(self.norm(outputs.pooler_output))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class GTSAForSemanticSegmentation(GTSAPreTrainedModel):
    """A linear decoder on the patch tokens, resized bilinearly to the input."""

    accepts_loss_kwargs = False  # the loss is a mean, so a Trainer must average accumulated batches itself

    def __init__(self, config: GTSAConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.gtsa = GTSAModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*): Class index of each pixel;
                `config.semantic_loss_ignore_index` marks pixels to leave out.

        Returns:
            `SemanticSegmenterOutput`: `loss` where labels are given, `logits (batch, num_labels, height, width)`.

        Raises:
            ValueError: If the labels have another size than the images.
        """
        size = pixel_values.shape[-2:]
        if labels is not None and labels.shape != (len(pixel_values), *size):
            raise ValueError(
                f"labels must have shape {(len(pixel_values), *size)}, the size of the images, got {tuple(labels.shape)}"
            )
        outputs = self.gtsa(pixel_values, **kwargs)
        logits = self.classifier(outputs.last_hidden_state[:, 1:])  # (B, N, num_labels)
        rows, columns = (side // self.config.patch_size for side in size)
        logits = logits.transpose(1, 2).unflatten(2, (rows, columns))
        logits = nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(
                logits.float(), labels.long(), ignore_index=self.config.semantic_loss_ignore_index
            )
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "GTSABackbone",
    "GTSAForImageClassification",
    "GTSAForSemanticSegmentation",
    "GTSAModel",
    "GTSAPreTrainedModel",
]
