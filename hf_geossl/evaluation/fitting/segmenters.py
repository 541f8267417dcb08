"""Segmentation heads trained together with a trunk, and scored."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.fitting.dense_training import DenseTraining, require, slide, train_dense
from hf_geossl.evaluation.fitting.fit import seeded
from hf_geossl.evaluation.heads.segmentation import SegmentationHead
from hf_geossl.evaluation.metrics.mean_iou import MeanIoU
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.precision import mixed_precision
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS, TaskResult
from hf_geossl.evaluation.sample_reader import IGNORED
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import check_settings

SHOWN = 8  # images in a picture
METRICS = ("mean_iou", "pixel_accuracy", "mean_class_accuracy")

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # images (uint8), truth, prediction


MakeHead = Callable[[int], SegmentationHead]  # of a number of classes


@dataclass(frozen=True)
class Scored:
    """The score of predictions.

    Args:
        names (`tuple[str, ...]`): Of the classes.
        rows (`numpy.ndarray` of shape `(images, classes * classes)`): Confusion matrices.
        shown (three `numpy.ndarray`): Some images, their truth and prediction.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    shown: tuple[np.ndarray, np.ndarray, np.ndarray]

    @cached_property
    def metric(self) -> MeanIoU:
        """The metric that the rows are of."""
        return MeanIoU(len(self.names), IGNORED)

    @property
    def numbers(self) -> dict[str, float]:
        """Of `MeanIoU`: `mean_iou`, `pixel_accuracy`, `mean_class_accuracy`."""
        return self.metric.numbers_of(self.rows)

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
        """The result of a protocol with one prediction an image."""
        intervals = metric_intervals(self.metric, self.rows, repeats=options.bootstrap, seed=options.seed)
        details = {
            **details,
            "images": len(self.rows),
            "iou_per_class": self.iou_per_class,
            "floors": {"constant": self.constant_floor, **details.get("floors", {})},
        }
        return TaskResult(self.numbers, intervals, details, {"samples": lambda: self.draw(title)})

    def draw(self, title: str) -> Image.Image:
        """Some images with truth and prediction."""
        from hf_geossl.evaluation.pictures.images import segmentation_samples

        images, truths, predictions = self.shown
        return segmentation_samples(images.transpose(0, 2, 3, 1), truths, predictions, self.names, title)


def score(batches: Iterator[Batch], names: tuple[str, ...]) -> Scored:
    """Counts right and wrong pixels.

    Args:
        batches (`Iterator`): Images `(batch, 3, height, width)` uint8, truth and predicted classes `(batch, height, width)`.
        names (`tuple[str, ...]`): Of the classes.
    """
    metric = MeanIoU(len(names), IGNORED)
    rows: list[np.ndarray] = []
    shown: list[Batch] = []
    for images, truth, predicted in batches:
        predicted = predicted.cpu()
        rows.append(metric.rows_of(predicted, truth))
        if len(shown) * len(images) < SHOWN:
            shown.append((images, truth, predicted))
    pictures = [torch.cat(parts)[:SHOWN].numpy() for parts in zip(*shown, strict=True)]
    return Scored(names, metric.join(rows), (pictures[0], pictures[1], pictures[2]))


def class_names(
    samples: Samples, num_classes: int | None, options: EvaluationOptions, encoder: Encoder
) -> tuple[str, ...]:
    """Names of the semantic classes: those of the dataset, else numbers.

    Args:
        samples (`Samples`): The training images.
        num_classes (`int`, *optional*): How many; by default up to the largest label.
        options (`EvaluationOptions`): Of reading the labels.
        encoder (`Encoder`): For the progress bar's name.

    Raises:
        ValueError: If the samples have no semantic maps, or no pixel has a class.
    """
    require(samples, "semantic")
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
    """Trunk and segmentation head trained together.

    Args:
        window_stride (`int`, *optional*): From a window to the next where `crop_size` is below the image size; the
            crop size by default.
        num_classes (`int`, *optional*): As in `LinearSegmentationSettings`.
        others: As in `DenseTraining`.
    """

    window_stride: int | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.crop_size is not None and self.window_stride is not None and self.window_stride > self.crop_size:
            raise ValueError(f"window_stride must be at most crop_size = {self.crop_size}, got {self.window_stride}")


def train_segmenter(
    encoder: Encoder,
    make_head: MakeHead,
    samples: Samples,
    num_classes: int,
    settings: SegmentationTraining,
    options: EvaluationOptions,
    *,
    seed: int,
    description: str,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Trains a copy of a trunk with a fresh head.

    Args:
        encoder (`Encoder`): The trunk, left as it is.
        make_head (`Callable`): Maps a number of classes to a `SegmentationHead`.
        samples (`Samples`): With `semantic` maps.
        num_classes (`int`): Classes.
        settings (`SegmentationTraining`): How.
        options (`EvaluationOptions`): Workers and progress.
        seed (`int`): Of weights, order and frames.
        description (`str`): For the progress bar.

    Returns:
        `Callable`: Maps images `(batch, 3, height, width)`, uint8, to logits `(batch, num_classes, height, width)`, by windows
        where they are larger than the training frames.
    """
    device = encoder.device
    with seeded(seed, device):
        trunk = encoder.trainable_copy()
        head = make_head(num_classes).to(device).train()
        train_dense(
            trunk,
            head,
            samples,
            "semantic",
            lambda pixel_values, semantic: head.compute_loss(trunk, pixel_values, semantic),
            settings,
            options,
            unknown=IGNORED,
            seed=seed,
            description=description,
        )
    trunk.module.eval()
    head.eval()
    window = settings.crop_size or samples.size

    @torch.no_grad()
    def predict(images: torch.Tensor) -> torch.Tensor:
        with mixed_precision(device):
            return slide(
                lambda pixel_values: head.predict(trunk, pixel_values),
                trunk.normalize(images),
                window,
                settings.window_stride or window,
            )

    return predict


def score_segmenter(
    predict: Callable[[torch.Tensor], torch.Tensor],
    samples: Samples,
    names: tuple[str, ...],
    options: EvaluationOptions,
) -> Scored:
    """Measures what `train_segmenter` gave on all samples."""

    def predictions() -> Iterator[Batch]:
        with options.progress_bar(f"segmentation of {samples.name}", samples.count) as bar:
            for batch in samples.batches(options.batch_size, num_workers=options.num_workers):
                yield batch["image"], batch["semantic"], predict(batch["image"]).argmax(dim=1)
                bar.update(len(batch["image"]))

    return score(predictions(), names)


def measure_end_to_end(
    encoder: Encoder,
    data: EvaluationData,
    options: EvaluationOptions,
    settings: SegmentationTraining,
    make_head: MakeHead,
    what: str,
) -> TaskResult:
    """Mean IoU of a head that was trained together with the trunk on all training images.

    Args:
        encoder, data, options, settings: As in every protocol.
        make_head (`Callable`): Maps a number of classes to a `SegmentationHead`.
        what (`str`): The protocol's name in titles.

    Returns:
        `TaskResult`: As of `measure_linear_segmentation`.

    Raises:
        ValueError: If the data have no semantic maps.
    """
    train, test = data.train, data.test
    names = class_names(train, settings.num_classes, options, encoder)
    require(test, "semantic")

    def measure(model: Encoder) -> Scored:
        title = f"{model.name}: {what}"
        predict = train_segmenter(
            model, make_head, train, len(names), settings, options, seed=options.seed, description=title
        )
        return score_segmenter(predict, test, names, options)

    scored = measure(encoder)
    details: dict[str, Any] = {"settings": asdict(settings), "training_images": train.count}
    if settings.random_floor:
        floor = measure(encoder.random_twin(options.seed)).numbers
        details["floors"] = {metric: {RANDOM_WEIGHTS: floor[metric]} for metric in METRICS}
    return scored.result(options, f"{encoder.name}: {what}", details)
