"""Resizing boxes of an image to squares, of any number of channels, by torch's kernels."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the source image, x2 and y2 exclusive
Resize = Callable[[Box], torch.Tensor]

WORD = 4  # channels that torch's uint8 kernel takes at once: a pixel is a word of 32 bits there


class ChannelGroups:
    """A uint8 image of any number of channels in groups of four, which torch resizes several times as fast as others.

    A pixel's four bytes are copied as one word. The last group overlaps the one before; of one or two channels the word's
    other bytes are not used.

    Args:
        pixels (`torch.Tensor` of shape `(height, width, channels)`): uint8.

    Attributes:
        pixels (`torch.Tensor`): As they were given.
        images (`list[torch.Tensor]`): The groups, each `(1, 4, height, width)` in channels-last memory.
    """

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels
        source = pixels.contiguous().numpy()
        height, width, self.channels = source.shape
        last = max(self.channels - WORD, 0)
        self.firsts = [*range(0, last, WORD), last]
        words = np.empty(
            (len(self.firsts), height * width), "<u4"
        )  # one block, which malloc takes again for the next image
        for group, first in zip(words, self.firsts, strict=True):
            group[...] = _words(source, first)
        groups = torch.from_numpy(words.view(np.uint8)).view(-1, 1, height, width, WORD)
        self.images = list(groups.permute(0, 1, 4, 2, 3))

    def join(self, groups: list[torch.Tensor]) -> torch.Tensor:
        """The channels `(1, channels, size, size)` of resized groups, in channels-last memory."""
        joined = np.empty((*groups[0].shape[2:], self.channels), np.uint8)
        for first, group in zip(self.firsts, groups, strict=True):
            words = group.permute(0, 2, 3, 1).contiguous().numpy().view("<u4")
            _words(joined, first)[...] = words.ravel()  # the low bytes of one or two channels
        return torch.from_numpy(joined)[None].permute(0, 3, 1, 2)


def _words(pixels: np.ndarray, first: int) -> np.ndarray:
    """Pixels `(height, width, channels)` as one number each, that of the bytes of the channels from `first` on."""
    height, width, channels = pixels.shape
    kind = {1: "<u1", 2: "<u2"}.get(channels, "<u4")
    return np.ndarray((height * width,), kind, pixels, first, (channels,))


def prepare(pixels: torch.Tensor) -> torch.Tensor | ChannelGroups:
    """An image as `resizer` takes it: `pixels (height, width, channels)`, uint8 or float32, in groups where that is faster."""
    if pixels.dtype == torch.uint8 and pixels.shape[2] not in (3, WORD):
        return ChannelGroups(pixels)
    return pixels


def resizer(pixels: torch.Tensor | ChannelGroups, size: int, *, antialias: bool) -> Resize:
    """Makes the function that cuts a box out of an image and resizes it to a square, bilinear.

    Args:
        pixels (`torch.Tensor` of shape `(height, width, channels)` or [`ChannelGroups`]): What `prepare` gave.
        size (`int`): Side of the square in pixels.
        antialias (`bool`): Whether it is resized with antialiasing, or between the four nearest pixels.

    Returns:
        `Callable`: box -> `(1, channels, size, size)` of the pixels' type, in channels-last memory.
    """
    scale = partial(F.interpolate, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias)
    if isinstance(pixels, ChannelGroups):
        groups = pixels
        return lambda box: groups.join([scale(_cut(image, box)) for image in groups.images])
    if antialias and pixels.dtype == torch.float32 and pixels.shape[2] > 1:
        return lambda box: _resize_floats(pixels[box[1] : box[3], box[0] : box[2]], size)
    images = pixels[None].permute(0, 3, 1, 2)  # channels last to torch's eyes, which `[None]` after `permute` is not
    return lambda box: scale(_cut(images, box))


def _cut(images: torch.Tensor, box: Box) -> torch.Tensor:
    return images[:, :, box[1] : box[3], box[0] : box[2]]


def _resize_floats(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Resizes `(height, width, channels)` with antialiasing, up to three times as fast as torch's kernel for floats.

    First whole rows are added, then pixels of each row, with torch's (and Pillow's) weights: `embedding_bag` adds rows.
    """
    height, width, channels = pixels.shape
    rows = _weighted_sums(pixels.reshape(height, -1), *_triangle_taps(height, size))
    places, weights = _triangle_taps(width, size)
    places = (np.arange(size)[:, None, None] * width + places).reshape(size * size, -1)
    weights = np.tile(weights, (size, 1))
    return _weighted_sums(rows.view(-1, channels), places, weights).view(1, size, size, channels).permute(0, 3, 1, 2)


def _weighted_sums(rows: torch.Tensor, places: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """Sums of `rows (length, values)`, one for each row of `places` and `weights (sums, taps)`: `(sums, values)`."""
    indices, factors = torch.from_numpy(places), torch.from_numpy(weights)
    return F.embedding_bag(indices, rows, per_sample_weights=factors, mode="sum")


def _triangle_taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `length` values make each of `size`, and their weights: a triangle, widened where the length shrinks."""
    scale = length / size
    support = max(scale, 1.0)
    centers = (np.arange(size) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centers + support + 0.5).astype(np.int64), length)
    places = first[:, None] + np.arange((end - first).max())
    weights = np.maximum(1 - np.abs(places + 0.5 - centers[:, None]) / support, 0) * (places < end[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    return np.minimum(places, length - 1), weights.astype(np.float32)
