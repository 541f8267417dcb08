"""Trunks for images of other channels, patches of another size, and position tables of another size."""

from dataclasses import replace
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from hf_geossl.conversion.checkpoint_file import State
from hf_geossl.conversion.trunk_weights import SourceTrunk
from hf_geossl.modeling.positions import resample_positions

_PATCHES, _POSITIONS = "embeddings.patch_embeddings.weight", "embeddings.position_embeddings"


def adapt_channels(filters: torch.Tensor, num_channels: int, channel_weights: str = "mean") -> torch.Tensor:
    """Makes patch filters for another number of channels, whose response to a grey image is of the same size.

    Args:
        filters (`torch.Tensor` of shape `(hidden_size, channels, patch_size, patch_size)`): Of the patch embedding.
        num_channels (`int`): Of the new images.
        channel_weights (`str`): `"mean"` gives each channel the mean filter, `"repeat"` the filters in turn; either is scaled
            by old over new channels.

    Returns:
        `torch.Tensor` of shape `(hidden_size, num_channels, patch_size, patch_size)`.
    """
    if channel_weights not in ("mean", "repeat"):
        raise ValueError(f"channel_weights must be 'mean' or 'repeat', got {channel_weights!r}")
    channels = filters.shape[1]
    if channel_weights == "mean":
        # the mean filter in each of N channels sums to 1/channels of all filters, N times
        return filters.mean(dim=1, keepdim=True).expand(-1, num_channels, -1, -1) * (channels / num_channels)
    order = torch.arange(num_channels) % channels
    return filters[:, order] * (channels / num_channels)


@lru_cache(maxsize=16)
def _resize_matrix(old: int, new: int) -> torch.Tensor:
    """The matrix `(new * new, old * old)` that resizes images of one patch bilinearly, with antialiasing where they shrink."""
    basis = torch.eye(old * old, dtype=torch.float64).view(old * old, 1, old, old)
    resized = nn.functional.interpolate(basis, size=(new, new), mode="bilinear", align_corners=False, antialias=True)
    return resized.flatten(1).T


def adapt_patch_size(filters: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Makes patch filters for patches of another size, whose response to a patch that is resized with them is the same.

    Args:
        filters (`torch.Tensor` of shape `(hidden_size, channels, old, old)`): Of the patch embedding.
        patch_size (`int`): The new side of a patch in pixels.

    Returns:
        `torch.Tensor` of shape `(hidden_size, channels, patch_size, patch_size)`: Exactly so where patches grow, as nearly as
        can be on average where they shrink.

    Source: arXiv 2212.08013, section 3.4 (PI-resize): the pseudo-inverse of the transposed resizing matrix.
    """
    matrix = _resize_matrix(filters.shape[-1], patch_size)
    resized = filters.double().flatten(2) @ torch.linalg.pinv(matrix)  # w_new = pinv(B^T) w, for rows w
    return resized.view(*filters.shape[:2], patch_size, patch_size).to(filters.dtype)


def _adapt_positions(
    state: State, trunk: SourceTrunk, patch_size: int, size: tuple[int, int]
) -> tuple[int, int] | None:
    """Resamples the position table to the grid of another image size; gives the old grid where it is another."""
    fields, positions = trunk.fields, state[_POSITIONS]
    old = fields["image_size"]
    height, width = (old, old) if isinstance(old, int) else old
    grid = (height // fields["patch_size"], width // fields["patch_size"])
    new = (size[0] // patch_size, size[1] // patch_size)
    if grid == new:
        return None
    prefix = positions.shape[1] - grid[0] * grid[1]
    table = resample_positions(
        positions[0, prefix:].unflatten(0, grid),
        *new,
        fields.get("position_interpolation_offset", 0.0),
        fields.get("position_interpolation", "bicubic"),
    )
    state[_POSITIONS] = torch.cat([positions[:, :prefix], table.flatten(0, 1)[None]], dim=1)
    return grid


def adapt_source(
    trunk: SourceTrunk,
    *,
    num_channels: int | None = None,
    channel_weights: Literal["mean", "repeat"] = "mean",
    patch_size: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> tuple[SourceTrunk, list[str]]:
    """Makes a trunk for images of another shape.

    Args:
        trunk (`SourceTrunk`): It is not changed.
        num_channels (`int`, *optional*): Channels of the images.
        channel_weights (`str`): How filters for these are made: see `adapt_channels`.
        patch_size (`int`, *optional*): Side of a patch in pixels. Without an `image_size` the grid of patches stays, so that
            images are larger or smaller.
        image_size (`int` or `(height, width)`, *optional*): Size in pixels that positions are for.

    Returns:
        `tuple[SourceTrunk, list[str]]`: The trunk, and one line for each change. Its `pretraining` stays as it was.

    Raises:
        ValueError: If a size is not positive, the patch does not divide the image, or `channel_weights` is another word.
    """
    state, fields, lines = dict(trunk.state), dict(trunk.fields), []
    filters = state[_PATCHES]
    if num_channels is not None and num_channels != filters.shape[1]:
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        state[_PATCHES] = adapt_channels(filters, num_channels, channel_weights).contiguous()
        how = "the mean of its filters" if channel_weights == "mean" else "its filters in turn"
        lines.append(
            f"{trunk.name} has {filters.shape[1]} channels: {how} in each of {num_channels}, times "
            f"{filters.shape[1]}/{num_channels}"
        )
        fields["num_channels"] = num_channels
        fields.pop("image_format", None)
    old_patch = fields["patch_size"]
    new_patch = patch_size or old_patch
    old_size = fields["image_size"]
    height, width = (old_size, old_size) if isinstance(old_size, int) else old_size
    if image_size is None:
        size = (height // old_patch * new_patch, width // old_patch * new_patch)
    else:
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    if min(new_patch, *size) < 1 or size[0] % new_patch or size[1] % new_patch:
        raise ValueError(f"image_size must be a positive multiple of patch_size, got {image_size} and {new_patch}")
    if new_patch != old_patch:
        state[_PATCHES] = adapt_patch_size(state[_PATCHES], new_patch)
        lines.append(f"{trunk.name} has patches of {old_patch} pixels: resampled to {new_patch} by pseudo-inverse")
    if _POSITIONS in state and (grid := _adapt_positions(state, trunk, new_patch, size)):
        lines.append(
            f"{trunk.name} has positions for {grid[0]} x {grid[1]} patches: resampled to {size[0] // new_patch} x "
            f"{size[1] // new_patch}"
        )
    fields |= {"patch_size": new_patch, "image_size": size[0] if size[0] == size[1] else size}
    return replace(trunk, fields=fields, state=state), lines
