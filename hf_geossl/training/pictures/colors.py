"""Colours of patches, by their features or by their places, and of classes; the demo's Space imports it without the data's libraries."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import ImageColor

# Okabe and Ito's colours (Color Universal Design, 2008), which people with any colour vision can distinguish
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK = "#0072B2", "#D55E00", "#CC79A7", "#000000"
AREAS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, BLUE, VERMILION)

# the corners of the colour code: top left, top right, bottom left, bottom right
_CORNERS = torch.tensor([[[235, 64, 52], [250, 204, 40]], [[52, 84, 224], [40, 190, 120]]], dtype=torch.float32)


@dataclass(frozen=True)
class FeatureColors:
    """Colours of patch features by three of their directions, each from its 2nd to its 98th percentile.

    Args:
        center (`torch.Tensor` of shape `(channels,)`): The mean of the features that they are fitted to.
        directions (`torch.Tensor` of shape `(channels, 3)`): The first three principal components of those. The sign of each
            is arbitrary and fixed so that most of its weights are positive.
        low, high (`torch.Tensor` of shape `(3,)`): What is painted black, and what in full, along each.
    """

    center: torch.Tensor
    directions: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def fit(cls, tokens: torch.Tensor) -> "FeatureColors":
        """Fits colours to patch features `(images, rows, columns, channels)`, at least 3 channels, of all images together."""
        flat = tokens.double().flatten(0, -2)
        center = flat.mean(dim=0)
        flat = flat - center
        _, vectors = torch.linalg.eigh(flat.T @ flat)
        vectors = vectors[:, -3:].flip(-1)
        vectors = vectors * torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)
        components = flat @ vectors
        return cls(center, vectors, components.quantile(0.02, dim=0), components.quantile(0.98, dim=0))

    def paint(self, tokens: torch.Tensor) -> torch.Tensor:
        """Colours of features `(images, rows, columns, channels)`: float32 `(images, rows, columns, 3)` in [0, 1]."""
        components = (tokens.double() - self.center) @ self.directions
        return ((components - self.low) / (self.high - self.low).clamp_min(1e-12)).clamp(0, 1).float()


def principal_components(tokens: torch.Tensor) -> torch.Tensor:
    """Colours patch tokens by their own first three principal components, over all images together; see `FeatureColors`."""
    return FeatureColors.fit(tokens).paint(tokens)


def turned_towards(tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Moves features to where they lie nearest those that another network has of the same patches.

    What tells nothing of how good features are is made alike: their mean, their overall size, and the directions of their
    channels, by the rotation (or reflection) of least squared distance. How far patches lie apart stays as it was.

    Args:
        tokens, others (`torch.Tensor` of shape `(..., channels)`): The features, patch by patch the same.

    Returns:
        `torch.Tensor` of the same shape, float64.

    Source: the orthogonal Procrustes problem (Schönemann 1966).
    """
    moved, fixed = (features.double().flatten(0, -2) for features in (tokens, others))
    center = fixed.mean(dim=0)
    moved, fixed = moved - moved.mean(dim=0), fixed - center
    left, _, right = torch.linalg.svd(moved.T @ fixed)
    moved = moved @ (left @ right) * (fixed.norm() / moved.norm().clamp_min(1e-12))
    return (moved + center).view(tokens.shape)


def color_code(side: int) -> torch.Tensor:
    """Colours of a square of patches, uint8 of shape `(side, side, 3)`: red, yellow, blue and green at the corners."""
    corners = _CORNERS.permute(2, 0, 1)[None]
    spread = torch.nn.functional.interpolate(corners, (side, side), mode="bilinear", align_corners=True)
    return spread[0].permute(1, 2, 0).round().to(torch.uint8)


def area_colours(count: int) -> np.ndarray:
    """Colours `(count, 3)` of classes and instances, in [0, 1], no two alike up to 1,000.

    The first seven can be distinguished with any colour vision; each next one is that of a grid which differs most from all
    before it, by its distance in Oklab (Ottosson, 2020).
    """
    colours = np.array([ImageColor.getrgb(colour) for colour in AREAS]) / 255
    if count > len(colours):
        grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 13)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        places = _oklab(grid)
        seen = (places[:, 0] > 0.3) & (places[:, 0] < 0.92)  # neither ink nor paper
        grid, places = grid[seen], places[seen]
        nearest = np.linalg.norm(places[:, None] - _oklab(colours), axis=-1).min(axis=1)
        chosen = []
        for _ in range(count - len(colours)):
            chosen.append(int(nearest.argmax()))
            nearest = np.minimum(nearest, np.linalg.norm(places - places[chosen[-1]], axis=-1))
        colours = np.concatenate([colours, grid[chosen]])
    return colours[:count].reshape(-1, 3)


def _oklab(colours: np.ndarray) -> np.ndarray:
    """Places `(n, 3)` of sRGB colours in a space whose distances are about those that people see: lightness first."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    ).T  # fmt: skip
    places: np.ndarray = np.cbrt(cones) @ np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    ).T  # fmt: skip
    return places
