"""Trunk and dense head trained together: batches with maps of truth, random frames, windows over larger images."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.fitting.fit import EndToEndTraining, fit, fit_with_trunk, seeded
from hf_geossl.evaluation.heads.operations import PatchGrid, count_operations
from hf_geossl.evaluation.heads.segmentation import DenseHead
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import PASS, ProtocolSettings, Scale, Work
from hf_geossl.modeling.dense_heads import full_precision

CLASSES = 30  # where heads are counted before the data have been read
FITTED = 200  # operations a step and number of a patch token: forward and backward for so many classes
LOSS_PASSES = 5  # forward, over maps of logits as large as the images: to resize them, their softmax, its logarithm
MOST_STORED, BLOCK = 2**31, 32  # bytes of a column in the device's memory; images that are brought there at a time

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # images (uint8), truth, prediction
Predict = Callable[[torch.Tensor], torch.Tensor]
Head = TypeVar("Head", bound=nn.Module)


@dataclass(frozen=True)
class FrozenTraining(ProtocolSettings):
    """How a head on frozen patch tokens is trained, with AdamW, a linear warm-up and a linear decay to 0.

    Args:
        steps (`int`): Optimizer steps.
        batch_size (`int`): Images a step.
        learning_rate, weight_decay (`float`): Of AdamW.
        warmup_steps (`int`): Steps in which the learning rate rises.
        random_floor (`bool`): Whether the same architecture with random weights is measured too.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    random_floor: bool = True

    QUICK = MappingProxyType({"steps": 300})  # of a millisecond or two each
    PASSES = 80  # fewer leave a linear head half trained

    @property
    def features(self) -> tuple[str, ...]:
        """See `ProtocolSettings`."""
        return ("patches",)

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        floors = 1 + self.random_floor
        operations = FITTED * self.steps * self.batch_size * scale.tokens * scale.width
        return Work({"images": scale.images}, floors * scale.images, floors * self.steps, floors * operations)


class DeviceColumn:
    """Rows of a column of features as tensors of a device: stored there if they fit, else read from the disk each time.

    Args:
        column (`numpy.ndarray`): One row an image.
        device (`torch.device`): Where to.
        change (`Callable`, *optional*): Applied to the rows `(images, ...)` on the device.
    """

    def __init__(
        self,
        column: np.ndarray,
        device: torch.device,
        change: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows,
    ) -> None:
        self._column, self._device, self._change = column, device, change
        self._stored: torch.Tensor | None = None
        if len(column) * self._read(slice(1)).nbytes <= MOST_STORED:
            blocks = [self._read(slice(start, start + BLOCK)) for start in range(0, len(column), BLOCK)]
            self._stored = torch.cat(blocks)

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        return self._read(rows) if self._stored is None else self._stored[torch.from_numpy(rows).to(self._device)]

    def _read(self, rows: np.ndarray | slice) -> torch.Tensor:
        return self._change(_tensor(self._column[rows]).to(self._device))


class FrozenTokens:
    """Frozen patch tokens of both splits beside their maps of truth, which `target` names."""

    def __init__(self, encoder: Encoder, data: EvaluationData, target: str, options: EvaluationOptions) -> None:
        self.encoder, self.target, self.options = encoder, target, options
        self.train = compute_features(encoder, data.train, ["patches", target], options)
        self.test = compute_features(encoder, data.test, ["patches", target, "image"], options)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.train["patches"].shape[1], self.train["patches"].shape[2]

    def fit(
        self,
        make_head: Callable[[], Head],
        compute_loss: Callable[[Head, torch.Tensor, torch.Tensor], torch.Tensor],
        settings: FrozenTraining,
        description: str,
        summarize: Callable[[torch.Tensor], torch.Tensor] = lambda truth: truth,
    ) -> Head:
        """Trains a head, in float32, by a loss of it, patch tokens and what a function makes of the maps of truth."""
        device = self.encoder.device
        patches = DeviceColumn(self.train["patches"], device)
        truth = DeviceColumn(self.train[self.target], device, summarize)
        rows = shuffled_rows(len(self.train["patches"]), settings.batch_size, self.options.seed)
        with seeded(self.options.seed, device):
            head = make_head().to(device)

            def loss_of_batch(chosen: np.ndarray) -> torch.Tensor:
                with full_precision(device):
                    return compute_loss(head, patches[chosen], truth[chosen])

            fit(
                torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay),
                loss_of_batch,
                rows,
                self.options,
                steps=settings.steps,
                description=f"{self.encoder.name}: {description}",
                warmup_steps=settings.warmup_steps,
            )
        return head.eval()

    @torch.no_grad()
    def predictions(self, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[Batch]:
        """Images, truth and what is predicted of patch tokens (and the truth, for its size) of the test split."""
        for start in range(0, len(self.test["patches"]), self.options.batch_size):
            rows = slice(start, start + self.options.batch_size)
            patches, truth, images = (_tensor(self.test[name][rows]) for name in ("patches", self.target, "image"))
            yield images, truth, predict(patches.to(self.encoder.device), truth)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


@dataclass(frozen=True)
class DenseTraining(EndToEndTraining):
    """How trunk and dense head are trained together.

    Args:
        batch_size (`int`): Images a step.
        trunk_factor (`float`): The trunk's learning rate in parts of the head's.
        crop_size (`int`, *optional*): Side in pixels of the training frames, a multiple of the patch size; the whole image by
            default. Larger images are then measured by windows of this side.
        scales (two `float`): Range of the random scale of training images before they are cut.
        others: As in `EndToEndTraining`.
    """

    batch_size: int = 16
    learning_rate: float = 1e-3
    trunk_factor: float = 1.0
    weight_decay: float = 0.01
    crop_size: int | None = None
    scales: tuple[float, float] = (0.5, 2.0)

    @abstractmethod
    def make_head(self, encoder: Encoder, num_classes: int) -> DenseHead:
        """A fresh head over an encoder, for so many classes where it predicts such."""

    def head_operations(self, scale: Scale) -> tuple[float, float]:
        """See `ProtocolSettings`."""
        side = math.isqrt(scale.tokens)
        encoder = cast(Encoder, PatchGrid(scale.width, side))
        classes = getattr(self, "num_classes", None) or CLASSES

        # patches of any size: the count does not depend on it
        def predict() -> None:
            head = self.make_head(encoder, classes).eval()
            predicted = head.predict(encoder, torch.empty(1, 3, 4 * side, 4 * side))
            numbers.append(predicted.shape[1] * len(getattr(head, "loss_weights", [1])) * scale.pixels)

        numbers: list[int] = []
        count = count_operations(predict)
        return count + LOSS_PASSES * PASS * numbers[0], count + PASS * numbers[0]


def training_batches(
    encoder: Encoder, samples: Samples, target: str, batch_size: int, seed: int, options: EvaluationOptions
) -> Iterator[dict[str, Any]]:
    """Batches without end of `"image"` (`(batch, 3, height, width)`, uint8) and the target, in an order by the seed.

    Scenes are rendered once, to a temporary file; other images are read each time. Where there are fewer images than a batch
    has, some come more than once.
    """
    samples.require(target)
    if samples.mode is None:
        yield from samples.endless_batches(batch_size, seed, num_workers=options.num_workers)
    columns = compute_features(encoder, samples, ["image", target], replace(options, cache_dir=None))
    for rows in shuffled_rows(len(columns["image"]), batch_size, seed):
        yield {name: torch.from_numpy(np.asarray(column[rows])) for name, column in columns.items()}


def shuffled_rows(count: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Whole batches of row numbers below `count` without end, each pass in another order; repeated where too few."""
    repeats = -(-batch_size // count)
    for epoch in range(2**31):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        order = np.concatenate([order] * repeats)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def train_dense(
    encoder: Encoder,
    make_head: Callable[[], DenseHead],
    samples: Samples,
    settings: DenseTraining,
    options: EvaluationOptions,
    *,
    seed: int,
    description: str,
    window_stride: int | None = None,
) -> Predict:
    """Trains a copy of a trunk with a fresh head on random frames; weights, order and frames follow from the seed.

    Returns:
        `Callable`: Maps images `(batch, 3, height, width)`, uint8, to the head's predictions `(batch, channels, height, width)`,
        by windows, `window_stride` apart or else side by side, where they are larger than the training frames.
    """
    device, side = encoder.device, settings.crop_size or samples.size
    with seeded(seed, device):
        trunk = encoder.trainable_copy()
        head = make_head().to(device).train()

        def compute_loss(batch: dict[str, Any]) -> torch.Tensor:
            pixel_values, targets = trunk.normalize(batch["image"]), batch[head.target].to(device)
            frames = random_frames(pixel_values, targets, side, settings.scales, head.unknown)
            return head.compute_loss(trunk, *frames)

        fit_with_trunk(
            trunk,
            head,
            compute_loss,
            training_batches(encoder, samples, head.target, settings.batch_size, seed, options),
            settings,
            options,
            description=description,
            trunk_factor=settings.trunk_factor,
        )

    @torch.no_grad()
    def predict(images: torch.Tensor) -> torch.Tensor:
        with mixed_precision(device):
            pixel_values = trunk.normalize(images)
            return slide(lambda part: head.predict(trunk, part), pixel_values, side, window_stride or side)

    return predict


def predicted_batches(
    predict: Predict, samples: Samples, target: str, options: EvaluationOptions, description: str
) -> Iterator[Batch]:
    """Images, truth and predictions of all samples."""
    for batch in options.batches(samples, f"{description} of {samples.name}"):
        yield batch["image"], batch[target], predict(batch["image"])


def random_frames(
    pixel_values: torch.Tensor, targets: torch.Tensor, side: int, scales: tuple[float, float], unknown: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A square frame of each image at a random scale and place, mirrored in half of the cases.

    Outside of the image a frame has the mean colour, and an unknown target. Drawn from torch's generator on the CPU, the scale
    uniformly; with scales of `(1, 1)` nothing is interpolated.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Normalised images.
        targets (`torch.Tensor` of shape `(batch, height, width)`): uint8 or float; `unknown` where there is no truth.
        side (`int`): Of the frames, in pixels.

    Returns:
        Frames `(batch, 3, side, side)`, bilinear, and their targets `(batch, side, side)` of the nearest pixel.
    """
    batch, _, height, width = pixel_values.shape
    scale = torch.empty(batch).uniform_(*scales)
    shown = side / scale  # side of what is shown, in pixels of the image
    theta = torch.zeros(batch, 2, 3)
    for axis, length in enumerate((width, height)):
        slack = length - shown  # negative where more than the image is shown
        start = slack * torch.rand(batch)
        if scales == (1, 1):
            start = start.round()  # whole pixels: nothing is interpolated
        theta[:, axis, axis] = shown / length
        theta[:, axis, 2] = (2 * start + shown) / length - 1
    theta[:, 0, 0] *= torch.randint(2, (batch,)) * 2 - 1
    grid = functional.affine_grid(theta, [batch, 1, side, side], align_corners=False).to(pixel_values.device)
    frames = functional.grid_sample(pixel_values.float(), grid, mode="bilinear", align_corners=False)
    inside = functional.grid_sample(
        torch.ones_like(pixel_values[:, :1], dtype=torch.float32), grid, mode="nearest", align_corners=False
    )
    maps = functional.grid_sample(targets[:, None].float(), grid, mode="nearest", align_corners=False)
    return frames, torch.where(inside > 0, maps, unknown)[:, 0].to(targets.dtype)


def slide(
    predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, window: int, stride: int
) -> torch.Tensor:
    """Predictions for images larger than the network was trained on: the mean of those of all windows that contain a pixel.

    Windows are squares of so many pixels, and the stride goes from one to the next; the last of a row or column ends where the
    image ends, and a smaller image is one window.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be in 1..{window}, the window, got {stride}")
    height, width = images.shape[-2:]
    if max(height, width) <= window:
        return predict(images)
    total: torch.Tensor | None = None
    counts = torch.zeros(height, width, device=images.device)
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            part = (..., slice(top, top + window), slice(left, left + window))
            predicted = predict(images[part])
            if total is None:
                total = predicted.new_zeros(*predicted.shape[:2], height, width)
            total[part] += predicted
            counts[part] += 1
    assert total is not None
    return total / counts.to(total.device)


def _starts(length: int, window: int, stride: int) -> list[int]:
    """The starts of windows that cover a length."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]
