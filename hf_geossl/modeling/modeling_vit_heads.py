"""The models around the trunk, for every method.

A method's classes inherit from these and from its own base, which gives configuration, prefix and initialisation.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    BaseModelOutputWithPooling,
    DepthEstimatorOutput,
    ImageClassifierOutput,
    ModelOutput,
    SemanticSegmenterOutput,
)
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_vit import GeometricViTConfig, ViTHeadConfig
from .dense_heads import (
    BoxDetector,
    DPTDecoder,
    UPerNetDecoder,
    log_metres,
    pixel_cross_entropy,
    silog_loss,
    upsample,
)
from .modeling_vit import GeometricViTPreTrainedModel, PatchTokens, ViTDropPath, ViTEncoder
from .positions import ViTEmbeddings

logger = logging.getLogger(__name__)


class ViTTrunk(GeometricViTPreTrainedModel):
    """Embeddings, layers and final norm."""

    layers_name: ClassVar[str] = "encoder.layer"  # the list of its layers
    embedding_names: ClassVar[tuple[str, ...]] = ("embeddings.",)  # how names of parameters before them begin
    encoder_class: ClassVar[type[ViTEncoder]] = ViTEncoder  # a method with an initialisation of its own has another

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config)
        self.encoder = self.encoder_class(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def encode(
        self,
        pixel_values: torch.Tensor,
        kept_tokens: torch.Tensor | None = None,
        use_positions: bool = True,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Runs embeddings and layers, without the final norm; arguments as those of `ViTTrunkModel.forward`."""
        embedded = self.embeddings(pixel_values, kept_tokens, use_positions, bool_masked_pos)
        rotation = self.embeddings.rotation(pixel_values, kept_tokens) if use_positions else None
        return self.encoder(embedded, rotation=rotation, **kwargs)


class ViTTrunkModel(PatchTokens, ViTTrunk):
    """The trunk with its final norm."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        kept_tokens: torch.Tensor | None = None,
        use_positions: bool = True,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encodes images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images of any height
                and width divisible by the patch size.
            kept_tokens (`torch.Tensor` of shape `(kept,)`, *optional*): Raster indices of the patches that enter the
                encoder, in this order; all by default.
            use_positions (`bool`, defaults to `True`): Whether position embeddings are added.
            bool_masked_pos (`torch.Tensor` of shape `(batch, patches)`, bool, *optional*): Patches whose embeddings the
                mask token replaces; needs `config.use_mask_token`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state (batch, tokens, hidden_size)` after the final norm: patch
            tokens in raster order, after the class token where `config.use_class_token` and the registers;
            `pooler_output (batch, hidden_size)`, what `pool` makes of them.

        Raises:
            ValueError: If the image has another number of channels or a size that the patch does not divide.
        """
        encoded = self.encode(pixel_values, kept_tokens, use_positions, bool_masked_pos, **kwargs)
        tokens = self.layernorm(encoded.last_hidden_state)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=self.pool(tokens),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the patches: class token and registers."""
        return self.embeddings.num_prefix_tokens

    def disable_drop_path(self) -> None:
        """Turns stochastic depth off for good, as teachers have none."""
        for module in self.modules():
            if isinstance(module, ViTDropPath):
                module.disable()

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Gives the feature `(batch, hidden_size)` of an image: the class token, or the mean of the patch tokens."""
        return tokens[:, 0] if self.pools_class_token else tokens[:, self.num_prefix_tokens :].mean(dim=1)


class ViTTrunkBackbone(BackboneMixin, ViTTrunk):
    """Feature maps of chosen layers, for UperNet, DPT, Mask2Former and others that take a `backbone_config`."""

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

    @classmethod
    def _from_config(cls, config: GeometricViTConfig, **kwargs: Any) -> "ViTTrunkBackbone":
        """As transformers', which makes a model's `backbone_config` into its backbone here; says that weights are random."""
        config.update({"auto_map": dict(cls.auto_map)})  # for folders that carry the code, see `hub/composition.py`
        backbone: ViTTrunkBackbone = super()._from_config(config, **kwargs)
        if not backbone.layernorm.weight.is_meta:  # otherwise the weights are about to be loaded
            folder = config.name_or_path or "FOLDER"
            logger.warning(
                f"{cls.__name__} has random weights: a backbone_config holds none. hf_geossl.compose_model(MODEL_CLASS, "
                f"{folder!r}) makes the whole model over trained ones, and sets reshape_hidden_states=False where it must be "
                f"off (DPT); this backbone alone takes them by load_state_dict(AutoModel.from_pretrained({folder!r}, "
                "trust_remote_code=True).state_dict())"
            )
        return backbone

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Makes feature maps of images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images of any height
                and width divisible by the patch size.

        Returns:
            `BackboneOutput`: `feature_maps`, one a stage in `out_features`: `(batch, hidden_size, rows, columns)`, or
            tokens `(batch, 1 + patches, hidden_size)` where `config.reshape_hidden_states` is off (first the class
            token, or the mean of the patch tokens in a trunk without one).
        """
        encoded: Any = self.encode(pixel_values, **kwargs)
        rows, columns = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        prefix = self.embeddings.num_prefix_tokens
        feature_maps = []
        for stage, tokens in zip(self.stage_names, encoded.hidden_states, strict=True):
            if stage not in self.out_features:
                continue
            if self.config.apply_layernorm:
                tokens = self.layernorm(tokens)
            if self.config.reshape_hidden_states:
                tokens = tokens[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns)).contiguous()
            else:
                patches = tokens[:, prefix:]
                first = tokens[:, :1] if self.config.use_class_token else patches.mean(dim=1, keepdim=True)
                tokens = torch.cat([first, patches], dim=1)
            feature_maps.append(tokens)
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class ViTTrunkForLabels(GeometricViTPreTrainedModel):
    """Base of the models that have a head on the trunk."""

    accepts_loss_kwargs = False  # the loss is a mean, so a Trainer must average accumulated batches itself
    trunk_class: type[PreTrainedModel]

    def __init__(self, config: ViTHeadConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        setattr(self, self.base_model_prefix, self.trunk_class(config))


class ViTTrunkForImageClassification(ViTTrunkForLabels):
    """The trunk's `pooler_output`, layer norm, linear classifier."""

    def __init__(self, config: ViTHeadConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        """Classifies normalised images `(batch, channels, height, width)`.

        Args:
            pixel_values (`torch.Tensor`): The images.
            labels (`torch.Tensor` of shape `(batch,)`, *optional*): Class indices (or targets, as
                `config.problem_type` says) to compute the loss with.

        Returns:
            `ImageClassifierOutput`: `loss` where labels are given, `logits (batch, num_labels)`.
        """
        outputs = self.base_model(pixel_values, **kwargs)
        logits = self.classifier(self.norm(outputs.pooler_output))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ViTTrunkForSemanticSegmentation(ViTTrunkForLabels):
    """A linear decoder on the patch tokens, or UPerNet on four layers where `config.decoder_type` says so."""

    auxiliary_weight: ClassVar[float] = 0.4  # of the cross-entropy of UPerNet's auxiliary head

    def __init__(self, config: ViTHeadConfig) -> None:
        super().__init__(config)
        if config.decoder_for(type(self).__name__, "linear", "upernet") == "upernet":
            width, channels = config.hidden_size, config.decoder_channels or 64
            self.decoder = UPerNetDecoder(width, self.num_labels, channels, (1, 2, 3, 6), channels)
        else:
            self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> SemanticSegmenterOutput:
        """Classifies pixels.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*): Class index of each pixel;
                `config.semantic_loss_ignore_index` marks pixels to leave out.

        Returns:
            `SemanticSegmenterOutput`: `loss` where labels are given, `logits (batch, num_labels, height, width)`, which
            were resized bilinearly to the input.

        Raises:
            ValueError: If the labels have another size than the images.
        """
        check_map(labels, pixel_values)
        trunk: Any = self.base_model
        if self.config.decoder_type == "upernet":
            outputs, maps = trunk.layer_maps(pixel_values, **kwargs)
            coarse, auxiliary = self.decoder(maps)
        else:
            outputs = trunk(pixel_values, **kwargs)
            coarse, auxiliary = trunk.to_maps(self.classifier(trunk.patch_tokens(outputs)), pixel_values), None
        logits = upsample(coarse, pixel_values.shape[-2:]).to(coarse.dtype)
        loss, ignored = None, self.config.semantic_loss_ignore_index
        if labels is not None:
            loss = pixel_cross_entropy(logits, labels, ignored)
            if auxiliary is not None:
                loss = loss + self.auxiliary_weight * pixel_cross_entropy(auxiliary, labels, ignored)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ViTTrunkForDepthEstimation(ViTTrunkForLabels):
    """DPT on four layers, or a linear map of the patch tokens where `config.decoder_type` says so; metres of each pixel."""

    def __init__(self, config: ViTHeadConfig) -> None:
        super().__init__(config)
        if config.decoder_for(type(self).__name__, "dpt", "linear") == "linear":
            self.regressor = nn.Linear(config.hidden_size, 1)
        else:
            channels = config.decoder_channels or 32
            sizes = [3 * channels * scale // 4 for scale in (1, 2, 4, 8)]
            self.decoder = DPTDecoder(config.hidden_size, sizes, channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> DepthEstimatorOutput:
        """Estimates depths.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*): Metres, 0 where unknown; depths from
                `config.max_depth` on do not count.

        Returns:
            `DepthEstimatorOutput`: `loss`, the scale-invariant logarithmic error, where labels are given;
            `predicted_depth (batch, height, width)`, metres below `config.max_depth`.

        Raises:
            ValueError: If the labels have another size than the images.
        """
        check_map(labels, pixel_values)
        trunk: Any = self.base_model
        size = pixel_values.shape[-2:]
        if self.config.decoder_type == "linear":
            outputs = trunk(pixel_values, **kwargs)
            numbers = upsample(trunk.to_maps(self.regressor(trunk.patch_tokens(outputs)), pixel_values), size)[:, 0]
        else:
            outputs, maps = trunk.layer_maps(pixel_values, **kwargs)
            numbers = self.decoder(maps, size)
        logs = log_metres(numbers, self.config.max_depth)
        loss = None if labels is None else silog_loss(logs, labels.float(), self.config.max_depth)
        return DepthEstimatorOutput(
            loss=loss, predicted_depth=logs.exp(), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@dataclass
class ViTTrunkObjectDetectionOutput(ModelOutput):
    """What `BoxDetector` finds, as transformers' YOLOS has it: `post_process_object_detection` of its processor reads it."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ViTTrunkForObjectDetection(ViTTrunkForLabels):
    """torchvision's Faster R-CNN on a simple pyramid of the last layer's patch tokens."""

    def __init__(self, config: ViTHeadConfig) -> None:
        super().__init__(config)
        config.decoder_for(type(self).__name__, "rcnn")
        channels = config.decoder_channels or 64
        self.decoder = BoxDetector(config.hidden_size, config.patch_size, self.num_labels, channels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As everywhere, but region proposals as torchvision's: first boxes are small moves of their anchors."""
        if isinstance(module, nn.Conv2d) and any(part is module for part in self.decoder.rpn.modules()):
            init.normal_(module.weight, std=0.01)
            init.zeros_(cast(torch.Tensor, module.bias))
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: Sequence[Mapping[str, torch.Tensor]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ViTTrunkObjectDetectionOutput:
        """Finds objects in normalised images `(batch, channels, height, width)`; labels and results as of `BoxDetector`.

        Traced, it serves one image of the example's size.

        Raises:
            ValueError: Where it is exported by torch.export, or traced with several images.
        """
        if torch.compiler.is_exporting() or (torch.jit.is_tracing() and pixel_values.shape[0] != 1):
            raise ValueError(
                f"{type(self).__name__} is traced, also to ONNX (dynamo=False), with one image alone, and torch.export cannot "
                "take it: torchvision's detector takes the images of a batch one by one and asks how many boxes there are; "
                "give an example of batch 1, or export the trunk, model.base_model"
            )
        if torch.jit.is_tracing():  # anchors are those of this size: another is to fail, not to be answered
            pixel_values = pixel_values.expand([int(side) for side in pixel_values.shape])
        trunk: Any = self.base_model
        outputs = trunk(pixel_values, **kwargs)
        last = trunk.to_maps(trunk.patch_tokens(outputs), pixel_values)
        loss, logits, boxes = self.decoder(last, pixel_values, labels)
        return ViTTrunkObjectDetectionOutput(loss, logits, boxes, outputs.hidden_states, outputs.attentions)


def check_map(labels: torch.Tensor | None, pixel_values: torch.Tensor) -> None:
    """Raises a `ValueError` for maps of labels of another size than their images."""
    expected = (pixel_values.shape[0], *pixel_values.shape[-2:])  # the number that `len` gives is fixed in an export
    if labels is not None and labels.shape != expected:
        raise ValueError(f"labels must have shape {expected}, the size of the images, got {tuple(labels.shape)}")
