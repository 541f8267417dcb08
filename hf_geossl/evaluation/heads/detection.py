"""torchvision's Mask R-CNN on a simple feature pyramid over any trunk."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.heads.operations import count_operations
from hf_geossl.modeling.dense_heads import (
    ANCHOR_RATIOS,
    ANCHOR_SIDES,
    BOX_SIDE,
    PatchAnchors,
    PatchPool,
    SimplePyramid,
    box_heads,
    region_detector,
)

MASK_SIDE = 14  # positions along an axis that regions are pooled to, to be segmented


class EncoderPyramid(nn.Module):
    """An encoder's last patch tokens as a pyramid of maps: a backbone for torchvision's detectors.

    Only the trunk, which is in training mode if it is to be trained, computes in mixed precision.
    """

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        self.trunk = encoder.module
        self.pyramid = SimplePyramid(encoder.width, channels)
        self.out_channels = channels
        self._tokens, self._device = encoder.tokens, encoder.device

    def forward(self, pixel_values: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Normalised images `(batch, 3, height, width)` -> the levels of `SimplePyramid`."""
        with mixed_precision(self._device):
            patches = self._tokens(pixel_values).patches
        return self.pyramid(patches.float().permute(0, 3, 1, 2))


def build_detector(
    encoder: Encoder,
    size: int,
    num_categories: int,
    *,
    masks: bool,
    channels: int,
    head_width: int,
    regions: int,
    proposals: int,
) -> GeneralizedRCNN:
    """Mask R-CNN (Faster R-CNN without masks) over a trunk, which becomes a part of it.

    Args:
        size (`int`): Side of the images in pixels, a multiple of the patch size.
        num_categories (`int`): How many there are; they are labelled from 1.
        masks, channels, head_width, regions, proposals: See `DetectionSettings`.

    Returns:
        A detector of torchvision, which takes images in [0, 1] and normalises them as the encoder needs them.

    Raises:
        ValueError: If the image size is no multiple of the patch size.
    """
    if size % encoder.patch_size:
        raise ValueError(f"images must be multiples of {encoder.name}'s patch size {encoder.patch_size}, got {size}")
    backbone = EncoderPyramid(encoder, channels)
    heads = box_heads(channels, head_width, num_categories)
    if masks:
        heads |= {"mask_roi_pool": PatchPool(MASK_SIDE, encoder.patch_size), **mask_heads(channels, num_categories)}
    anchors, pool = PatchAnchors(encoder.patch_size), PatchPool(BOX_SIDE, encoder.patch_size)
    rpn, roi_heads = region_detector(channels, anchors, pool, heads, regions, proposals)
    # images keep their size
    transform = GeneralizedRCNNTransform(
        size, size, list(encoder.mean), list(encoder.std), size_divisible=encoder.patch_size
    )
    return GeneralizedRCNN(backbone, rpn, roi_heads, transform)


def mask_heads(channels: int, num_categories: int) -> dict[str, nn.Module]:
    """What segments regions `(regions, channels, 14, 14)`, by the names of torchvision's detectors."""
    return {
        "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(channels, channels, num_categories + 1),
    }


def detector_operations(
    width: int, side: int, num_categories: int, *, channels: int, head_width: int, regions: int, masks: int
) -> float:
    """Multiplications and additions of `build_detector` without its trunk, forward, for one image.

    Args:
        width (`int`): Of a token.
        side (`int`): Rows and columns of patches.
        channels, head_width: See `DetectionSettings`.
        regions, masks (`int`): How many regions are classified, and how many are segmented.
    """

    def run() -> None:
        levels = SimplePyramid(width, channels)(torch.empty(1, width, side, side))
        RPNHead(channels, len(ANCHOR_SIDES) * len(ANCHOR_RATIOS))(list(levels.values()))
        for heads, count, pooled in (
            (box_heads(channels, head_width, num_categories), regions, BOX_SIDE),
            (mask_heads(channels, num_categories), masks, MASK_SIDE),
        ):
            nn.Sequential(*heads.values())(torch.empty(count, channels, pooled, pooled))

    return count_operations(run)
