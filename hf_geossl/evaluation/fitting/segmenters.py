"""Scores of predicted maps, and segmentation heads that are trained together with a trunk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.fitting.dense_training import Batch, DenseTraining, predicted_batches, train_dense
from hf_geossl.evaluation.heads.segmentation import LinearHead, SegmentationHead
from hf_geossl.evaluation.metrics.mean_iou import MeanIoU
from hf_geossl.evaluation.metrics.metric import Metric
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS, TaskResult
from hf_geossl.evaluation.reading.sample_reader import IGNORED
from hf_geossl.evaluation.samples import Samples

SHOWN = 8  # images in a picture


@dataclass(frozen=True)
class DenseScore(ABC):
    """The score of predicted maps.

    Args:
        rows (`numpy.ndarray` of shape `(images, k)`): What images contribute to the metric.
        shown (three `numpy.ndarray`): Some images `(images, height, width, 3)`, their truth and prediction.
    """

    metric: Metric[Any]
    rows: np.ndarray
    shown: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def numbers(self) -> dict[str, float]:
        """Those of the metric."""
        return self.metric.numbers_of(self.rows)

    @abstractmethod
    def draw(self, title: str) -> Image.Image:
        """Some images with truth and prediction."""

    def result(self, options: EvaluationOptions, title: str, details: Mapping[str, Any]) -> TaskResult:
        """The result of a protocol with one prediction an image."""
        intervals = metric_intervals(self.metric, self.rows, repeats=options.bootstrap, seed=options.seed)
        details = {**details, "images": len(self.rows)}
        return TaskResult(self.numbers, intervals, details, {"samples": lambda: self.draw(title)})


def score_batches(
    metric: Metric[Any], batches: Iterator[Batch], rows_of: Callable[[torch.Tensor, torch.Tensor], np.ndarray]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`rows` and `shown` of a `DenseScore`, by the rows of predictions and truth."""
    rows: list[np.ndarray] = []
    shown: list[Batch] = []
    for images, truth, predicted in batches:
        predicted = predicted.cpu()
        rows.append(rows_of(predicted, truth))
        if len(shown) * len(images) < SHOWN:
            shown.append((images, truth, predicted))
    pictures, truths, predictions = (torch.cat(parts)[:SHOWN].numpy() for parts in zip(*shown, strict=True))
    return metric.join(rows), (pictures.transpose(0, 2, 3, 1), truths, predictions)


@dataclass(frozen=True)
class Scored(DenseScore):
    """The score of predicted classes, by their names; rows are confusion matrices."""

    names: tuple[str, ...]

    @property
    def constant_floor(self) -> float:
        """The mean IoU of naming one class everywhere, the best for it."""
        truth = self.rows.sum(axis=0).reshape(len(self.names), -1).sum(axis=1)
        return float(truth.max() / truth.sum() / (truth > 0).sum())

    @property
    def iou_per_class(self) -> dict[str, float | None]:
        """By name; None for a class that is neither in the truth nor predicted."""
        values = self.metric.details(self.metric.total(self.rows))["iou_per_class"]
        return {name: None if np.isnan(iou) else iou for name, iou in zip(self.names, values, strict=True)}

    def result(self, options: EvaluationOptions, title: str, details: Mapping[str, Any]) -> TaskResult:
        """That of `DenseScore`, with IoU by class and the floor of one class."""
        result = super().result(options, title, details)
        result.details["iou_per_class"] = self.iou_per_class
        result.details["floors"] = {"constant": self.constant_floor, **details.get("floors", {})}
        return result

    def draw(self, title: str) -> Image.Image:
        """See `DenseScore`."""
        from hf_geossl.evaluation.pictures.images import segmentation_samples

        return segmentation_samples(*self.shown, self.names, title)


def score(batches: Iterator[Batch], names: tuple[str, ...]) -> Scored:
    """Counts right and wrong pixels of predicted classes `(batch, height, width)`."""
    metric = MeanIoU(len(names), IGNORED)
    return Scored(metric, *score_batches(metric, batches, metric.rows_of), names)


def class_names(
    samples: Samples, num_classes: int | None, options: EvaluationOptions, encoder: Encoder
) -> tuple[str, ...]:
    """Names of the semantic classes: those of the dataset, else numbers, by default up to the largest label.

    Raises:
        ValueError: If the samples have no semantic maps, or no pixel has a class.
    """
    samples.require("semantic")
    if num_classes is None and "semantic" in samples.names:
        return samples.names["semantic"]
    if num_classes is None:
        maps = compute_features(encoder, samples, ["semantic"], options)["semantic"]
        largest = max((int(part.max()) for one in maps if len(part := one[one != IGNORED])), default=-1)
        if largest < 0:
            raise ValueError(f"no pixel of {samples.name} has a class: choose another column")
        num_classes = max(largest + 1, 2)
    return tuple(str(index) for index in range(num_classes))


@dataclass(frozen=True)
class SegmentationTraining(DenseTraining):
    """Trunk and segmentation head trained together: a linear one where nothing else is said.

    Args:
        window_stride (`int`, *optional*): From a window to the next where `crop_size` is below the image size; the
            crop size by default.
        num_classes (`int`, *optional*): As in `LinearSegmentationSettings`.
        others: As in `DenseTraining`.
    """

    window_stride: int | None = None
    num_classes: int | None = None

    def make_head(self, encoder: Encoder, num_classes: int) -> SegmentationHead:
        """See `DenseTraining`."""
        return LinearHead(encoder.width, num_classes)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_size is not None and self.window_stride is not None and self.window_stride > self.crop_size:
            raise ValueError(f"window_stride must be at most crop_size = {self.crop_size}, got {self.window_stride}")


def train_and_score(
    encoder: Encoder,
    splits: tuple[Samples, Samples],
    names: tuple[str, ...],
    settings: SegmentationTraining,
    options: EvaluationOptions,
    *,
    seed: int,
    description: str,
) -> Scored:
    """Trains a copy of a trunk with a fresh head for so many classes on one split, and measures it on another."""
    train, test = splits
    head, stride = partial(settings.make_head, encoder, len(names)), settings.window_stride
    logits = train_dense(
        encoder, head, train, settings, options, seed=seed, description=description, window_stride=stride
    )
    batches = predicted_batches(lambda images: logits(images).argmax(dim=1), test, "semantic", options, "segmentation")
    return score(batches, names)


def measure_segmenter(
    encoder: Encoder,
    data: EvaluationData,
    options: EvaluationOptions,
    settings: SegmentationTraining,
    what: str,
) -> TaskResult:
    """Mean IoU of a head that was trained together with the trunk on all training images; `what` it is called in titles."""
    splits = data.train, data.test
    names = class_names(splits[0], settings.num_classes, options, encoder)
    splits[1].require("semantic")

    def measure(model: Encoder, title: str) -> Scored:
        return train_and_score(model, splits, names, settings, options, seed=options.seed, description=title)

    return measure_end_to_end(encoder, splits[0].count, options, settings, measure, what)


def measure_end_to_end(
    encoder: Encoder,
    images: int | None,
    options: EvaluationOptions,
    settings: DenseTraining,
    measure: Callable[[Encoder, str], DenseScore],
    what: str,
) -> TaskResult:
    """The score of a model that was trained on so many images, and the floor of random weights where the settings say so."""
    scored = measure(encoder, f"{encoder.name}: {what}")
    details: dict[str, Any] = {"settings": asdict(settings), "training_images": images}
    if settings.random_floor:
        twin = encoder.random_twin(options.seed)
        floor = measure(twin, f"{twin.name}: {what}").numbers
        details["floors"] = {metric: {RANDOM_WEIGHTS: value} for metric, value in floor.items()}
    return scored.result(options, f"{encoder.name}: {what}", details)
