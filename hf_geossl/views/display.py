"""Crops of any images as pictures that people can look at: false colours."""

from collections.abc import Sequence

import torch

from hf_geossl.modeling.image_format import RGB_NAMES, ImageFormat

LOW, HIGH = 0.02, 0.98  # percentiles that become black and white where 8 bits do not say what is
Limits = tuple[torch.Tensor, torch.Tensor]


def displayed_channels(image_format: ImageFormat, channels: Sequence[int] | None = None) -> tuple[int, ...]:
    """Places of the channels that are shown as red, green and blue; one alone is shown in grey.

    Args:
        image_format (`ImageFormat`): What the images are.
        channels (`Sequence[int]`, *optional*): Places to show, from 0: one or three. By default those that are called red,
            green and blue, else the first three, else the first.

    Raises:
        ValueError: For other `channels`.
    """
    count = image_format.num_channels
    if channels is not None:
        if len(channels) not in (1, 3) or not all(0 <= channel < count for channel in channels):
            raise ValueError(f"channels must be one or three places from 0 to {count - 1}, got {list(channels)}")
        return tuple(channels)
    if set(RGB_NAMES) <= set(image_format.names):
        return tuple(image_format.names.index(name) for name in RGB_NAMES)
    return (0, 1, 2) if count >= 3 else (0,)


def display_limits(
    crops: torch.Tensor, image_format: ImageFormat, channels: Sequence[int] | None = None
) -> Limits | None:
    """Values that become black and white, for each image and channel shown; None for images of 8 bits, shown as they are.

    They are percentiles 2 and 98, of all three channels together where these are red, green and blue.

    Args:
        crops (`torch.Tensor` of shape `(..., channels, height, width)`): float32 in units of the value range.
        image_format, channels: See `displayed_channels`.

    Returns:
        Two `torch.Tensor` of shape `(..., 1 or 3, 1, 1)`, or None.
    """
    if image_format.is_uint8:
        return None
    shown = crops[..., list(displayed_channels(image_format, channels)), :, :].float()
    together = image_format.is_rgb and channels is None
    flat = shown.flatten(-3)[..., None, :] if together else shown.flatten(-2)
    ordered, last = flat.sort(dim=-1).values, flat.shape[-1] - 1  # torch.quantile refuses 16 million values
    low, high = (ordered[..., round(share * last), None, None] for share in (LOW, HIGH))
    return low, high


def to_display(
    crops: torch.Tensor,
    image_format: ImageFormat,
    channels: Sequence[int] | None = None,
    limits: Limits | None = None,
) -> torch.Tensor:
    """Crops as pictures in false colours.

    Args:
        crops (`torch.Tensor` of shape `(..., channels, height, width)`): As `Views.views` makes them: uint8 (or float32 in
            0..255 that is not rounded), or float32 in units of the value range.
        image_format (`ImageFormat`): What they are.
        channels (`Sequence[int]`, *optional*): Which channels are shown, see `displayed_channels`.
        limits (*optional*): What `display_limits` gave for other crops of the same images, so that they can be compared;
            by default those of the crops.

    Returns:
        `torch.Tensor` of shape `(..., 3, height, width)`: uint8, red, green and blue.
    """
    places = displayed_channels(image_format, channels)
    shown = crops if image_format.is_rgb and places == (0, 1, 2) else crops[..., list(places), :, :]
    if not image_format.is_uint8:
        found = limits or display_limits(crops, image_format, channels)
        assert found is not None
        low, high = found
        shown = ((shown.float() - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) * 255
    if shown.dtype != torch.uint8:
        shown = shown.clamp(0, 255).round().to(torch.uint8)
    return shown if len(places) == 3 else shown.expand(*shown.shape[:-3], 3, *shown.shape[-2:])
