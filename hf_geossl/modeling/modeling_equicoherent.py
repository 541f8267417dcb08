"""EquiCoherent models: trunk, backbone, classification, segmentation, depth and detection; heads of pretraining (arXiv 2503.18753)."""

import itertools
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_equicoherent import EquiCoherentConfig
from .modeling_vit import GeometricViTPreTrainedModel
from .modeling_vit_heads import (
    ViTTrunkBackbone,
    ViTTrunkForDepthEstimation,
    ViTTrunkForImageClassification,
    ViTTrunkForObjectDetection,
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
        "AutoModelForDepthEstimation": "modeling_equicoherent.EquiCoherentForDepthEstimation",
        "AutoModelForObjectDetection": "modeling_equicoherent.EquiCoherentForObjectDetection",
    }


class EquiCoherentModel(EquiCoherentPreTrainedModel, ViTTrunkModel):
    """The plain ViT trunk; its `pooler_output` is the class token."""


class EquiCoherentBackbone(EquiCoherentPreTrainedModel, ViTTrunkBackbone):
    """Feature maps of chosen layers, for UperNet, DPT, Mask2Former and others that take a `backbone_config`."""


class EquiCoherentForImageClassification(EquiCoherentPreTrainedModel, ViTTrunkForImageClassification):
    """Class token, layer norm, linear classifier."""

    trunk_class = EquiCoherentModel


class EquiCoherentForSemanticSegmentation(EquiCoherentPreTrainedModel, ViTTrunkForSemanticSegmentation):
    """A linear decoder on the patch tokens, resized bilinearly to the input, or UPerNet on four layers."""

    trunk_class = EquiCoherentModel


class EquiCoherentForDepthEstimation(EquiCoherentPreTrainedModel, ViTTrunkForDepthEstimation):
    """DPT on four layers of the trunk, or a linear map of the patch tokens; metres of each pixel."""

    trunk_class = EquiCoherentModel


class EquiCoherentForObjectDetection(EquiCoherentPreTrainedModel, ViTTrunkForObjectDetection):
    """torchvision's Faster R-CNN on a simple pyramid of the trunk's patch tokens."""

    trunk_class = EquiCoherentModel


class SplitHead(nn.Linear):
    """A linear layer whose last channels go to the decoders (z_equi), the others to the host's head (z_inv).

    Source: arXiv 2503.18753; the split before the host's head, the same for every host.
    """

    def __init__(self, in_features: int, patch_features: int, equivariant_features: int) -> None:
        super().__init__(in_features, patch_features)
        self.invariant_features = patch_features - equivariant_features

    def forward(self, tokens: torch.Tensor, equivariant: bool = False) -> torch.Tensor:
        """Maps `(..., in_features)` to z_inv `(..., d_patch - d_equi)`, or to z_equi `(..., d_equi)`."""
        split = self.invariant_features
        rows = slice(split, None) if equivariant else slice(0, split)
        return F.linear(tokens, self.weight[rows], self.bias[rows])


class PrototypeLinear(nn.Linear):
    """Cosines with prototypes, each times its own learned scale, or plain where the last layer is normalised."""

    def __init__(self, in_features: int, out_features: int, normalized: bool) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = None if normalized else nn.Parameter(torch.ones(out_features, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `(..., in_features)` to `(..., out_features)`, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            weight = F.normalize(self.weight.float(), dim=1)
            return F.linear(features.float(), weight if self.scale is None else weight * self.scale.float())


class PrototypeHead(nn.Module):
    """The head of DINO, iBOT and DINOv2: an MLP, unit length, prototypes.

    Source: arXiv 2104.14294, as iBOT's and DINOv2's code has it for ViTs (no batch norm).
    """

    def __init__(self, in_features: int, num_outputs: int, config: EquiCoherentConfig) -> None:
        super().__init__()
        widths = [in_features, config.head_hidden_size, config.head_hidden_size, config.head_bottleneck_size]
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))
        self.prototypes = PrototypeLinear(widths[-1], num_outputs, bool(config.norm_last_layer))

    def bottleneck(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(..., in_features)` to unit vectors `(..., head_bottleneck_size)`, in float32."""
        first, second, third = self.linears
        return F.normalize(third(F.gelu(second(F.gelu(first(tokens))))).float(), dim=-1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(..., in_features)` to `(..., num_outputs)`, in float32."""
        return self.prototypes(self.bottleneck(tokens))


def indices_of(mask: torch.Tensor) -> torch.Tensor:
    """Finds where a mask is True, as raster indices of all its places, int64; the host waits for a device to count them."""
    return mask.flatten().nonzero().flatten()


def check_views(
    config: EquiCoherentConfig,
    global_pixel_values: torch.Tensor,
    local_pixel_values: torch.Tensor | None,
    bool_masked_pos: torch.Tensor | None,
) -> None:
    """Raises a `ValueError` for arguments of `forward` that do not fit together or are too few images for the host."""
    if global_pixel_values.ndim != 5 or global_pixel_values.shape[1] != 2:
        raise ValueError(
            "global_pixel_values must have shape (batch, 2, channels, height, width), the second view transformed, "
            f"got {tuple(global_pixel_values.shape)}; make two global views an image and stack them"
        )
    if (host := config.host) in ("dinov2", "vicreg") or (host == "simclr" and not config.num_decoders):
        of_all = host != "dinov2" and torch.distributed.is_available() and torch.distributed.is_initialized()
        images = len(global_pixel_values) * (torch.distributed.get_world_size() if of_all else 1)
        if images < 2:
            raise ValueError(
                f"global_pixel_values must hold at least 2 images for the host {host!r}, which compares the images of "
                f"a batch{' on each process' if host == 'dinov2' else ''}, got {images}; give larger batches"
            )
    if local_pixel_values is not None:
        if not config.has_teacher:
            raise ValueError(
                f"host {config.host!r} compares two global views and takes no local ones; got "
                f"local_pixel_values of shape {tuple(local_pixel_values.shape)}, make them with num_local=0"
            )
        if local_pixel_values.ndim != 5 or len(local_pixel_values) != len(global_pixel_values):
            raise ValueError(
                f"local_pixel_values must have shape ({len(global_pixel_values)}, views, channels, height, width), "
                f"got {tuple(local_pixel_values.shape)}; stack the local views of each image"
            )
    if bool_masked_pos is not None:
        patches = global_pixel_values[0, 0, 0].numel() // config.patch_size**2
        if bool_masked_pos.shape != (len(global_pixel_values), 2, patches):
            raise ValueError(
                f"bool_masked_pos must have shape {(len(global_pixel_values), 2, patches)}, "
                f"got {tuple(bool_masked_pos.shape)}; mask the patches of both global views at their size"
            )
