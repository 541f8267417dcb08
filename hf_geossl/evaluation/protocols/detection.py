"""Object detection and instance segmentation: torchvision's Mask R-CNN over any trunk, trained end to end."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.encoders import Encoder, unit_images
from hf_geossl.evaluation.fitting.dense_training import CLASSES
from hf_geossl.evaluation.fitting.fit import EndToEndTraining, fit_with_trunk, seeded
from hf_geossl.evaluation.heads.detection import build_detector, detector_operations
from hf_geossl.evaluation.metrics.coco_average_precision import COCOAveragePrecision, Row
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS, EvaluationProtocol, TaskResult
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import Scale
from hf_geossl.modeling.dense_heads import full_precision

PRECISION_REPEATS = 100  # resamples for intervals of average precision
MOST_DETECTIONS = 100  # of an image, as torchvision's detectors and COCO have it
CPU = torch.device("cpu")
SHOWN = 8
SURE = 0.3  # the score from which on pictures show predicted objects

Shown = tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]  # image, predicted and true objects


@dataclass(frozen=True)
class DetectionSettings(EndToEndTraining):
    """How detector and trunk are trained, end to end.

    As published (ViTDet, arXiv 2203.16527): 256 channels, heads of 1024, 512 regions an image, AdamW 1e-4, weight decay .1,
    layer decay .7 (ViT-B), batch 64, 100 epochs of COCO at 1024 pixels with large-scale jitter; GTSA's authors: 12 epochs,
    batch 8, 5e-5, weight decay .05. The defaults are of desk scale in channels, heads, regions and steps; images are not
    jittered but mirrored.

    Args:
        batch_size (`int`): Images a step.
        channels (`int`): Of the pyramid and of the mask head.
        head_width (`int`): Of the box head's two layers.
        regions (`int`): Of an image that the heads are trained on.
        proposals (`int`): Regions of an image that are classified.
        masks (`bool`): Whether instances are segmented where the data have masks.
        num_categories (`int`, *optional*): How many there are, where the data do not name them.
        others: As in `EndToEndTraining`.
    """

    batch_size: int = 8
    layer_decay: float = 0.7
    channels: int = 64
    head_width: int = 256
    regions: int = 64
    proposals: int = 300
    masks: bool = True
    num_categories: int | None = None

    def head_operations(self, scale: Scale) -> tuple[float, float]:
        """See `ProtocolSettings`; masks are of the quarter of regions that show objects, and of all detections of a test image."""
        count = partial(
            detector_operations,
            scale.width,
            math.isqrt(scale.tokens),
            self.num_categories or CLASSES,
            channels=self.channels,
            head_width=self.head_width,
        )
        training = count(regions=self.regions, masks=self.masks * self.regions // 4)
        return training, count(regions=self.proposals, masks=self.masks * min(self.proposals, MOST_DETECTIONS))


def train_detector(
    encoder: Encoder,
    data: EvaluationData,
    options: EvaluationOptions,
    settings: DetectionSettings,
    num_categories: int,
    *,
    masks: bool,
) -> GeneralizedRCNN:
    """Trains `build_detector` on a copy of a trunk; returns it in eval mode."""
    trunk = encoder.trainable_copy()
    with seeded(options.seed, encoder.device):
        detector = build_detector(
            trunk,
            data.size,
            num_categories,
            masks=masks,
            channels=settings.channels,
            head_width=settings.head_width,
            regions=settings.regions,
            proposals=settings.proposals,
        )
        detector.to(encoder.device).train()
        mirrored = np.random.default_rng(options.seed)

        def compute_loss(batch: dict[str, Any]) -> torch.Tensor:
            images, targets = _inputs(batch, masks, encoder.device, mirrored.random(len(batch["index"])) < 0.5)
            with full_precision(encoder.device):  # boxes are regressed in fractions of pixels
                losses = detector(images, targets)
            return torch.stack(list(losses.values())).sum()

        heads = nn.ModuleList([detector.backbone.pyramid, detector.rpn, detector.roi_heads])
        fit_with_trunk(
            trunk,
            heads,
            compute_loss,
            data.train.endless_batches(settings.batch_size, options.seed, num_workers=options.num_workers),
            settings,
            options,
            description=f"{encoder.name}: detection",
            max_norm=1.0,
        )
    return detector.eval()


def measure_detection(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: DetectionSettings
) -> TaskResult:
    """COCO's average precision of boxes and masks, trunk and detector trained end to end.

    It is `box_ap`, `box_ap50`, `box_ap75` and, where the data have masks, `mask_ap`, `mask_ap50`, `mask_ap75`; with
    `random_floor` the details hold the floor of each.

    Raises:
        ValueError: If the data have no boxes or do not name their categories, or the image size is no multiple of the patch
            size.
    """
    train, test = data.train, data.test
    first = train.require("boxes", "categories")
    names = train.names.get("categories")
    count = settings.num_categories or len(names or ())
    if not count:
        raise ValueError(f"{train.name} does not name its categories: say how many by num_categories")
    masks = settings.masks and "masks" in first
    metric = COCOAveragePrecision(("box", "mask") if masks else ("box",))

    def measure(model: Encoder) -> tuple[list[Row], list[Shown]]:
        detector = train_detector(model, data, options, settings, count, masks=masks)
        return _test(detector, test, metric, masks, options, model)

    rows, shown = measure(encoder)
    details: dict[str, Any] = {
        "settings": asdict(settings),
        "train_images": train.count,
        "test_images": len(rows),
        "test_objects": sum(len(true) for _, true in rows),
    }
    if settings.random_floor:
        floor = metric.summarize(measure(encoder.random_twin(options.seed))[0])
        details["floors"] = {name: {RANDOM_WEIGHTS: value} for name, value in floor.items()}

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures.images import detections

        pictures, predictions, truths = zip(*shown, strict=True)
        labels = None if names is None else ("background", *names)
        return detections(np.stack(pictures), predictions, truths, labels, f"{encoder.name}: {test.name}")

    repeats = min(options.bootstrap, PRECISION_REPEATS)
    intervals = metric_intervals(metric, rows, repeats=repeats, seed=options.seed)
    return TaskResult(metric.summarize(rows), intervals, details, {"detections": draw})


def _inputs(
    batch: dict[str, Any], masks: bool, device: torch.device, mirrored: np.ndarray | None = None
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A batch of samples as torchvision's detectors take it; some images mirrored."""
    pixels = unit_images(batch["image"].to(device))
    columns = {"boxes": batch["boxes"], "labels": batch["categories"], **({"masks": batch["masks"]} if masks else {})}
    columns = {name: _moved(column, device) for name, column in columns.items()}
    images, targets = [], []
    for index, image in enumerate(pixels):
        target = {name: column[index] for name, column in columns.items()}
        target["boxes"], target["labels"] = target["boxes"].float(), target["labels"] + 1
        if masks:
            target["masks"] = target["masks"].to(torch.uint8)
        if mirrored is not None and mirrored[index]:
            image = image.flip(-1)
            left, top, right, bottom = target["boxes"].unbind(dim=1)
            width = image.shape[-1]
            target["boxes"] = torch.stack([width - right, top, width - left, bottom], dim=1)
            if masks:
                target["masks"] = target["masks"].flip(-1)
        images.append(image)
        targets.append(target)
    return images, targets


def _moved(parts: Sequence[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
    """Tensors of any lengths on another device, in one transfer."""
    return torch.cat(list(parts)).to(device).split([len(part) for part in parts])


@torch.no_grad()
def _test(
    detector: GeneralizedRCNN,
    samples: Samples,
    metric: COCOAveragePrecision,
    masks: bool,
    options: EvaluationOptions,
    encoder: Encoder,
) -> tuple[list[Row], list[Shown]]:
    """The metric's rows of all images, and what pictures show."""
    rows: list[Row] = []
    shown: list[Shown] = []
    for batch in options.batches(samples, f"{encoder.name}: {samples.name}"):
        pixels, _ = _inputs(batch, masks, encoder.device)
        _, targets = _inputs(batch, masks, CPU)
        outputs = detector(pixels)
        names = ["boxes", "labels", "scores", *(["masks"] if masks else [])]
        columns = {name: _moved([output[name] for output in outputs], CPU) for name in names}
        for index, (image, truth) in enumerate(zip(batch["image"], targets, strict=True)):
            predicted = {name: column[index] for name, column in columns.items()}
            if masks:
                predicted["masks"] = predicted["masks"][:, 0] > 0.5
                truth["masks"] = truth["masks"].bool()
            rows += metric.rows_of([predicted], [truth])
            if len(shown) < SHOWN:
                sure = predicted["scores"] >= SURE
                objects = {key: value[sure].numpy() for key, value in predicted.items()}
                true_objects = {key: value.numpy() for key, value in truth.items()}
                shown.append((image.permute(1, 2, 0).numpy(), objects, true_objects))
    return rows, shown


PROTOCOLS = {"detection": EvaluationProtocol(measure_detection, DetectionSettings)}
