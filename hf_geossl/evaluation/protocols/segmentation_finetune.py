"""Semantic segmentation by a linear map of each patch token, fine-tuned with the whole trunk: on all images, and on few."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from hf_geossl.evaluation.bootstrap import interval
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.dense_training import require
from hf_geossl.evaluation.fitting.segmenters import (
    Scored,
    SegmentationTraining,
    class_names,
    measure_end_to_end,
    score_segmenter,
    train_segmenter,
)
from hf_geossl.evaluation.heads.segmentation import LinearHead
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS, EvaluationProtocol, TaskResult
from hf_geossl.evaluation.samples import Samples


@dataclass(frozen=True)
class FineTuningSettings(SegmentationTraining):
    """Segmenter's linear decoder, trained with the whole trunk.

    The defaults are of desk scale; Segmenter trains ADE20k for 64 epochs of 8 images, SGD 1e-3, frames and windows of 512
    pixels without overlap. LOCA's own settings are not published.

    Args:
        others: As in `SegmentationTraining`.
    """

    steps: int = 600
    learning_rate: float = 5e-4
    layer_decay: float = 0.9
    warmup_steps: int = 60


def measure_fine_tuned_segmentation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: FineTuningSettings
) -> TaskResult:
    """Mean IoU of a linear map of patch tokens that was trained with the whole trunk, at one scale.

    Args:
        encoder, data, options, settings: As in every protocol; the data with `semantic` maps in both splits.

    Returns:
        `TaskResult`: `mean_iou`, `pixel_accuracy`, `mean_class_accuracy`; IoU by class and floors in the details.

    Raises:
        ValueError: If the data have no semantic maps.
    """
    what = "fine-tuned linear segmentation"
    return measure_end_to_end(encoder, data, options, settings, lambda count: LinearHead(encoder.width, count), what)


@dataclass(frozen=True)
class FewShotSettings(SegmentationTraining):
    """Fine-tuning on fixed parts of the training images, the smaller ones parts of the larger ones.

    The defaults are of desk scale, with as many steps on few images as on all; see `FineTuningSettings` for Segmenter's own.

    Args:
        shares (`tuple[float, ...]`): Of the training images, each in (0, 1].
        subsets (`int`): How many parts of each share; of the whole, runs with other seeds.
        others: As in `SegmentationTraining`.
    """

    steps: int = 300
    learning_rate: float = 5e-4
    layer_decay: float = 0.9
    shares: tuple[float, ...] = (1 / 32, 1 / 8, 1.0)
    subsets: int = 3


def measure_few_shot_segmentation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: FewShotSettings
) -> TaskResult:
    """Mean IoU after fine-tuning on few images, by their share: mean and standard deviation over subsets.

    Args:
        encoder, data, options, settings: As in every protocol; the data with `semantic` maps in both splits.

    Returns:
        `TaskResult`: `mean_iou_1/32` and so on, the mean over subsets, and `mean_iou_1/32_std`. Intervals are over test
        images, not over subsets. Every subset's number is in the details.

    Raises:
        ValueError: If the data have no semantic maps.
    """
    train, test = data.train, data.test
    names = class_names(train, settings.num_classes, options, encoder)
    require(test, "semantic")
    twin = encoder.random_twin(options.seed) if settings.random_floor else None

    def train_and_score(model: Encoder, part: Samples, seed: int, description: str) -> Scored:
        make_head = partial(LinearHead, model.width)
        predict = train_segmenter(
            model, make_head, part, len(names), settings, options, seed=seed, description=description
        )
        return score_segmenter(predict, test, names, options)

    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    details: dict[str, Any] = {"settings": asdict(settings), "subsets": {}, "floors": {}}
    pictures: dict[str, Callable[[], Image.Image]] = {}
    for share in settings.shares:
        of = str(Fraction(share).limit_denominator(1000))
        runs: list[Scored] = []
        random: list[float] = []
        sizes = []
        for subset in range(settings.subsets):
            seed = options.seed * settings.subsets + subset
            part = train if share == 1 else train.subset(share, seed)
            description = f"{encoder.name}: {of} of the images, {subset + 1} of {settings.subsets}"
            runs.append(train_and_score(encoder, part, seed, description))
            if twin is not None:
                description = f"random weights, {description}"
                random.append(train_and_score(twin, part, seed, description).numbers["mean_iou"])
            sizes.append(part.count)
        values = [run.numbers["mean_iou"] for run in runs]
        metrics[f"mean_iou_{of}"] = float(np.mean(values))
        metrics |= {f"mean_iou_{of}_std": float(np.std(values, ddof=1))} if len(values) > 1 else {}
        intervals |= {f"mean_iou_{of}": ends for ends in _intervals(runs, options)}
        details["subsets"][of] = [
            {"mean_iou": run.numbers["mean_iou"], "training_images": size, "iou_per_class": run.iou_per_class}
            for run, size in zip(runs, sizes, strict=True)
        ]
        details["images"] = len(runs[0].rows)
        floors = {RANDOM_WEIGHTS: float(np.mean(random))} if random else {}
        details["floors"][f"mean_iou_{of}"] = {"constant": runs[0].constant_floor, **floors}
        picture = f"samples_{of.replace('/', '_')}"
        pictures[picture] = partial(runs[0].draw, f"{encoder.name}: fine-tuned on {of} of the images")
    return TaskResult(metrics, intervals, details, pictures)


def _intervals(runs: Sequence[Scored], options: EvaluationOptions) -> list[tuple[float, float]]:
    """The interval of the mean over runs of their mean IoU, of the same images for all; none without a bootstrap."""
    if not options.bootstrap:
        return []
    metric = runs[0].metric

    def mean(sums: np.ndarray) -> dict[str, float]:
        return {"": float(np.mean([metric.summarize(part)["mean_iou"] for part in np.split(sums, len(runs))]))}

    rows = np.concatenate([run.rows for run in runs], axis=1)  # (images, runs * classes * classes)
    return list(interval(mean, rows, repeats=options.bootstrap, seed=options.seed).values())


PROTOCOLS = {
    "segmentation_few_shot": EvaluationProtocol(measure_few_shot_segmentation, FewShotSettings),
    "segmentation_finetune": EvaluationProtocol(measure_fine_tuned_segmentation, FineTuningSettings),
}
