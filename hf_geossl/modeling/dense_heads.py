"""Decoders that turn maps of a trunk into classes, depths or boxes, and their losses; only boxes need (and import) torchvision."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from .positions import CellPool, fuse_maps

MINIMUM_DEPTH = 1e-3  # metres; nearer pixels have no truth
LEVELS = ("0", "1", "2", "3")  # of the pyramid that regions are pooled from
SCALES = (4.0, 2.0, 1.0, 0.5)  # their positions a patch, along an axis
BOX_SIDE = 7  # positions along an axis that regions are pooled to
ANCHOR_SIDES = (2, 8)  # positions of a map: of images of few patches, coarse maps have too few; 8 as on COCO
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height by width


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 inside of autocast: for coordinates, depths and scores, which bfloat16 would round."""
    known = torch.amp.is_autocast_available(device.type)  # not "meta", where operations are counted
    with torch.autocast(device.type, enabled=False) if known else nullcontext():
        yield


def in_float32(device: torch.device, module: nn.Module, *inputs: Any) -> Any:
    """What a part of a model gives in float32: outside of autocast, its weights cast where the model is in half precision."""
    named = (*module.named_parameters(), *module.named_buffers())
    half = {name: tensor.float() for name, tensor in named if tensor.dtype in (torch.float16, torch.bfloat16)}
    with full_precision(device):
        return functional_call(module, half, inputs) if half else module(*inputs)


def layers_of_maps(num_layers: int) -> tuple[int, int, int, int]:
    """The four layers, from 0, that dense heads read: 2, 5, 8 and 11 of 12, as evenly spaced at other depths.

    The last layer is one of them; of trunks with fewer than 4 some come more than once.
    """
    first, second, third, last = (max(num_layers * part // 4, 1) - 1 for part in (1, 2, 3, 4))
    return first, second, third, last


def upsample(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps at another size `(height, width)`: bilinear, float32, the corners' pixels as large as others."""
    height, width = size
    return F.interpolate(logits.float(), (height, width), mode="bilinear", align_corners=False)


def pixel_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignored: int = 255) -> torch.Tensor:
    """Mean cross-entropy of logits, resized to the labels' size, over the pixels that have one; 0 where none has."""
    labels = labels.long()
    total = F.cross_entropy(upsample(logits, labels.shape[-2:]), labels, ignore_index=ignored, reduction="sum")
    return total / (labels != ignored).sum().clamp(min=1)


def silog_loss(log_depth: torch.Tensor, depth: torch.Tensor, cap: float, mean_weight: float = 0.5) -> torch.Tensor:
    """Scale-invariant logarithmic error.

    With g = log prediction - log truth it is sqrt(mean(g^2) - mean_weight * mean(g)^2) over all pixels of the batch whose truth
    lies between 1 mm and the cap; 0 where there is none. A `mean_weight` of 1 forgives any common factor, 0 none.

    Args:
        log_depth (`torch.Tensor` of shape `(batch, height, width)`): Logarithm of the predicted metres.
        depth (`torch.Tensor` of shape `(batch, height, width)`): True metres, 0 where unknown.

    Source: Eigen et al., NIPS 2014, equation 4; its root as in Depth Anything V2 (arXiv 2406.09414).
    """
    known = (depth > MINIMUM_DEPTH) & (depth < cap)
    count = known.sum().clamp(min=1)
    error = torch.where(known, log_depth.float() - depth.clamp(min=MINIMUM_DEPTH).log(), 0.0)
    variance = error.square().sum() / count - mean_weight * (error.sum() / count).square()
    return variance.clamp(min=1e-12).sqrt()  # the root's slope is infinite at 0


class RescaleNeck(nn.Module):
    """Gives four maps of one stride the strides of a convolutional network: a quarter, a half, once and twice the patch size.

    Two transposed convolutions with BatchNorm and GELU between them, one, none, and max-pooling, as iBOT and the GTSA
    authors put before UPerNet and Mask R-CNN (`Feature2Pyramid` in mmsegmentation).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        up = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        down = nn.MaxPool2d(2, ceil_mode=True)
        self.scales = nn.ModuleList([up, nn.ConvTranspose2d(width, width, 2, stride=2), nn.Identity(), down])

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Four maps `(batch, width, rows, columns)`, from the shallowest layer to the deepest, at 4, 2, 1 and 1/2 times the size."""
        if len(maps) != len(self.scales):
            raise ValueError(f"maps must be {len(self.scales)}, got {len(maps)}; see layers_of_maps")
        return [scale(part) for scale, part in zip(self.scales, maps, strict=True)]


class UPerNetDecoder(nn.Module):
    """transformers' UPerNet and its auxiliary head behind a `RescaleNeck`.

    Args:
        width (`int`): Channels of the maps.
        num_classes (`int`): Classes.
        hidden_size (`int`): Channels of the decoder.
        pool_scales (`Sequence[int]`): Cells a side that the last map is pooled to.
        auxiliary_channels (`int`): Channels of the auxiliary head, on the third map.

    Source: UPerNet (arXiv 1807.10221), section 3; neck and auxiliary head as in iBOT (arXiv 2111.07832), appendix.
    """

    def __init__(
        self, width: int, num_classes: int, hidden_size: int, pool_scales: Sequence[int], auxiliary_channels: int
    ) -> None:
        super().__init__()
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

        config = UperNetConfig(
            hidden_size=hidden_size, pool_scales=[*pool_scales], auxiliary_channels=auxiliary_channels
        )
        config.num_labels = num_classes
        self.neck = RescaleNeck(width)
        self.head = UperNetHead(config, [width] * 4)
        for block, scale in zip(self.head.psp_modules.blocks, pool_scales, strict=True):
            block.layers[0] = CellPool(scale)
        self.auxiliary = UperNetFCNHead(config, [width] * 4)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Logits `(batch, num_classes, any, any)` of the maps of `layers_of_maps`: the prediction, and what trains only."""
        rescaled = self.neck(maps)
        return [self.head(rescaled), self.auxiliary(rescaled)]


class DPTDecoder(nn.Module):
    """transformers' DPT neck and head without the class token, and without the last ReLU.

    Args:
        width (`int`): Channels of the maps.
        neck_hidden_sizes (four `int`): Channels of the four maps.
        fusion_hidden_size (`int`): Channels of the decoder.

    Source: DPT (arXiv 2103.13413), section 3.
    """

    def __init__(self, width: int, neck_hidden_sizes: Sequence[int], fusion_hidden_size: int) -> None:
        super().__init__()
        from transformers import DPTConfig
        from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck

        config = DPTConfig(
            hidden_size=width,
            neck_hidden_sizes=list(neck_hidden_sizes),
            fusion_hidden_size=fusion_hidden_size,
            readout_type="ignore",
        )
        self.neck = DPTNeck(config)
        self.head = DPTDepthEstimationHead(config)
        self.head.head[-1] = nn.Identity()

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """Numbers `(batch, height, width)`, in float32, of the maps `(batch, width, rows, columns)` of `layers_of_maps`."""
        batch_size, width, rows, columns = maps[0].shape  # flatten would fix these in TorchScript's ONNX
        tokens = [part.reshape(batch_size, width, rows * columns).transpose(1, 2) for part in maps]
        tokens = [torch.cat([part[:, :1], part], dim=1) for part in tokens]  # the first is what DPT ignores
        features = fuse_maps(self.neck, tokens, rows, columns)
        # bfloat16 would round depths to a percent
        numbers = in_float32(maps[0].device, self.head, [part.float() for part in features])
        return upsample(numbers[:, None], size)[:, 0]


def log_metres(numbers: torch.Tensor, cap: float) -> torch.Tensor:
    """The logarithm of depths in metres whose shares of the cap are the sigmoids of numbers.

    Source: Depth Anything V2 (arXiv 2406.09414), metric models.
    """
    return F.logsigmoid(numbers.float()) + math.log(cap)


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
        levels["pool"] = F.max_pool2d(levels["3"], kernel_size=1, stride=2)
        return levels


class PatchAnchors(nn.Module):
    """Anchors `(anchors, 4)` of each image, x1, y1, x2, y2 in pixels, around the exact positions of a pyramid over patches."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.strides = [patch_size / scale for scale in (*SCALES, SCALES[-1] / 2)]  # not rounded, as torchvision's

    def forward(self, image_list: Any, feature_maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Anchors level by level, those of a position next to each other, for each image of torchvision's `ImageList`."""
        device = feature_maps[0].device
        offsets = [stride / 2 for stride in (*self.strides[:-1], self.strides[-2])]  # "pool" has every second position
        anchors = []
        for maps, stride, offset in zip(feature_maps, self.strides, offsets, strict=True):
            sides = stride * torch.tensor(ANCHOR_SIDES, dtype=torch.float64)
            heights = torch.tensor(ANCHOR_RATIOS, dtype=torch.float64).sqrt()[:, None] * sides
            widths, heights = (sides.square() / heights).flatten(), heights.flatten()
            cells = (torch.stack([-widths, -heights, widths, heights], dim=1) / 2 + offset).float().to(device)
            down, right = (torch.arange(length, device=device) * stride for length in maps.shape[-2:])
            y, x = torch.meshgrid(down, right, indexing="ij")
            corners = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
            anchors.append((corners + cells).view(-1, 4))
        return [torch.cat(anchors)] * len(image_list.image_sizes)


class PatchPool(nn.Module):
    """Pools regions of about 14 positions' side from the map itself, as FPN does, larger and smaller ones from those beside it."""

    def __init__(self, side: int, patch_size: int) -> None:
        super().__init__()
        self.output_size, self.patch_size = (side, side), patch_size

    def forward(self, maps: Mapping[str, torch.Tensor], boxes: Sequence[torch.Tensor], sizes: object) -> torch.Tensor:
        """Regions `(regions, channels, side, side)` of the boxes `(regions, 4)` of each image."""
        roi_align = torchvision_part("ops").roi_align
        regions = torch.cat([F.pad(box, (1, 0), value=index) for index, box in enumerate(boxes)]).to(maps["0"].dtype)
        areas = (regions[:, 3:] - regions[:, 1:3]).prod(dim=1)
        chosen = torch.floor(2 + torch.log2(areas.sqrt() / (14 * self.patch_size)) + 1e-6).clamp(0, 3)
        pooled = regions.new_zeros(len(regions), maps["0"].shape[1], *self.output_size)
        for index, (level, scale) in enumerate(zip(LEVELS, SCALES, strict=True)):
            here = torch.where(chosen == index)[0]
            part = roi_align(maps[level], regions[here], self.output_size, scale / self.patch_size, 2)
            pooled = pooled.index_put((here,), part.to(pooled.dtype))
        return pooled


def torchvision_part(name: str) -> Any:
    """A module of torchvision; an `ImportError` in one sentence where it is missing."""
    try:
        return import_module(f"torchvision.{name}")
    except ImportError as error:
        raise ImportError("object detection needs torchvision: pip install torchvision") from error


def box_heads(channels: int, head_width: int, num_categories: int) -> dict[str, nn.Module]:
    """What classifies regions `(regions, channels, 7, 7)` and moves their boxes, by the names of torchvision's detectors."""
    parts = torchvision_part("models.detection.faster_rcnn")
    return {
        "box_head": parts.TwoMLPHead(channels * BOX_SIDE**2, head_width),
        "box_predictor": parts.FastRCNNPredictor(head_width, num_categories + 1),
    }


def region_detector(
    channels: int,
    anchors: PatchAnchors,
    box_pool: PatchPool,
    heads: Mapping[str, nn.Module],
    regions: int,
    proposals: int,
) -> tuple[nn.Module, nn.Module]:
    """Torchvision's region proposal network and its heads of Faster or Mask R-CNN, with the settings of its detectors.

    Args:
        channels (`int`): Of the pyramid.
        heads (`Mapping[str, nn.Module]`): As `box_heads`; and those of masks, where there are any.
        regions (`int`): Of an image that the heads are trained on.
        proposals (`int`): Regions of an image that are classified.
    """
    parts = torchvision_part("models.detection.rpn")
    counts = {"training": proposals, "testing": proposals}
    rpn = parts.RegionProposalNetwork(
        anchors,
        parts.RPNHead(channels, len(ANCHOR_SIDES) * len(ANCHOR_RATIOS)),
        *(0.7, 0.3, 256, 0.5),  # overlaps of objects and of background, anchors an image, share of objects among them
        {key: 2 * count for key, count in counts.items()},
        counts,
        nms_thresh=0.7,
    )
    settings = {"fg_iou_thresh": 0.5, "bg_iou_thresh": 0.5, "batch_size_per_image": regions, "positive_fraction": 0.25}
    found = {"bbox_reg_weights": None, "score_thresh": 0.05, "nms_thresh": 0.5, "detections_per_img": 100}
    return rpn, torchvision_part("models.detection.roi_heads").RoIHeads(box_pool, **settings, **found, **heads)


class BoxDetector(nn.Module):
    """Faster R-CNN on a simple pyramid of a trunk's last map.

    The box head is four times as wide as the pyramid, which has `channels`.

    Source: ViTDet (arXiv 2203.16527); Faster R-CNN (arXiv 1506.01497).
    """

    def __init__(self, width: int, patch_size: int, num_categories: int, channels: int) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.pyramid = SimplePyramid(width, channels)
        heads = box_heads(channels, 4 * channels, num_categories)
        anchors, pool = PatchAnchors(patch_size), PatchPool(BOX_SIDE, patch_size)
        self.rpn, self.roi_heads = region_detector(channels, anchors, pool, heads, regions=64, proposals=300)

    def forward(
        self, last: torch.Tensor, pixel_values: torch.Tensor, labels: Sequence[Mapping[str, torch.Tensor]] | None
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Finds objects.

        Args:
            last (`torch.Tensor` of shape `(batch, width, rows, columns)`): The trunk's last map.
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The images.
            labels (*optional*): Of each image `class_labels (objects,)` and `boxes (objects, 4)`: center x, center y, width
                and height in shares of the image.

        Returns:
            `(loss, logits, boxes)`: the loss in training mode with labels, else None; `logits (batch, detections, categories +
            1)`, whose softmax is the score of the category found, the last of no object; and `boxes (batch, detections, 4)`
            as those of the labels. In training mode there are no detections.
        """
        image_list = torchvision_part("models.detection.image_list").ImageList
        (height, width), count = pixel_values.shape[-2:], pixel_values.shape[0]
        side = pixel_values.new_tensor([width, height, width, height], dtype=torch.float32)
        sizes, targets = [(height, width)] * count, None
        if self.training and labels is not None:
            targets = [
                {"boxes": to_corners(one["boxes"].float()) * side, "labels": one["class_labels"].long() + 1}
                for one in labels
            ]
        levels = in_float32(last.device, self.pyramid, last.float())  # boxes are regressed in fractions of pixels
        no_logits, no_boxes = (last.new_zeros(count, 0, size).float() for size in (self.num_categories + 1, 4))
        if self.training and targets is None:
            return None, no_logits, no_boxes
        proposals, losses = in_float32(last.device, self.rpn, image_list(pixel_values, sizes), levels, targets)
        found, of_regions = in_float32(last.device, self.roi_heads, levels, proposals, sizes, targets)
        if self.training:
            return torch.stack([*losses.values(), *of_regions.values()]).sum(), no_logits, no_boxes
        most = max(max(len(one["scores"]) for one in found), 1)
        shares, boxes = [], []  # of each image: the score of the category found, 0 of the others and where nothing is
        for one in found:
            scores = one["scores"].clamp(1e-9, 1 - 1e-7)[:, None] * F.one_hot(one["labels"] - 1, self.num_categories)
            missing = (0, 0, 0, most - len(scores))
            shares.append(F.pad(scores, missing))
            boxes.append(F.pad(to_centers(one["boxes"] / side), missing))
        share = torch.stack(shares)
        logits = torch.cat([share.clamp(min=1e-9), 1 - share.sum(dim=-1, keepdim=True)], dim=-1).log()
        return None, logits, torch.stack(boxes)


def to_corners(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes `(..., 4)` of center x, center y, width and height as x1, y1, x2, y2."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], dim=-1)


def to_centers(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes `(..., 4)` of x1, y1, x2, y2 as center x, center y, width and height."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + second) / 2, second - first], dim=-1)
