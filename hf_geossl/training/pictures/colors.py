"""Colours of patches, by their features or by their places, and of classes; the demo's Space imports it without the data's libraries."""

import colorsys

import numpy as np
import torch
from PIL import ImageColor

# Okabe and Ito's colours (Color Universal Design, 2008), which people with any colour vision can distinguish
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK = "#0072B2", "#D55E00", "#CC79A7", "#000000"
AREAS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, BLUE, VERMILION)

# the corners of the colour code: top left, top right, bottom left, bottom right
_CORNERS = torch.tensor([[[235, 64, 52], [250, 204, 40]], [[52, 84, 224], [40, 190, 120]]], dtype=torch.float32)


def principal_components(tokens: torch.Tensor) -> torch.Tensor:
    """Colours patch tokens by their first three principal components, over all images together.

    Args:
        tokens (`torch.Tensor` of shape `(images, rows, columns, channels)`): Patch features, at least 3 channels.

    Returns:
        `torch.Tensor` of shape `(images, rows, columns, 3)`: In [0, 1]; each component from its 2nd to its 98th
        percentile. The sign of a component is arbitrary and fixed so that most of its weights are positive.
    """
    flat = tokens.double().flatten(0, 2)
    flat = flat - flat.mean(dim=0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    vectors = vectors[:, -3:].flip(-1)
    vectors = vectors * torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)
    components = flat @ vectors
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    colours = ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return colours.view(*tokens.shape[:3], 3).float()


def color_code(side: int) -> torch.Tensor:
    """Colours of a square of patches, uint8 of shape `(side, side, 3)`: red, yellow, blue and green at the corners."""
    corners = _CORNERS.permute(2, 0, 1)[None]
    spread = torch.nn.functional.interpolate(corners, (side, side), mode="bilinear", align_corners=True)
    return spread[0].permute(1, 2, 0).round().to(torch.uint8)


def area_colours(count: int) -> np.ndarray:
    """Colours `(count, 3)` of classes and instances, in [0, 1], no two alike.

    The first seven can be distinguished with any colour vision, the next fourteen are darker and lighter kinds of them.
    """
    base = np.array([ImageColor.getrgb(colour) for colour in AREAS]) / 255
    colours = [*base, *(base * 0.55), *(base * 0.45 + 0.55)]
    for index in range(len(colours), count):  # golden-ratio hues, at three lightnesses
        colours.append(np.array(colorsys.hls_to_rgb(index * 0.618 % 1, (0.35, 0.5, 0.65)[index % 3], 0.75)))
    return np.array(colours[:count]).reshape(-1, 3)
