"""LOCA models: trunk, backbone, classification, segmentation, depth and detection; heads of pretraining (arXiv 2212.02400)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_loca import LOCAConfig
from .modeling_vit import (
    GeometricViTPreTrainedModel,
    ViTAttentionBase,
    ViTEncoder,
    ViTMLP,
    init_extra_tokens,
    is_part_of,
)
from .modeling_vit_heads import (
    ViTTrunkBackbone,
    ViTTrunkForDepthEstimation,
    ViTTrunkForImageClassification,
    ViTTrunkForObjectDetection,
    ViTTrunkForSemanticSegmentation,
    ViTTrunkModel,
)
from .positions import ViTEmbeddings, ViTPatchEmbeddings

_TRUNCATION = 0.87962566103423978  # standard deviation of a unit normal cut off at 2


def can_check_values(values: torch.Tensor) -> bool:
    """Tells whether nothing waits for values: on a CPU, and not while they are traced. Folders of trunks lack geometry.py."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


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
        "AutoModelForDepthEstimation": "modeling_loca.LOCAForDepthEstimation",
        "AutoModelForObjectDetection": "modeling_loca.LOCAForObjectDetection",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """LeCun normal for patches and plain linear layers, Xavier uniform in attention (each of its square matrices) and MLPs."""
        if isinstance(module, ViTEmbeddings):
            init_extra_tokens(module)
            if module.cls_token is not None:
                init.zeros_(module.cls_token)
            if module.position_embeddings is None:
                return
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
    """A linear decoder on the patch tokens, resized bilinearly (Segmenter's, the authors' own), or UPerNet on four layers."""

    trunk_class = LOCAModel


class LOCAForDepthEstimation(LOCAPreTrainedModel, ViTTrunkForDepthEstimation):
    """DPT on four layers of the trunk, or a linear map of the patch tokens; metres of each pixel."""

    trunk_class = LOCAModel


class LOCAForObjectDetection(LOCAPreTrainedModel, ViTTrunkForObjectDetection):
    """torchvision's Faster R-CNN on a simple pyramid of the trunk's patch tokens."""

    trunk_class = LOCAModel


# ---- What pretraining has beside the trunk ----


class LOCAPrototypes(nn.Linear):
    """Cluster centres, one a row, used at unit length; stored as they are, so that gradients see their lengths."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps unit vectors `(..., bottleneck)` to cosines `(..., prototypes)`, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            weight = self.weight.float()
            return F.linear(features.float(), weight / (weight.norm(dim=1, keepdim=True) + 1e-10))


class LOCAClusterHead(nn.Module):
    """An MLP, and cosines of its output with the prototypes."""

    def __init__(self, config: LOCAConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.head_hidden_size)
        self.fc2 = nn.Linear(config.head_hidden_size, config.head_hidden_size)
        self.fc3 = nn.Linear(config.head_hidden_size, config.head_bottleneck_size)
        self.activation = ACT2FN[config.hidden_act]
        self.prototypes = LOCAPrototypes(config.head_bottleneck_size, config.num_prototypes, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(..., hidden_size)` to cosines `(..., prototypes)`, in float32."""
        hidden = self.activation(self.fc2(self.activation(self.fc1(tokens))))
        features = self.fc3(hidden).float()
        return self.prototypes(features / features.norm(dim=-1, keepdim=True))


class LOCACrossAttention(ViTAttentionBase):
    """Multi-head attention of query tokens to reference tokens; keys and values in one product."""

    def __init__(self, config: LOCAConfig) -> None:
        super().__init__(config)
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=config.qkv_bias)

    def forward(self, queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` and `(batch, visible, hidden_size)` to the shape of the first."""
        (query,) = self.split_heads(self.query(queries), 1)
        key, value = self.split_heads(self.key_value(references), 2)
        return self.attend(query, key, value)[0]


class LOCACrossLayer(nn.Module):
    """A transformer block of cross-attention: separate norms for queries and references, no stochastic depth."""

    def __init__(self, config: LOCAConfig) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm_key_value = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = LOCACrossAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` and `(batch, visible, hidden_size)` to the shape of the first."""
        queries = queries + self.attention(self.norm_query(queries), self.norm_key_value(references))
        return queries + self.mlp(self.norm2(queries))


def make_heads(config: LOCAConfig) -> dict[str, nn.Module]:
    """Makes what is trained beside the trunk, by the names that student and teacher have it under."""
    height, width = (side // config.patch_size for side in config.image_height_width)
    heads: dict[str, nn.Module] = {"cluster_head": LOCAClusterHead(config)} if config.has_cluster_head else {}
    heads["cross_attention"] = LOCACrossLayer(config)
    heads["final_norm"] = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    heads["position_predictor"] = nn.Linear(config.hidden_size, height * width)
    return heads


def check_views(
    config: LOCAConfig,
    reference: torch.Tensor,
    random_query: torch.Tensor | None,
    random_positions: torch.Tensor | None,
    focal_queries: torch.Tensor | None,
    focal_positions: torch.Tensor | None,
) -> None:
    """Raises a `ValueError` for arguments of `forward` that do not fit together; values are read on a CPU alone."""
    size, patch_size = config.image_height_width, config.patch_size
    num_references = size[0] * size[1] // patch_size**2
    if reference.ndim != 4 or tuple(reference.shape[-2:]) != size:
        raise ValueError(
            f"reference_pixel_values must have shape (batch, channels, {size[0]}, {size[1]}), the image_size of the "
            f"configuration, got {tuple(reference.shape)}"
        )
    if (focal_queries is None) != (focal_positions is None):
        raise ValueError("focal_query_pixel_values and focal_query_positions come together, or neither")
    for name, pixels, positions, dimensions in (
        ("random_query", random_query, random_positions, 4),
        ("focal_query", focal_queries, focal_positions, 5),
    ):
        if pixels is None or positions is None:
            continue
        if pixels.ndim != dimensions or len(pixels) != len(reference):
            axes = "batch, channels, height, width" if dimensions == 4 else "batch, queries, channels, side, side"
            raise ValueError(
                f"{name}_pixel_values must have shape ({axes}) with a batch of {len(reference)}, "
                f"got {tuple(pixels.shape)}"
            )
        rows, columns = (side // patch_size for side in pixels.shape[-2:])
        shape = (*pixels.shape[: dimensions - 3], rows * columns)
        if positions.shape != shape:
            raise ValueError(
                f"{name}_positions must have shape {shape}, one for every token before any is dropped, "
                f"got {tuple(positions.shape)}"
            )
        if can_check_values(positions) and positions.numel():
            low, high = int(positions.min()), int(positions.max())
            if low < -1 or high >= num_references:
                raise ValueError(
                    f"{name}_positions must be raster indices into the reference's "
                    f"{num_references} tokens or -1, got {low} to {high}"
                )


def check_token_indices(
    name: str, tokens: torch.Tensor | Sequence[int], num_tokens: int, device: torch.device
) -> torch.Tensor:
    """Moves raster indices `(tokens,)` to the device, as int64, checked where they are without waiting for it.

    Raises:
        ValueError: If they are no indices of `num_tokens` tokens; the message calls them by `name`.
    """
    tokens = torch.as_tensor(tokens)
    if tokens.ndim != 1 or not len(tokens) or tokens.dtype == torch.bool or tokens.is_floating_point():
        raise ValueError(
            f"{name} must be integers of shape (tokens,), at least one, the same for the whole batch, "
            f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    if can_check_values(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < num_tokens:
        raise ValueError(
            f"{name} must be raster indices from 0 to {num_tokens - 1}, got {int(tokens.min())} to {int(tokens.max())}"
        )
    return tokens.to(device, torch.long, non_blocking=True)
