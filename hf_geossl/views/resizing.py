"""Resizing boxes of an image to squares, of any number of channels, by torch's kernels."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the source image, x2 and y2 exclusive
Resize = Callable[[Box], torch.Tensor]

WORD = 4  # channels that torch's uint8 kernel takes at once: a pixel is a word of 32 bits there


def resizer(pixels: torch.Tensor, size: int, *, antialias: bool) -> Resize:
    """Makes the function that cuts a box out of an image and resizes it to a square, bilinear.

    torch resizes uint8 of three and four channels several times as fast as of other numbers. So others are resized in
    groups of four, which gives the same values: a pixel's four bytes are copied as one word, the last group overlaps the
    one before, and of one or two channels the word's other bytes are not used.

    Args:
        pixels (`torch.Tensor` of shape `(height, width, channels)`): uint8 or float32.
        size (`int`): Side of the square in pixels.
        antialias (`bool`): Whether it is resized with antialiasing, or between the four nearest pixels.

    Returns:
        `Callable`: box -> `(1, channels, size, size)` of the pixels' type, in channels-last memory.
    """
    scale = partial(F.interpolate, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias)
    if pixels.dtype == torch.uint8 and pixels.shape[2] not in (3, WORD):
        return _GroupResizer(pixels, scale, size)
    images = pixels[None].permute(0, 3, 1, 2)  # channels last to torch's eyes, which `[None]` after `permute` is not
    return lambda box: scale(images[:, :, box[1] : box[3], box[0] : box[2]])


class _GroupResizer:
    """Resizes boxes of a uint8 image in groups of four channels."""

    def __init__(self, pixels: torch.Tensor, scale: Callable[[torch.Tensor], torch.Tensor], size: int) -> None:
        self.source, self.scale, self.size = pixels.contiguous().numpy(), scale, size
        self.width, self.channels = self.source.shape[1:]
        last = max(self.channels - WORD, 0)
        self.firsts = [*range(0, last, WORD), last]
        self.word = {1: "<u1", 2: "<u2"}.get(self.channels, "<u4")

    def __call__(self, box: Box) -> torch.Tensor:
        crop = np.empty((self.size, self.size, self.channels), np.uint8)
        for first in self.firsts:
            group = self.scale(self._group(box, first))
            words = group.permute(0, 2, 3, 1).contiguous().numpy().view("<u4")[0, :, :, 0]
            self._words(crop, (0, 0, self.size, self.size), first)[...] = words  # the low bytes of one or two channels
        return torch.from_numpy(crop)[None].permute(0, 3, 1, 2)

    def _group(self, box: Box, first: int) -> torch.Tensor:
        """The four channels from `first` on, `(1, 4, height, width)`, in channels-last memory of its own."""
        words = self._words(self.source, box, first).astype("<u4")
        return torch.from_numpy(words.view(np.uint8).reshape(1, *words.shape, WORD)).permute(0, 3, 1, 2)

    def _words(self, pixels: np.ndarray, box: Box, first: int) -> np.ndarray:
        """A box of pixels, each the one number that the bytes of its channels from `first` on are."""
        x1, y1, x2, y2 = box
        width, channels = pixels.shape[1:]
        start = (y1 * width + x1) * channels + first
        return np.ndarray((y2 - y1, x2 - x1), self.word, pixels, start, (width * channels, channels))
