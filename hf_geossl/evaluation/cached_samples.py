"""Samples that are read or rendered once and then used in many passes, as protocols that transform images need."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import Transform, compute_features
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.samples import Samples

THUMBNAIL_SIDE = 12  # pixels


class CachedSamples(Samples):
    """Samples whose first pass writes what is needed of them to a temporary file that later passes read.

    Their fingerprint is that of the samples, so that the cache of features does not distinguish them.

    Args:
        samples (`Samples`): The samples.
        columns (`Sequence[str]`): What is cached of each sample beside `"image"` and `"index"`.
        encoder, options: As in `compute_features`.
    """

    def __init__(self, samples: Samples, columns: Sequence[str], encoder: Encoder, options: EvaluationOptions) -> None:
        super().__init__(samples.rows, samples.description, samples.names, samples.read, samples.indices)
        self._samples, self._columns = samples, ("image", "index", *columns)
        self._encoder, self._options = encoder, replace(options, cache_dir=None)
        self._arrays: dict[str, np.ndarray] | None = None

    def batches(self, batch_size: int, *, num_workers: int = 0) -> Iterator[dict[str, Any]]:
        """Every sample once, in order, in batches. Workers are needed in the first pass only."""
        if self._arrays is None:
            self._arrays = compute_features(self._encoder, self._samples, self._columns, self._options)
        for start in range(0, len(self._arrays["index"]), batch_size):
            rows = slice(start, start + batch_size)
            yield {name: torch.from_numpy(np.array(array[rows])) for name, array in self._arrays.items()}


def cache_if_rendered(
    samples: Samples, columns: Sequence[str], encoder: Encoder, options: EvaluationOptions
) -> Samples:
    """Caches scenes, because rendering them is expensive, and leaves other images to be read again in each pass.

    A dataset of any size must do: the 1.28 million images of ImageNet would take 190 GB.

    Args:
        samples, columns, encoder, options: As of `CachedSamples`.

    Returns:
        `Samples`: Cached, or as they were given.
    """
    return samples if samples.mode is None else CachedSamples(samples, columns, encoder, options)


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Shrinks images to a few pixels: the baseline that a feature has to beat.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): uint8, or float in [0, 1].

    Returns:
        `torch.Tensor` of shape `(batch, 3 * 12 * 12)`: Means of areas, channel by channel, in [0, 1].
    """
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return torch.nn.functional.adaptive_avg_pool2d(images, THUMBNAIL_SIDE).flatten(1)


def grey(colours: np.ndarray) -> np.ndarray:
    """Returns the mean of the channels of `thumbnails`, `(images, 3 * pixels)` -> `(images, pixels)`."""
    return np.asarray(colours).reshape(len(colours), 3, -1).mean(axis=1)


def thumbnailed(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Transform:
    """A change of images, and the `"thumbnail"` of what comes out."""

    def apply(batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images = change(batch["image"])
        return images, {"thumbnail": thumbnails(images)}

    return Transform(key, apply)


THUMBNAILS = thumbnailed(f"thumbnails of {THUMBNAIL_SIDE}", lambda images: images)
