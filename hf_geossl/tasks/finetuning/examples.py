"""Training images varied: cut, scaled and mirrored together with their truth, in an order that follows from the seed."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from hf_geossl.evaluation.encoders import unit_images
from hf_geossl.evaluation.reading.sample_reader import CHANGED, Sample
from hf_geossl.tasks.finetuning.splits import Split

RATIO = 4 / 3  # most by which a crop is wider than high, or higher than wide
LEAST_BOX = 0.2  # share of a box that a crop must leave, or it is no object of the crop
MAPS = ("semantic", "depth")


def draw_crop(side: int, min_crop: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws the left, top, width and height in pixels of a crop of a square image.

    Its share of the area is uniform from `min_crop` to 1, the logarithm of its aspect ratio uniform within 3/4 to 4/3.

    Source: Szegedy et al. (arXiv 1409.4842), as torchvision's RandomResizedCrop.
    """
    area, ratio = generator.uniform(min_crop, 1.0), math.exp(generator.uniform(-math.log(RATIO), math.log(RATIO)))
    width, height = (min(side, max(1, round(side * math.sqrt(area * factor)))) for factor in (ratio, 1 / ratio))
    left, top = (int(generator.integers(side - length + 1)) for length in (width, height))
    return left, top, width, height


def vary(sample: Sample, size: int, min_crop: float, mirror: bool, generator: np.random.Generator) -> Sample:
    """Cuts a crop out of a sample, scales it to a square of `size` pixels and mirrors it in half of the cases.

    Images are scaled bilinearly with antialiasing, maps by the nearest pixel; boxes move along and are clipped, those of which
    a crop leaves less than `LEAST_BOX` are left out of it.
    """
    image = sample["image"]
    side = image.shape[-1]
    left, top, width, height = draw_crop(side, min_crop, generator) if min_crop < 1 else (0, 0, side, side)
    flipped = mirror and bool(generator.random() < 0.5)
    rows, columns = slice(top, top + height), slice(left, left + width)
    varied = {key: value for key, value in sample.items() if key not in (*MAPS, "boxes", "categories")}
    varied["image"] = _scale(image[:, rows, columns], size)
    for key in MAPS:
        if key in sample:
            part = sample[key][None, None, rows, columns].float()
            varied[key] = functional.interpolate(part, (size, size), mode="nearest-exact")[0, 0].to(sample[key].dtype)
    if "boxes" in sample:
        stretch = torch.tensor([size / width, size / height])
        moved = (sample["boxes"] - torch.tensor([left, top, left, top])) * stretch.repeat(2)
        clipped = moved.clamp(0, size)
        areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (moved, clipped)]
        visible = (areas[1] >= LEAST_BOX * areas[0]) & ((clipped[:, 2:] - clipped[:, :2]).amin(dim=1) >= 1)
        varied["boxes"], varied["categories"] = clipped[visible], sample["categories"][visible]
    return _mirrored(varied, size) if flipped else varied


def _scale(image: torch.Tensor, size: int) -> torch.Tensor:
    if tuple(image.shape[-2:]) == (size, size):
        return image
    scaled = functional.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else scaled


def _mirrored(sample: Sample, size: int) -> Sample:
    varied = {key: value.flip(-1) if key in ("image", *MAPS) else value for key, value in sample.items()}
    if "boxes" in sample:
        left, top, right, bottom = sample["boxes"].unbind(dim=1)
        varied["boxes"] = torch.stack([size - right, top, size - left, bottom], dim=1)
    return varied


class TrainingExamples(Dataset):
    """All images of a run in the order in which they are trained on: pass after pass over a split, each in another order.

    An example is a function of the seed and its number alone, so that a resumed run goes on with the same ones, whatever the
    number of workers.

    Args:
        split (`Split`): The training images.
        count (`int`): Images of the whole run.
        vary (`Callable`): Sample and generator -> varied sample.
        seed (`int`): Of order and variation.
    """

    def __init__(
        self, split: Split, count: int, vary: Callable[[Sample, np.random.Generator], Sample], seed: int
    ) -> None:
        self.split, self.count, self.vary, self.seed = split, count, vary, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self.split))
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.split))
            self._order = epoch, order
        sample = self.split[int(self._order[1][place])]
        sample.pop(CHANGED, None)
        return self.vary(sample, np.random.default_rng([self.seed, number, 1]))


class Collator:
    """Makes what a model's forward takes of samples.

    Args:
        mean, std (`Sequence[float]`): Normalisation of images in units.
        labels (`Callable`): Samples -> what the model takes as `labels`.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], labels: Callable[[Sequence[Sample]], Any]) -> None:
        self.labels = labels
        self.mean, self.std = (torch.tensor(list(values))[:, None, None] for values in (mean, std))

    def pixel_values(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Normalised images `(batch, channels, height, width)`."""
        images = unit_images(torch.stack([sample["image"] for sample in samples]))
        return images.sub(self.mean).div_(self.std)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """`pixel_values` and `labels` of samples."""
        return {"pixel_values": self.pixel_values(samples), "labels": self.labels(samples)}
