"""Where patches lie: learned tables that are resampled to other grids, and rotations of queries and keys (RoPE)."""

import math
from typing import Any

import torch
from torch import nn

from .configuration_vit import GeometricViTConfig

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (patches, head_dim)


def resample_positions(
    positions: torch.Tensor, height: int, width: int, offset: float = 0.0, mode: str = "bicubic"
) -> torch.Tensor:
    """Resamples a table of position embeddings to another grid, in float32; the dtype stays.

    Args:
        positions (`torch.Tensor` of shape `(rows, columns, hidden_size)`): The table.
        height, width (`int`): The new grid, in patches.
        offset (`float`, defaults to 0.0): Added to `height` and `width` where the sampling step is computed, as DINO
            and GTSA do with 0.1; 0 resamples to the exact size.
        mode (`str`, defaults to `"bicubic"`): `"bicubic"` without antialiasing as DINO and GTSA, `"bicubic_antialias"`
            with Pillow's kernel as timm, or `"bilinear"` with antialiasing where the grid shrinks as LOCA
            (`jax.image.resize`).
    """
    grid_height, grid_width, _ = positions.shape
    if (height, width) == (grid_height, grid_width):
        return positions
    target: dict[str, Any] = {"size": (height, width)}
    if offset:
        # floats also where torch.jit.trace makes tensors of sizes
        target = {"scale_factor": (float((height + offset) / grid_height), float((width + offset) / grid_width))}
    table = positions.float().permute(2, 0, 1)[None]  # (1, D, grid_height, grid_width)
    method, antialias = mode.removesuffix("_antialias"), mode != "bicubic"
    table = nn.functional.interpolate(table, mode=method, align_corners=False, antialias=antialias, **target)
    return table[0].permute(1, 2, 0).to(positions.dtype)


class ViTRotaryPositions(nn.Module):
    """Rotary positions of DINOv3: patch centres from -1 to 1 along each side, so that any grid spans the same angles.

    Source: arXiv 2508.10104, section 3.2, without its random shift, jitter and rescaling in training.
    """

    def __init__(self, config: GeometricViTConfig) -> None:
        super().__init__()
        self.theta = config.rope_theta
        self.head_dim = config.hidden_size // config.num_attention_heads

    def forward(
        self, rows: int, columns: int, kept_tokens: torch.Tensor | None = None, device: torch.device | None = None
    ) -> Rotation:
        """Gives cosines and sines `(patches, head_dim)`, float32, of a grid's patches in raster order, or of those kept."""
        centres = [(torch.arange(side, device=device) + 0.5) / side * 2 - 1 for side in (rows, columns)]
        exponents = torch.arange(0, 1, 4 / self.head_dim, device=device)  # a quarter of the channels each: y, x, y, x
        places = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).flatten(0, 1)  # (patches, 2)
        if kept_tokens is not None:
            places = places[kept_tokens]
        angles = (2 * math.pi * places[:, :, None] * self.theta**-exponents).flatten(1).tile(2)
        return angles.cos(), angles.sin()


def rotate(tokens: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates the patch tokens, which are the last, of `(batch, heads, tokens, head_dim)` in pairs of channels half a head apart."""
    cosines, sines = (part.to(tokens.dtype) for part in rotation)
    prefix, patches = tokens.tensor_split([tokens.shape[2] - cosines.shape[0]], dim=2)
    first, second = patches.chunk(2, dim=3)
    turned = torch.cat([-second, first], dim=3)
    return torch.cat([prefix, patches * cosines + turned * sines], dim=2)
