"""torchvision's Mask R-CNN on a simple feature pyramid over any trunk."""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.heads.operations import count_operations

LEVELS = ("0", "1", "2", "3")  # of the pyramid that regions are pooled from
SCALES = (4.0, 2.0, 1.0, 0.5)  # their positions a patch, along an axis
BOX_SIDE, MASK_SIDE = 7, 14  # positions along an axis that regions are pooled to
ANCHOR_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the image's side: 32 to 512 at 1024 pixels, as on COCO


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of maps `(batch, channels, rows, columns)`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises maps."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimplePyramid(nn.Module):
    """A feature pyramid out of the last map alone, whose width is a multiple of 4.

    Source: ViTDet (arXiv 2203.16527), section 3 and appendix A.2.
    """

    def __init__(self, width: int, out_channels: int = 256) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"width must be a multiple of 4, got {width}")
        self.out_channels = out_channels
        half, quarter = width // 2, width // 4
        up = nn.ConvTranspose2d
        scales: list[tuple[int, list[nn.Module]]] = [
            (quarter, [up(width, half, 2, stride=2), ChannelNorm(half), nn.GELU(), up(half, quarter, 2, stride=2)]),
            (half, [up(width, half, 2, stride=2)]),
            (width, []),
            (width, [nn.MaxPool2d(2, ceil_mode=True)]),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                *layers,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                ChannelNorm(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                ChannelNorm(out_channels),
            )
            for channels, layers in scales
        )

    def forward(self, last: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """The pyramid of the last layer's patch tokens `(batch, width, rows, columns)`, by the names that torchvision expects.

        Levels "0" to "3" have 4, 2, 1 and 1/2 times as many rows and columns (rounded up); "pool" has every second position
        of "3".
        """
        levels = OrderedDict((str(index), level(last)) for index, level in enumerate(self.levels))
        levels["pool"] = functional.max_pool2d(levels["3"], kernel_size=1, stride=2)
        return levels


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


class PatchAnchors(AnchorGenerator):
    """Anchors at the exact positions of a pyramid over patches.

    (torchvision's rounds strides to whole pixels, which patches of 14 have not at four positions a patch.)
    """

    def __init__(self, patch_size: int, size: int) -> None:
        super().__init__(tuple((size * share,) for share in ANCHOR_SHARES), ((0.5, 1.0, 2.0),) * len(ANCHOR_SHARES))
        self.strides = [patch_size / scale for scale in (*SCALES, SCALES[-1] / 2)]
        self.offsets = [
            stride / 2 for stride in (*self.strides[:-1], self.strides[-2])
        ]  # "pool" takes every second position

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Anchors around the middle of each level's first position, not its corner; rounded, small ones would be alike."""
        cells = []
        for (size,), ratios, offset in zip(self.sizes, self.aspect_ratios, self.offsets, strict=True):
            heights = size * torch.tensor(ratios, dtype=torch.float64).sqrt()
            widths = size**2 / heights
            cells.append(torch.stack([-widths, -heights, widths, heights], dim=1) / 2 + offset)
        self.cell_anchors = [cell.to(device, dtype) for cell in cells]

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Anchors `(anchors, 4)` of each image: x1, y1, x2, y2 in pixels, level by level."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids: Any = [list(maps.shape[-2:]) for maps in feature_maps]
        strides: Any = [[stride, stride] for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


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
) -> FasterRCNN:
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
    given: dict[str, Any] = {
        "min_size": size,  # images keep their size
        "max_size": size,
        "size_divisible": encoder.patch_size,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
        "rpn_anchor_generator": PatchAnchors(encoder.patch_size, size),
        "rpn_pre_nms_top_n_train": 2 * proposals,
        "rpn_pre_nms_top_n_test": 2 * proposals,
        "rpn_post_nms_top_n_train": proposals,
        "rpn_post_nms_top_n_test": proposals,
        "box_batch_size_per_image": regions,
        "box_roi_pool": PatchPool(BOX_SIDE, encoder.patch_size),
        **box_heads(channels, head_width, num_categories),
    }
    if not masks:
        return FasterRCNN(backbone, **given)
    return MaskRCNN(
        backbone,
        mask_roi_pool=PatchPool(MASK_SIDE, encoder.patch_size),
        **mask_heads(channels, num_categories),
        **given,
    )


def box_heads(channels: int, head_width: int, num_categories: int) -> dict[str, nn.Module]:
    """What classifies regions `(regions, channels, 7, 7)` and moves their boxes, by the names of torchvision's detectors."""
    return {
        "box_head": TwoMLPHead(channels * BOX_SIDE**2, head_width),
        "box_predictor": FastRCNNPredictor(head_width, num_categories + 1),
    }


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
        RPNHead(channels, 3)(list(levels.values()))
        for heads, count, pooled in (
            (box_heads(channels, head_width, num_categories), regions, BOX_SIDE),
            (mask_heads(channels, num_categories), masks, MASK_SIDE),
        ):
            nn.Sequential(*heads.values())(torch.empty(count, channels, pooled, pooled))

    return count_operations(run)


class PatchPool(MultiScaleRoIAlign):
    """Pools regions of about 14 positions' side from the map itself, as FPN does, larger and smaller ones from those beside it."""

    def __init__(self, side: int, patch_size: int) -> None:
        super().__init__(list(LEVELS), side, 2)
        # given, since torchvision would round them to powers of 2
        self.scales = [scale / patch_size for scale in SCALES]
        self.map_levels = LevelMapper(0, len(LEVELS) - 1, canonical_scale=14 * patch_size, canonical_level=2)
