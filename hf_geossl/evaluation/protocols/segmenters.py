"""Segmentation heads over any encoder: what they are trained on, trained end to end, and measured."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hf_geossl.evaluation.bootstrap import interval
from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.metrics import mean_iou
from hf_geossl.evaluation.options import RANDOM_WEIGHTS, EvaluationData, EvaluationOptions, TaskResult
from hf_geossl.evaluation.protocols.dense_training import DenseTraining, require, slide, train_dense
from hf_geossl.evaluation.protocols.fit import check_settings, seeded
from hf_geossl.evaluation.samples import IGNORED, Samples

SHOWN = 8  # images in a picture
METRICS = ("mean_iou", "pixel_accuracy", "mean_class_accuracy")

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # images (uint8), truth, prediction


# ---- heads ----


class SegmentationHead(nn.Module, ABC):
    """What turns an encoder's tokens into logits.

    Attributes:
        loss_weights (`tuple[float, ...]`): Of the cross-entropy of each map of logits that it gives.
    """

    loss_weights: tuple[float, ...] = (1.0,)

    @abstractmethod
    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Args:
            encoder (`Encoder`): The trunk.
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Normalised images.

        Returns:
            `list[torch.Tensor]`: Logits `(batch, classes, any, any)`; the first are the prediction, others train only.
        """

    def predict(self, encoder: Encoder, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, classes, height, width)` of normalised images."""
        return upsample(self(encoder, pixel_values)[0], pixel_values.shape[-2:])

    def compute_loss(self, encoder: Encoder, pixel_values: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the cross-entropies of all maps of logits."""
        outputs = self(encoder, pixel_values)
        losses = [pixel_cross_entropy(logits, semantic) for logits in outputs]
        return torch.stack([weight * loss for weight, loss in zip(self.loss_weights, losses, strict=True)]).sum()


MakeHead = Callable[[int], SegmentationHead]  # of a number of classes


class LinearHead(SegmentationHead):
    """One linear map of each patch token after the final norm: Segmenter's linear decoder.

    Args:
        width (`int`): Channels of a token.
        num_classes (`int`): Classes.
        standardize (`bool`): Whether a BatchNorm comes first, as in linear probes of frozen features.

    Source: Segmenter (arXiv 2105.05633), section 3.2.
    """

    def __init__(self, width: int, num_classes: int, standardize: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width) if standardize else nn.Identity()
        self.classifier = nn.Conv2d(width, num_classes, 1)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return [self.classify(encoder.tokens(pixel_values).patches)]

    def classify(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, classes, rows, columns)` of patch tokens `(batch, rows, columns, width)`."""
        return self.classifier(self.norm(patches.permute(0, 3, 1, 2)))


def upsample(logits: torch.Tensor, size: Any) -> torch.Tensor:
    """Maps at another size `(height, width)`: bilinear, float32, the corners' pixels as large as others."""
    return functional.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False)


def pixel_cross_entropy(logits: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the pixels that have a truth, 0 where none has.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes, any, any)`): They are brought to the truth's size first.
        semantic (`torch.Tensor` of shape `(batch, height, width)`): Classes, 255 where there is no truth.
    """
    semantic = semantic.long()
    logits = upsample(logits, semantic.shape[-2:])
    total = functional.cross_entropy(logits, semantic, ignore_index=IGNORED, reduction="sum")
    return total / (semantic != IGNORED).sum().clamp(min=1)


# ---- measuring ----


@dataclass(frozen=True)
class Scored:
    """What predictions were worth.

    Args:
        names (`tuple[str, ...]`): Of the classes.
        sums (`numpy.ndarray` of shape `(images, classes * classes)`): Confusion matrices.
        numbers (`dict`): Of `MeanIoU`.
        shown (three `numpy.ndarray`): Some images, their truth and prediction.
    """

    names: tuple[str, ...]
    sums: np.ndarray
    numbers: dict[str, Any]
    shown: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def constant_floor(self) -> float:
        """The mean IoU of naming one class everywhere, the best for it."""
        truth = self.sums.sum(axis=0).reshape(len(self.names), -1).sum(axis=1)
        return float(truth.max() / truth.sum() / (truth > 0).sum())

    @property
    def iou_per_class(self) -> dict[str, float | None]:
        """By name; None for a class that is neither in the truth nor predicted."""
        values = self.numbers["iou_per_class"]
        return {name: None if np.isnan(iou) else iou for name, iou in zip(self.names, values, strict=True)}

    def result(self, options: EvaluationOptions, title: str, details: dict[str, Any]) -> TaskResult:
        """The result of a protocol with one prediction an image."""
        metrics = {name: self.numbers[name] for name in METRICS}
        intervals = {}
        if options.bootstrap:
            intervals = interval(mean_iou.summarize, self.sums, repeats=options.bootstrap, seed=options.seed)
        details = {
            **details,
            "images": len(self.sums),
            "iou_per_class": self.iou_per_class,
            "floors": {"constant": self.constant_floor, **details.get("floors", {})},
        }
        return TaskResult(metrics, intervals, details, {"samples": lambda: self.draw(title)})

    def draw(self, title: str) -> Any:
        """Some images with truth and prediction."""
        from hf_geossl.evaluation.pictures import segmentation_samples

        images, truths, predictions = self.shown
        return segmentation_samples(images.transpose(0, 2, 3, 1), truths, predictions, self.names, title)


def score(batches: Iterator[Batch], names: tuple[str, ...]) -> Scored:
    """Counts right and wrong pixels.

    Args:
        batches (`Iterator`): Images `(batch, 3, height, width)` uint8, truth and predicted classes `(batch, height, width)`.
        names (`tuple[str, ...]`): Of the classes.
    """
    metric = mean_iou.MeanIoU(len(names), IGNORED)
    sums: list[np.ndarray] = []
    shown: list[Batch] = []
    for images, truth, predicted in batches:
        predicted = predicted.cpu()
        metric.add_batch(predictions=predicted, references=truth)
        sums.append(mean_iou.sums_of(predicted, truth, num_classes=len(names), ignore_index=IGNORED))
        if len(shown) * len(images) < SHOWN:
            shown.append((images, truth, predicted))
    pictures = [torch.cat(parts)[:SHOWN].numpy() for parts in zip(*shown, strict=True)]
    return Scored(names, np.concatenate(sums), metric.compute(), (pictures[0], pictures[1], pictures[2]))


def class_names(
    samples: Samples, num_classes: int | None, options: EvaluationOptions, encoder: Encoder
) -> tuple[str, ...]:
    """Names of the semantic classes: as the dataset tells, else numbers: as many as the settings say, else up to the largest
    label.

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


# ---- end to end ----


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
        where they are larger than what was trained on.
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
