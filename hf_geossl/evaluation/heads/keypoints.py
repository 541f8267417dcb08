"""Keypoints as heatmaps over crops of objects: ViTPose's plain head, targets and decoding."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.models.vitpose.image_processing_vitpose import (
    get_keypoint_predictions,
    post_dark_unbiased_data_processing,
)


class KeypointHead(nn.Module):
    """ViTPose's classic head: two transposed convolutions with BatchNorm and ReLU, each doubling the map, and a 1 x 1 one."""

    def __init__(self, width: int, channels: int, points: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, points, 1)
        nn.init.normal_(last.weight, std=0.001)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            last,
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patch tokens `(batch, rows, columns, width)` -> heatmaps `(batch, points, 4 * rows, 4 * columns)`."""
        return self.layers(patches.permute(0, 3, 1, 2))


def cut_crops(images: torch.Tensor, sources: torch.Tensor, frames: torch.Tensor, side: int) -> torch.Tensor:
    """Squares `(objects, 3, side, side)` of images, in [0, 1]: bilinear, black outside of the image.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): uint8.
        sources (`torch.Tensor` of shape `(objects,)`): Which image each square is cut from.
        frames (`torch.Tensor` of shape `(objects, 3)`): Left, top and side of the squares, in pixels.
    """
    line = (torch.arange(side, device=images.device) + 0.5) / side
    extent = frames.new_tensor([images.shape[-1], images.shape[-2]])
    x, y = (frames[:, axis, None] + line * frames[:, 2:] for axis in (0, 1))  # (objects, side)
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    chosen = images[sources].float() / 255
    return functional.grid_sample(chosen, grid / extent * 2 - 1, padding_mode="zeros", align_corners=False)


def draw_heatmaps(
    points: torch.Tensor, frames: torch.Tensor, side: int, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws target heatmaps.

    Args:
        points (`torch.Tensor` of shape `(objects, points, 3)`): x, y in pixels of the image, and 0 where not labelled.
        frames (`torch.Tensor` of shape `(objects, 3)`): Left, top and side of the crops in the image.
        side (`int`): Of the heatmaps.
        sigma (`float`): Of the Gaussians, in pixels of the heatmaps.

    Returns:
        Heatmaps `(objects, points, side, side)` with 1 at the point, and weights `(objects, points)`: 1 where the point is
        labelled and lies in the crop.
    """
    places = (points[..., :2] - frames[:, None, :2]) / frames[:, None, 2:] * side  # from the first pixel's corner
    inside = ((places >= 0) & (places <= side)).all(dim=-1) & (points[..., 2] > 0)
    line = torch.arange(side, device=points.device) + 0.5
    x, y = ((line - places[..., axis, None]).square() for axis in (0, 1))  # (objects, points, side)
    return torch.exp(-(x[:, :, None, :] + y[:, :, :, None]) / (2 * sigma**2)), inside.float()


def decode_heatmaps(heatmaps: np.ndarray, frames: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Decodes heatmaps to points.

    That is the maximum, moved by less than a pixel to the peak of the parabola through the logarithm around it (DARK, arXiv
    1910.06278, as in transformers' ViTPose).

    Heatmaps `(objects, points, side, side)`, frames and sigma are as of `draw_heatmaps`.

    Returns:
        Points `(objects, points, 2)` in pixels of the image, and their scores `(objects, points)`.
    """
    side = heatmaps.shape[-1]
    coarse, scores = get_keypoint_predictions(heatmaps)
    coarse = np.maximum(coarse, 0)  # where no value is above 0
    kernel = 2 * math.ceil(2.5 * sigma) + 1
    fine = post_dark_unbiased_data_processing(coarse.copy(), heatmaps, kernel=kernel)
    places = coarse + np.clip(fine.reshape(coarse.shape) - coarse, -1, 1) + 0.5
    return frames[:, None, :2] + places / side * frames[:, None, 2:], scores[..., 0]
