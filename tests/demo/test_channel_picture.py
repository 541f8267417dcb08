"""Pictures of any channels: the values that the model gets, and the false colours that people see."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.demo.channel_picture import ChannelPicture, displayed, stack_units
from hf_geossl.demo.pictures import read_upload
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers.demo_models import BANDS, FORMATS, encoded, noise, stored


def opened(kind: str, seed: int = 0) -> ChannelPicture:
    picture = read_upload(encoded(kind, seed), FORMATS[kind])
    assert isinstance(picture, ChannelPicture)
    return picture


def units_of(kind: str, seed: int = 0) -> np.ndarray:
    pixels = stored(kind, seed).astype(np.float64)
    return (pixels[..., ::-1] + 1) / 4 if kind == "bands" else pixels / 4095


def stretched(values: np.ndarray, limits: np.ndarray | None = None) -> np.ndarray:
    """One channel from its percentiles 2 and 98 to 0 and 255."""
    ordered = np.sort((values if limits is None else limits).ravel())
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.02, 0.98))
    return np.round(np.clip((values - low) / (high - low), 0, 1) * 255)


@pytest.mark.parametrize("kind", FORMATS)
def test_values_are_those_of_the_file_in_units_and_move_as_a_picture_does(kind: str) -> None:
    picture, units = opened(kind), units_of(kind)
    assert (picture.size, picture.width, picture.height) == ((32, 32), 32, 32)
    np.testing.assert_allclose(picture.units().permute(1, 2, 0), units, atol=1e-6)
    cut = picture.crop((3, 4, 13, 24))
    assert cut.size == (10, 20)
    np.testing.assert_allclose(cut.units().permute(1, 2, 0), units[4:24, 3:13], atol=1e-6)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_allclose(turned.units().permute(1, 2, 0), np.rot90(units), atol=1e-6)
    halved = picture.resize((16, 16), Image.Resampling.BOX)
    np.testing.assert_allclose(
        halved.units().permute(1, 2, 0), units.reshape(16, 2, 16, 2, -1).mean(axis=(1, 3)), atol=1e-6
    )
    assert picture.tobytes() == opened(kind).tobytes() != opened(kind, 1).tobytes()


def test_false_colours_are_the_channels_that_are_chosen_from_their_percentiles() -> None:
    picture, units = opened("bands"), units_of("bands")
    for channels, places in [(None, (4, 3, 2)), ((0, 1, 4), (0, 1, 4)), ((1,), (1, 1, 1))]:
        expected = np.stack([stretched(units[..., place]) for place in places], axis=-1)
        for _ in range(2):  # computed, and remembered
            np.testing.assert_allclose(np.asarray(displayed(picture, channels)).astype(int), expected, atol=1)
    gray, values = opened("gray"), units_of("gray")[..., 0]
    np.testing.assert_allclose(
        np.asarray(displayed(gray)).astype(int), np.repeat(stretched(values)[..., None], 3, -1), atol=1
    )


def test_another_image_is_shown_in_the_colours_of_the_picture() -> None:
    picture, units = opened("gray"), units_of("gray")[..., 0]
    shown = picture.display(picture.units() / 2)
    np.testing.assert_allclose(np.asarray(shown)[..., 0].astype(int), stretched(units / 2, units), atol=1)


def test_channels_of_8_bits_are_shown_as_they_are() -> None:
    pixels = torch.arange(48, dtype=torch.uint8).view(4, 4, 3)
    described = ImageFormat((1, 2, 3), ("a", "b", "c"), mean=(0.5,) * 3, std=(0.2,) * 3)
    picture = ChannelPicture.from_pixels(pixels, described)
    np.testing.assert_array_equal(np.asarray(picture.displayed()), pixels)
    np.testing.assert_array_equal(np.asarray(picture.displayed((2,)))[..., 0], pixels[..., 2])
    torch.testing.assert_close(picture.units(), pixels.permute(2, 0, 1) / 255)


def test_pictures_are_stacked_in_units() -> None:
    torch.testing.assert_close(
        stack_units([opened("bands"), opened("bands", 1)]),
        torch.from_numpy(np.stack([units_of("bands", seed) for seed in range(2)])).permute(0, 3, 1, 2).float(),
    )
    red = noise(0)
    assert displayed(red, (0, 1, 4)) is red
    np.testing.assert_allclose(stack_units([red])[0].permute(1, 2, 0), np.asarray(red) / 255, atol=1e-6)
    assert stack_units([opened("bands")]).shape[1] == BANDS.num_channels
