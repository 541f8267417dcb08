"""Object detection and instance segmentation: torchvision's Mask R-CNN on a simple feature pyramid over any trunk."""

import copy
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from hf_geossl.evaluation.bootstrap import interval_by_rows
from hf_geossl.evaluation.encoders import Encoder, full_precision, mixed_precision
from hf_geossl.evaluation.heads.pyramid import SimplePyramid
from hf_geossl.evaluation.metrics.coco_average_precision import COCOAveragePrecision
from hf_geossl.evaluation.metrics.keypoint_average_precision import KeypointAveragePrecision
from hf_geossl.evaluation.options import RANDOM_WEIGHTS, EvaluationData, EvaluationOptions, Task, TaskResult
from hf_geossl.evaluation.protocols.fit import check_settings, fit, layer_decay_groups, seeded
from hf_geossl.evaluation.samples import Samples

LEVELS = ("0", "1", "2", "3")  # of the pyramid that regions are pooled from
SCALES = (4.0, 2.0, 1.0, 0.5)  # their positions a patch, along an axis
ANCHOR_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the image's side: 32 to 512 at 1024 pixels, as on COCO
PRECISION_REPEATS = 100  # resamples for intervals of average precision
SHOWN = 8
SURE = 0.3  # the score from which on pictures show what was found


@dataclass(frozen=True)
class DetectionSettings:
    """How detector and trunk are trained, end to end. As published (ViTDet, arXiv 2203.16527): 256 channels, heads of 1024,
    512 regions an image, AdamW 1e-4, weight decay .1, layer decay .7 (ViT-B), batch 64, 100 epochs of COCO at 1024 pixels
    with large-scale jitter; GTSA's authors: 12 epochs, batch 8, 5e-5, weight decay .05. The defaults are of desk scale in
    channels, heads, regions and steps; images are not jittered but mirrored.

    Args:
        steps (`int`): Of training.
        warmup_steps (`int`): In which the learning rate rises.
        batch_size (`int`): Images a step.
        learning_rate, weight_decay, layer_decay (`float`): Of AdamW.
        channels (`int`): Of the pyramid and of the mask head.
        head_width (`int`): Of the box head's two layers.
        regions (`int`): Of an image that the heads are trained on.
        proposals (`int`): Regions of an image that are looked at.
        masks (`bool`): Whether instances are segmented where the data have masks.
        num_categories (`int`, *optional*): How many there are, where the data do not name them.
        random_floor (`bool`): Whether the same architecture is trained from random weights too, which takes as long again.
    """

    steps: int = 300
    warmup_steps: int = 30
    batch_size: int = 8
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    layer_decay: float = 0.7
    channels: int = 64
    head_width: int = 256
    regions: int = 64
    proposals: int = 300
    masks: bool = True
    num_categories: int | None = None
    random_floor: bool = False

    def __post_init__(self) -> None:
        check_settings(self)


class EncoderPyramid(nn.Module):
    """An encoder's last patch tokens as a pyramid of maps: a backbone for torchvision's detectors. Only the trunk computes in
    mixed precision.

    Args:
        encoder (`Encoder`): In training mode if it is to be trained.
        channels (`int`): Of every level.
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
    """Anchors at the exact positions of a pyramid over patches (torchvision's rounds strides to whole pixels, which patches of
    14 have not at four positions a patch).

    Args:
        patch_size (`int`): Side of a patch in pixels.
        size (`int`): Side of the images in pixels.
    """

    def __init__(self, patch_size: int, size: int) -> None:
        super().__init__(tuple((size * share,) for share in ANCHOR_SHARES), ((0.5, 1.0, 2.0),) * len(ANCHOR_SHARES))
        self.strides = [patch_size / scale for scale in (*SCALES, SCALES[-1] / 2)]
        self.offsets = [
            stride / 2 for stride in (*self.strides[:-1], self.strides[-2])
        ]  # "pool" takes every second position

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        # around the middle of the first position, not its corner; unrounded, since small ones would all be alike
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
    encoder: Encoder, size: int, num_categories: int, settings: DetectionSettings, *, masks: bool
) -> FasterRCNN:
    """Mask R-CNN (Faster R-CNN without masks) over a trunk.

    Args:
        encoder (`Encoder`): The trunk, which becomes a part of the detector.
        size (`int`): Side of the images in pixels, a multiple of the patch size.
        num_categories (`int`): How many there are; they are labelled from 1.
        settings (`DetectionSettings`): Sizes.
        masks (`bool`): Whether instances are segmented.

    Returns:
        A detector of torchvision, which takes images in [0, 1] and normalises them as the encoder wants them.

    Raises:
        ValueError: If the image size is no multiple of the patch size.
    """
    if size % encoder.patch_size:
        raise ValueError(f"images must be multiples of {encoder.name}'s patch size {encoder.patch_size}, got {size}")
    backbone = EncoderPyramid(encoder, settings.channels)
    given: dict[str, Any] = {
        "min_size": size,  # images keep their size
        "max_size": size,
        "size_divisible": encoder.patch_size,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
        "rpn_anchor_generator": PatchAnchors(encoder.patch_size, size),
        "rpn_pre_nms_top_n_train": 2 * settings.proposals,
        "rpn_pre_nms_top_n_test": 2 * settings.proposals,
        "rpn_post_nms_top_n_train": settings.proposals,
        "rpn_post_nms_top_n_test": settings.proposals,
        "box_batch_size_per_image": settings.regions,
        "box_roi_pool": _pool(7, encoder.patch_size),
        "box_head": TwoMLPHead(settings.channels * 7**2, settings.head_width),
        "box_predictor": FastRCNNPredictor(settings.head_width, num_categories + 1),
    }
    if not masks:
        return FasterRCNN(backbone, **given)
    return MaskRCNN(
        backbone,
        mask_roi_pool=_pool(14, encoder.patch_size),
        mask_head=MaskRCNNHeads(settings.channels, (settings.channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(settings.channels, settings.channels, num_categories + 1),
        **given,
    )


def _pool(side: int, patch_size: int) -> MultiScaleRoIAlign:
    """Regions of about 14 positions' side are pooled from the map itself, as FPN does; larger and smaller ones beside it."""
    pool = MultiScaleRoIAlign(list(LEVELS), side, 2)
    # given, since torchvision would round them to powers of 2
    pool.scales = [scale / patch_size for scale in SCALES]
    pool.map_levels = LevelMapper(0, len(LEVELS) - 1, canonical_scale=14 * patch_size, canonical_level=2)
    return pool


def train_detector(
    encoder: Encoder,
    data: EvaluationData,
    options: EvaluationOptions,
    settings: DetectionSettings,
    num_categories: int,
    *,
    masks: bool,
) -> FasterRCNN:
    """Trains `build_detector` on a copy of a trunk.

    Args:
        encoder, data, options, settings: As in `measure_detection`.
        num_categories (`int`): How many there are.
        masks (`bool`): Whether instances are segmented.

    Returns:
        The detector in eval mode.
    """
    trunk = encoder.trainable_copy()
    with seeded(options.seed, encoder.device):
        detector = build_detector(trunk, data.size, num_categories, settings, masks=masks).to(encoder.device).train()
        mirrored = np.random.default_rng(options.seed)

        def compute_loss(batch: dict[str, Any]) -> torch.Tensor:
            images, targets = _inputs(batch, masks, encoder.device, mirrored.random(len(batch["index"])) < 0.5)
            with full_precision(encoder.device):  # boxes are regressed in fractions of pixels
                losses = detector(images, targets)
            return torch.stack(list(losses.values())).sum()

        heads = nn.ModuleList([detector.backbone.pyramid, detector.rpn, detector.roi_heads])
        fit(
            torch.optim.AdamW(
                layer_decay_groups(trunk, heads, settings.learning_rate, settings.weight_decay, settings.layer_decay)
            ),
            compute_loss,
            data.train.endless_batches(settings.batch_size, options.seed, num_workers=options.num_workers),
            options,
            steps=settings.steps,
            description=f"{encoder.name}: detection",
            warmup_steps=settings.warmup_steps,
            max_norm=1.0,
        )
    return detector.eval()


def measure_detection(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: DetectionSettings
) -> TaskResult:
    """COCO's average precision of boxes and masks, trunk and detector trained end to end.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): Images with boxes and categories, and perhaps masks of the objects.
        options (`EvaluationOptions`): How to evaluate.
        settings (`DetectionSettings`): How it is trained.

    Returns:
        `TaskResult`: `box_ap`, `box_ap50`, `box_ap75` and, where the data have masks, `mask_ap`, `mask_ap50`, `mask_ap75`; with
            `random_floor` the details hold the floor of each.

    Raises:
        ValueError: If the data have no boxes, do not name their categories, or the image size is no multiple of the patch
            size.
    """
    train, test = data.train, data.test
    first = next(iter(train))
    if "boxes" not in first or "categories" not in first:
        raise ValueError(f"detection needs boxes and categories of objects, which {train.name} has not")
    names = train.names.get("categories")
    count = settings.num_categories or len(names or ())
    if not count:
        raise ValueError(f"{train.name} does not name its categories: say how many by num_categories")
    masks = settings.masks and "masks" in first
    metric = COCOAveragePrecision(("box", "mask") if masks else ("box",))
    detector = train_detector(encoder, data, options, settings, count, masks=masks)
    shown, images, objects = _test(detector, test, metric, masks, options, encoder)
    intervals = average_precision_intervals(metric, options)
    result = TaskResult(
        metrics=metric.compute(),
        intervals=intervals,
        details={
            "settings": asdict(settings),
            "train_images": train.count,
            "test_images": images,
            "test_objects": objects,
        },
    )
    if settings.random_floor:
        twin, floor = encoder.random_twin(options.seed), COCOAveragePrecision(metric.kinds)
        _test(train_detector(twin, data, options, settings, count, masks=masks), test, floor, masks, options, twin)
        result.details["floors"] = {name: {RANDOM_WEIGHTS: value} for name, value in floor.compute().items()}

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures import detections

        pictures, found, truths = zip(*shown, strict=True)
        labels = None if names is None else ("background", *names)
        return detections(np.stack(pictures), found, truths, labels, f"{encoder.name}: {test.name}")

    result.pictures["detections"] = draw
    return result


def average_precision_intervals(
    metric: COCOAveragePrecision | KeypointAveragePrecision, options: EvaluationOptions
) -> dict[str, tuple[float, float]]:
    """95 % intervals of average precision over images, which is computed anew for each resample; at most `PRECISION_REPEATS`,
    since that takes its time.

    Args:
        metric: With all images, before its `compute`.
        options (`EvaluationOptions`): Resamples and seed.

    Returns:
        `dict[str, tuple[float, float]]`: Of each of the metric's numbers; empty without `bootstrap`.
    """
    if not options.bootstrap:
        return {}
    found: list[list[dict[str, Any]]] = [[] for _ in range(metric.images)]
    truth: list[list[dict[str, Any]]] = [[] for _ in range(metric.images)]
    for kept, objects in ((found, metric.found), (truth, metric.truth)):
        for one in objects:
            kept[one["image_id"] - 1].append(one)

    def compute(indices: np.ndarray) -> dict[str, float]:
        drawn = copy.copy(metric)
        drawn.images = len(indices)
        drawn.found, drawn.truth = (
            [{**one, "image_id": place} for place, index in enumerate(indices, start=1) for one in objects[index]]
            for objects in (found, truth)
        )
        return drawn.result()

    repeats = min(options.bootstrap, PRECISION_REPEATS)
    return interval_by_rows(compute, metric.images, repeats=repeats, seed=options.seed)


def _inputs(
    batch: dict[str, Any], masks: bool, device: torch.device, mirrored: np.ndarray | None = None
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A batch of samples as torchvision's detectors take it; some images mirrored."""
    images, targets = [], []
    for index, image in enumerate(batch["image"]):
        boxes = batch["boxes"][index].float()
        target = {"boxes": boxes, "labels": batch["categories"][index] + 1}
        if masks:
            target["masks"] = batch["masks"][index].to(torch.uint8)
        if mirrored is not None and mirrored[index]:
            image = image.flip(-1)
            width = image.shape[-1]
            target["boxes"] = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
            if masks:
                target["masks"] = target["masks"].flip(-1)
        images.append(image.to(device).float() / 255)
        targets.append({key: value.to(device) for key, value in target.items()})
    return images, targets


@torch.no_grad()
def _test(
    detector: FasterRCNN,
    samples: Samples,
    metric: COCOAveragePrecision,
    masks: bool,
    options: EvaluationOptions,
    encoder: Encoder,
) -> tuple[list[tuple[np.ndarray, dict[str, Any], dict[str, Any]]], int, int]:
    """Feeds the metric; what pictures show, and how many images and objects there were."""
    shown: list[tuple[np.ndarray, dict[str, Any], dict[str, Any]]] = []
    images, objects = 0, 0
    with options.progress_bar(f"{encoder.name}: {samples.name}", samples.count) as bar:
        for batch in samples.batches(options.batch_size, num_workers=options.num_workers):
            pixels, targets = _inputs(batch, masks, encoder.device)
            outputs = detector(pixels)
            for image, output, target in zip(batch["image"], outputs, targets, strict=True):
                found = {key: value.cpu() for key, value in output.items()}
                truth = {key: value.cpu() for key, value in target.items()}
                if masks:
                    found["masks"] = found["masks"][:, 0] > 0.5
                    truth["masks"] = truth["masks"].bool()
                metric.add(prediction=found, reference=truth)
                images, objects = images + 1, objects + len(truth["labels"])
                if len(shown) < SHOWN:
                    sure = found["scores"] >= SURE
                    shown.append(
                        (
                            image.permute(1, 2, 0).numpy(),
                            {key: value[sure].numpy() for key, value in found.items()},
                            {key: value.numpy() for key, value in truth.items()},
                        )
                    )
            bar.update(len(batch["index"]))
    return shown, images, objects


TASKS = {
    "detection": Task(
        measure_detection,
        DetectionSettings,
        "boxes and masks of objects, Mask R-CNN end to end: COCO average precision",
    )
}
