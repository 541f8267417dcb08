"""Resizing in groups of four channels gives the values of torch's and Pillow's own resizing, channel by channel."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hf_geossl.views.crops import cut_crops, cut_crops_without_antialias
from hf_geossl.views.resizing import ChannelGroups, prepare, resizer

BOXES = [(0, 0, 53, 41), (3, 5, 30, 40), (52, 40, 53, 41), (10, 0, 12, 41)]


def image(channels: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Smooth noise of 53 x 41 pixels."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(1, channels, 7, 9, generator=generator)
    smooth = F.interpolate(coarse, (41, 53), mode="bicubic")[0].permute(1, 2, 0)
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8) if dtype == torch.uint8 else smooth.contiguous()


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 8, 13, 20])
def test_groups_of_channels_give_the_values_of_each_channel_alone(channels: int, antialias: bool) -> None:
    pixels = image(channels)
    assert isinstance(prepare(pixels), ChannelGroups) == (channels not in (3, 4))
    for box in BOXES:
        x1, y1, x2, y2 = box
        resized = resizer(prepare(pixels), 16, antialias=antialias)(box)
        assert resized.shape == (1, channels, 16, 16)
        if channels not in (3, 4):
            assert resized.permute(0, 2, 3, 1).is_contiguous()
        for channel in range(channels):  # as the one channel of a colour image
            colors = pixels[y1:y2, x1:x2, channel].expand(1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            alone = F.interpolate(colors, (16, 16), mode="bilinear", align_corners=False, antialias=antialias)
            assert torch.equal(resized[:, channel], alone[:, 0])


@pytest.mark.parametrize("channels", [1, 5, 13])
def test_crops_are_pillows_up_to_a_grey_level_and_its_own_bits_where_they_are_to_be(channels: int) -> None:
    pixels = image(channels)
    fast, exact = (cut_crops(pixels, BOXES, 24, exact=exact) for exact in (False, True))
    for place, (x1, y1, x2, y2) in enumerate(BOXES):
        for channel in range(channels):
            plane = Image.fromarray(np.ascontiguousarray(pixels[y1:y2, x1:x2, channel].numpy()))
            pillow = np.array(plane.resize((24, 24), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(exact[place, channel], pillow)
            assert np.abs(fast[place, channel].int().numpy() - pillow).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 5, 13])
def test_floating_point_keeps_its_precision(channels: int) -> None:
    pixels = image(channels, torch.float32) * 3 - 1  # values outside 0 and 1 too
    smooth, exact = (cut_crops(pixels, BOXES[:2], 24, exact=exact) for exact in (False, True))
    assert smooth.dtype == exact.dtype == torch.float32
    torch.testing.assert_close(smooth, exact, atol=1e-5, rtol=1e-5)
    sharp = cut_crops_without_antialias(pixels, [(0, 0, 53, 41)], 41, flips=[True])
    rows = np.stack([np.interp((np.arange(41) + 0.5) * 53 / 41 - 0.5, np.arange(53), row) for row in pixels[:, :, 0]])
    np.testing.assert_allclose(sharp[0, 0].flip(-1), rows, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 5, 13])
@pytest.mark.parametrize("size", [3, 24, 40, 90])
def test_floats_are_resized_as_by_torch_in_double_precision(channels: int, size: int) -> None:
    pixels = image(channels, torch.float32) * 5 - 2
    for x1, y1, x2, y2 in [*BOXES, (0, 0, 1, 1), (5, 7, 6, 30)]:
        found = resizer(prepare(pixels), size, antialias=True)((x1, y1, x2, y2))
        box = pixels[None, y1:y2, x1:x2].permute(0, 3, 1, 2).double()
        expected = F.interpolate(box, (size, size), mode="bilinear", align_corners=False, antialias=True)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)


def test_images_in_other_memory_are_the_same_images() -> None:
    pixels = image(5)
    planar = pixels.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(cut_crops(planar, BOXES, 8), cut_crops(pixels, BOXES, 8))
    assert torch.equal(cut_crops(prepare(pixels), BOXES, 8), cut_crops(pixels, BOXES, 8))
    assert cut_crops(pixels, [], 8).shape == (0, 5, 8, 8)
    unrounded = cut_crops_without_antialias(prepare(pixels), BOXES, 8, flips=[False] * 4, unrounded=True)
    rounded = cut_crops_without_antialias(pixels, BOXES, 8, flips=[False] * 4)
    assert unrounded.dtype == torch.float32
    assert (unrounded - rounded).abs().max() <= 1
