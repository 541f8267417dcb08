"""Homographies between two patches of an image: pairs of patches, and a head that predicts displacements of corners."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

PATCH_SHARE = 128 / 240  # DeTone's patch in his image of 320 x 240
SHIFT_SHARE = 32 / 128  # largest shift of a corner, of the patch's side
LUMA = (0.299, 0.587, 0.114)


def solve_homography(sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Solves for the homographies that map four points to four others.

    They have shape `(batch, 3, 3)`, float64, with 1 as the last entry; points `(batch, 4, 2)` are x and y, no three on a line.

    Source: direct linear transform; Hartley and Zisserman, Multiple View Geometry, 2004, section 4.1.
    """
    sources, targets = sources.double(), targets.double()
    x, y = sources.unbind(-1)
    u, v = targets.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)
    second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    numbers = torch.linalg.solve(torch.cat([first, second], dim=1), torch.cat([u, v], dim=1))
    return torch.cat([numbers, torch.ones_like(numbers[:, :1])], dim=1).view(-1, 3, 3)


def cut_patches(images: torch.Tensor, homographies: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """Square patches `(batch, channels, side, side)` of images that were warped: bilinear, float32.

    Args:
        images (`torch.Tensor` of shape `(batch, channels, height, width)`): Floats.
        homographies (`torch.Tensor` of shape `(batch, 3, 3)`): From positions in the warped image to positions in the image,
            in pixels from the upper left corner of the first pixel.
        corners (`torch.Tensor` of shape `(batch, 2)`): x and y of the patch's upper left corner, in pixels.
    """
    line = torch.arange(side, device=images.device, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    positions = torch.stack([x, y], dim=-1) + corners.double()[:, None, None]  # (batch, side, side, 2)
    mapped = map_points(homographies.double(), positions.flatten(1, 2)).view_as(positions)
    extent = mapped.new_tensor([images.shape[-1], images.shape[-2]])
    grid = (mapped / extent * 2 - 1).float()
    return functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def map_points(homographies: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Points `(batch, points, 2)` moved by homographies `(batch, 3, 3)`."""
    moved = functional.pad(points, (0, 1), value=1.0) @ homographies.transpose(1, 2)
    return moved[..., :2] / moved[..., 2:]


@dataclass(frozen=True)
class Pairs:
    """Two grey patches of each image, of which the second shows the image warped.

    Args:
        first, second (`torch.Tensor` of shape `(batch, 3, side, side)`): In [0, 1], three equal channels.
        corners (`torch.Tensor` of shape `(batch, 4, 2)`): Of the patch in the image, in pixels: upper left, upper right, lower
            left, lower right.
        shifts (`torch.Tensor` of shape `(batch, 4, 2)`): From there to where the second patch's corners lie in the image.
    """

    first: torch.Tensor
    second: torch.Tensor
    corners: torch.Tensor
    shifts: torch.Tensor


def patch_side(size: int, multiple: int) -> int:
    """The side of patches in images of `size` pixels: the multiple that is nearest to DeTone's share.

    Raises:
        ValueError: If patches and shifts do not fit into the image.
    """
    side = max(1, round(size * PATCH_SHARE / multiple)) * multiple
    if side * (1 + 2 * SHIFT_SHARE) > size:
        raise ValueError(
            f"patches of {side} pixels with their shifts do not fit into images of {size}; take larger images"
        )
    return side


def make_pairs(images: torch.Tensor, side: int, draws: torch.Tensor) -> Pairs:
    """Cuts pairs of patches out of images.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, size, size)`): uint8.
        side (`int`): Of the patches, in pixels.
        draws (`torch.Tensor` of shape `(batch, 5, 2)`): In [0, 1): where the patch lies, and the shifts of its corners.
    """
    size = images.shape[-1]
    reach = side * SHIFT_SHARE
    draws = draws.to(images.device).double()
    margin = -int(-reach // 1)
    origin = margin + (draws[:, 0] * (size - side - 2 * margin + 1)).floor()
    square = draws.new_tensor([[0, 0], [side, 0], [0, side], [side, side]])
    corners = origin[:, None] + square
    shifts = (2 * draws[:, 1:] - 1) * reach
    grey = torch.einsum("bchw,c->bhw", images.float() / 255, images.new_tensor(LUMA, dtype=torch.float32))[:, None]
    still = torch.eye(3, device=images.device).expand(len(images), 3, 3)
    first = cut_patches(grey, still, origin, side)
    second = cut_patches(grey, solve_homography(corners, corners + shifts), origin, side)
    first, second = (patch.expand(-1, 3, -1, -1) for patch in (first, second))
    return Pairs(first, second, corners.float(), shifts.float())


class HomographyHead(nn.Module):
    """Three convolutions over both feature maps, side by side in channels, predict a map of displacements.

    A corner's displacement is the mean over the quarter of the map that it belongs to.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2 * width, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2, 3, padding=1),
        )

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Patch tokens `(batch, rows, columns, width)` of both -> shifts of the corners `(batch, 4, 2)`."""
        maps = torch.cat([first, second], dim=-1).permute(0, 3, 1, 2)
        quarters = functional.adaptive_avg_pool2d(self.layers(maps), 2)  # (batch, 2, 2, 2)
        return quarters.flatten(2).transpose(1, 2)
