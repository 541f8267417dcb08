"""The transformations of the equivariance benchmark: drawn by an image's place, applied with borders or without."""

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from hf_geossl.evaluation.encoders import unit_images
from hf_geossl.evaluation.features import Transform, thumbnailed, thumbnails
from hf_geossl.views.transformation_path import TransformationParameters, TransformationPath

TRANSFORMATIONS = ("rotation", "translation", "color", "blur")
ROTATION, TRANSLATION, BLUR = 45.0, 10 / 224, (0.1, 2.0)  # degrees, share of the side, pixels
COLOR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.1, "hue": 0.1}
CHUNK = 1024  # images whose parameters are drawn together


def larger_size(size: int) -> int:
    """How large an image has to be so that no transformation brings its border into the center.

    It leaves as many pixels on the left as on the right. Sizes are sides in pixels.
    """
    radius = TransformationPath("blur", 0, path_blur_sigma=BLUR).blur_radius
    needed = math.ceil(max(size * math.sqrt(2) + 2, size * (1 + 2 * TRANSLATION) + 2, size + 2 * radius + 2))
    return needed + (needed - size) % 2


def target_ranges(transformation: str, size: int) -> dict[str, tuple[float, float]]:
    """The parameters of a transformation that are regressed, with their ranges.

    These are the angle in degrees, shifts in pixels (of images of `size` pixels), the changes of the factors of brightness,
    contrast and saturation, turns of the hue, and sigma in pixels.
    """
    return {
        "rotation": {"angle": (-ROTATION, ROTATION)},
        "translation": dict.fromkeys(("x", "y"), (-TRANSLATION * size, TRANSLATION * size)),
        "color": {name: (-strength, strength) for name, strength in COLOR.items()},
        "blur": {"sigma": BLUR},
    }[transformation]


@dataclass(frozen=True)
class SampledTransform:
    """One of the transformations of every image; its parameters follow from the image's `index` and the numbers here alone.

    Args:
        transformation (`str`): One of `TRANSFORMATIONS`, with the ranges of EquiCoherent's Table 2 (arXiv 2503.18753).
        size (`int`): Side of the transformed images; of larger images the center is cut out afterwards.
        padding (`"zeros"` or `"reflection"`): What comes in from outside of the image, where it reaches the center.
        seed (`int`): Of the draws.
        split (`str`): Another split has other draws.
        repeat (`int`): The first, second, ... transformation of each image.
    """

    transformation: str
    size: int
    padding: str
    seed: int
    split: str
    repeat: int

    def transform(self, device: torch.device) -> Transform:
        """For `compute_features`: images, and the targets `"target"` (see `target_ranges`) and `"thumbnail"`."""
        cached = lru_cache(maxsize=2)(self._draw)

        def apply(batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            images = unit_images(batch["image"].to(device))
            path = TransformationPath(self.transformation, 0, padding_mode=self.padding, path_blur_sigma=BLUR)
            chunks, rows = batch["index"] // CHUNK, batch["index"] % CHUNK
            uniform = torch.empty(len(rows), 4)
            for chunk in chunks.unique().tolist():
                uniform[chunks == chunk] = cached(chunk)[rows[chunks == chunk]]
            parameters, targets = self._parameters(uniform, images.shape[-1])
            if self.transformation == "color":  # its contrast is about the mean of what is seen
                images = path.apply(center_crop(images, self.size), parameters)
            else:
                images = center_crop(path.apply(images, parameters), self.size)
            return images, {"target": targets, "thumbnail": thumbnails(images)}

        return Transform(repr(self), apply)

    def _draw(self, chunk: int) -> torch.Tensor:
        """Uniform numbers in [0, 1), four for each of `CHUNK` images."""
        words = [self.seed, self.repeat, chunk, *self.transformation.encode(), 0, *self.split.encode()]
        return torch.from_numpy(np.random.default_rng(words).random((CHUNK, 4), dtype=np.float32))

    def _parameters(self, uniform: torch.Tensor, side: int) -> tuple[TransformationParameters, torch.Tensor]:
        """The parameters of the images' transformations, and the targets `(images, outputs)`."""
        ranges = target_ranges(self.transformation, self.size)
        low, high = torch.tensor(list(ranges.values())).T
        targets = low + uniform[:, : len(ranges)] * (high - low)
        zero = torch.zeros(len(uniform))
        given = {field.name: zero for field in fields(TransformationParameters)}
        given |= {
            "translations": torch.zeros(len(uniform), 2),
            "transformed": torch.ones(len(uniform), dtype=torch.bool),
        }
        if self.transformation == "rotation":
            given["angles"] = targets[:, 0].deg2rad()
        elif self.transformation == "translation":
            given["translations"] = targets / side
        elif self.transformation == "color":
            given |= dict(zip(COLOR, targets.unbind(1), strict=True))
        else:
            given["blur_sigma"] = targets[:, 0]
        return TransformationParameters(**given), targets


def untouched(size: int) -> Transform:
    """The center of the images as it is, and its `"thumbnail"`."""
    return thumbnailed(f"the middle {size} pixels", lambda images: center_crop(images, size))


def center_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """Cuts the center `(..., size, size)` out of images that are at least as large."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]
