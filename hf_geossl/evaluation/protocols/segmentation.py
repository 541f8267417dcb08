"""Semantic segmentation by a linear map of each patch token: frozen, fine-tuned on all images, fine-tuned on few.

Images are squares of one size (see `Samples`), so that numbers on ADE20k are not those of papers, which keep the aspect ratio.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch

from hf_geossl.evaluation.bootstrap import interval
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.metrics import mean_iou
from hf_geossl.evaluation.options import RANDOM_WEIGHTS, EvaluationData, EvaluationOptions, Task, TaskResult
from hf_geossl.evaluation.protocols.dense_training import require, shuffled_rows
from hf_geossl.evaluation.protocols.fit import check_settings, fit, seeded
from hf_geossl.evaluation.protocols.segmenters import (
    Batch,
    LinearHead,
    Scored,
    SegmentationTraining,
    class_names,
    measure_end_to_end,
    pixel_cross_entropy,
    score,
    score_segmenter,
    train_segmenter,
    upsample,
)
from hf_geossl.evaluation.samples import Samples


@dataclass(frozen=True)
class LinearSegmentationSettings:
    """A linear map of frozen patch tokens. The defaults are of desk scale; DINOv2 (arXiv 2304.07193) trains 40,000 steps of 16
    images of 512 pixels, warm-up 1500, with the same optimizer.

    Args:
        steps (`int`): Optimizer steps.
        batch_size (`int`): Images a step.
        learning_rate, weight_decay (`float`): Of AdamW.
        warmup_steps (`int`): Steps in which the learning rate rises; then it falls linearly.
        num_classes (`int`, *optional*): Where the dataset does not tell; else the largest label of the training images is
            the last class.
        random_floor (`bool`): Whether the same architecture with random weights is measured too.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    num_classes: int | None = None
    random_floor: bool = True

    def __post_init__(self) -> None:
        check_settings(self)


def measure_linear_segmentation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearSegmentationSettings
) -> TaskResult:
    """Mean IoU of a linear map of frozen patch tokens after a BatchNorm, brought to the size of the images.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): With `semantic` maps in both splits.
        options (`EvaluationOptions`): How to evaluate.
        settings (`LinearSegmentationSettings`): The protocol's own numbers.

    Returns:
        `TaskResult`: `mean_iou`, `pixel_accuracy`, `mean_class_accuracy`; IoU by class and floors in the details.

    Raises:
        ValueError: If the data have no semantic maps.
    """
    names = class_names(data.train, settings.num_classes, options, encoder)
    require(data.test, "semantic")
    scored = _score_frozen(encoder, data, options, settings, names)
    floors = {}
    if settings.random_floor:
        twin = encoder.random_twin(options.seed)
        floors["random_weights"] = _score_frozen(twin, data, options, settings, names).numbers["mean_iou"]
    title = f"{encoder.name}: linear segmentation of frozen tokens"
    return scored.result(options, title, {"settings": asdict(settings), "floors": floors})


def _score_frozen(
    encoder: Encoder,
    data: EvaluationData,
    options: EvaluationOptions,
    settings: LinearSegmentationSettings,
    names: tuple[str, ...],
) -> Scored:
    train = compute_features(encoder, data.train, ["patches", "semantic"], options)
    test = compute_features(encoder, data.test, ["patches", "semantic", "image"], options)
    device = encoder.device

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    def batches() -> Iterator[dict[str, Any]]:
        for rows in shuffled_rows(len(train["patches"]), settings.batch_size, options.seed):
            yield {name: on_device(column[rows]) for name, column in train.items()}

    with seeded(options.seed, device):
        head = LinearHead(encoder.width, len(names), standardize=True).to(device)
        fit(
            torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay),
            lambda batch: pixel_cross_entropy(head.classify(batch["patches"]), batch["semantic"]),
            batches(),
            options,
            steps=settings.steps,
            description=f"{encoder.name}: linear segmentation",
            warmup_steps=settings.warmup_steps,
        )
    head.eval()

    def predictions() -> Iterator[Batch]:
        for start in range(0, len(test["patches"]), options.batch_size):
            rows = slice(start, start + options.batch_size)
            truth = torch.from_numpy(np.array(test["semantic"][rows]))
            with torch.no_grad():
                logits = upsample(head.classify(on_device(test["patches"][rows])), truth.shape[-2:])
            yield torch.from_numpy(np.array(test["image"][rows])), truth, logits.argmax(dim=1)

    return score(predictions(), names)


@dataclass(frozen=True)
class FineTuningSettings(SegmentationTraining):
    """Segmenter's linear decoder, trained with the whole trunk. The defaults are of desk scale; Segmenter trains ADE20k for 64
    epochs of 8 images, SGD 1e-3, frames and windows of 512 pixels without overlap. LOCA's own settings are not published.

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
        encoder, data, options, settings: As in `measure_linear_segmentation`.

    Returns:
        `TaskResult`: As of `measure_linear_segmentation`.

    Raises:
        ValueError: If the data have no semantic maps.
    """
    what = "fine-tuned linear segmentation"
    return measure_end_to_end(encoder, data, options, settings, lambda count: LinearHead(encoder.width, count), what)


@dataclass(frozen=True)
class FewShotSettings(SegmentationTraining):
    """Fine-tuning on fixed parts of the training images, the smaller ones parts of the larger ones. The defaults are of desk
    scale, with as many steps on few images as on all; see `FineTuningSettings` for Segmenter's own.

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
        encoder, data, options, settings: As in `measure_linear_segmentation`.

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
        predict = train_segmenter(
            model,
            lambda count: LinearHead(encoder.width, count),
            part,
            len(names),
            settings,
            options,
            seed=seed,
            description=description,
        )
        return score_segmenter(predict, test, names, options)

    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    details: dict[str, Any] = {"settings": asdict(settings), "subsets": {}}
    pictures: dict[str, Callable[[], Any]] = {}
    for share in settings.shares:
        told = str(Fraction(share).limit_denominator(1000))
        runs: list[Scored] = []
        random: list[float] = []
        sizes = []
        for subset in range(settings.subsets):
            seed = options.seed * settings.subsets + subset
            part = train if share == 1 else train.subset(share, seed)
            description = f"{encoder.name}: {told} of the images, {subset + 1} of {settings.subsets}"
            runs.append(train_and_score(encoder, part, seed, description))
            if twin is not None:
                description = f"random weights, {description}"
                random.append(train_and_score(twin, part, seed, description).numbers["mean_iou"])
            sizes.append(part.count)
        values = [run.numbers["mean_iou"] for run in runs]
        metrics[f"mean_iou_{told}"] = float(np.mean(values))
        if len(values) > 1:
            metrics[f"mean_iou_{told}_std"] = float(np.std(values, ddof=1))
        if options.bootstrap:
            found = interval(_mean_over(len(runs)), _side_by_side(runs), repeats=options.bootstrap, seed=options.seed)
            intervals[f"mean_iou_{told}"] = found["mean_iou"]
        details["subsets"][told] = [
            {"mean_iou": run.numbers["mean_iou"], "training_images": size, "iou_per_class": run.iou_per_class}
            for run, size in zip(runs, sizes, strict=True)
        ]
        details["images"] = len(runs[0].sums)
        floors = details.setdefault("floors", {}).setdefault(f"mean_iou_{told}", {})
        floors["constant"] = runs[0].constant_floor
        if random:
            floors[RANDOM_WEIGHTS] = float(np.mean(random))
        title = f"{encoder.name}: fine-tuned on {told} of the images"
        pictures[f"samples_{told.replace('/', '_')}"] = partial(runs[0].draw, title)
    return TaskResult(metrics, intervals, details, pictures)


def _side_by_side(runs: list[Scored]) -> np.ndarray:
    """Confusion matrices of several runs over the same images, `(images, runs * classes * classes)`."""
    return np.concatenate([run.sums for run in runs], axis=1)


def _mean_over(runs: int) -> Callable[[np.ndarray], dict[str, float]]:
    return lambda sums: {
        "mean_iou": float(np.mean([mean_iou.summarize(part)["mean_iou"] for part in np.split(sums, runs)]))
    }


TASKS = {
    "segmentation": Task(
        measure_linear_segmentation,
        LinearSegmentationSettings,
        "semantic segmentation, linear map of frozen patch tokens (mean IoU)",
    ),
    "segmentation_few_shot": Task(
        measure_few_shot_segmentation,
        FewShotSettings,
        "semantic segmentation, fine-tuned end to end on 1/32, 1/8 and all of the images (mean IoU)",
    ),
    "segmentation_finetune": Task(
        measure_fine_tuned_segmentation,
        FineTuningSettings,
        "semantic segmentation, linear decoder fine-tuned end to end (mean IoU)",
    ),
}
