"""The contact sheet: which images are in it, and what is shown of their values."""

import json

import numpy as np
import pytest

from hf_geossl.data.contact_sheet import MOST, SIDE, Thumbnails, draw_sheet
from hf_geossl.data.measuring.channel_statistics import ChannelStatistics
from hf_geossl.data.rasters import Raster


def statistics_of(pixels: np.ndarray) -> dict[str, list[ChannelStatistics]]:
    channels = [ChannelStatistics(pixels.dtype.name) for _ in range(pixels.shape[2])]
    for number, one in enumerate(channels):
        one.add(pixels[..., number])
    return {pixels.dtype.name: channels}


def test_the_same_images_are_chosen_in_any_order_and_after_saving():
    raster = Raster(np.zeros((2, 2, 1), np.uint8), "PNG")
    names = [f"{index}.png" for index in range(200)]
    forth, back = Thumbnails(), Thumbnails()
    for name in names:
        forth.add(name, raster)
    for name in reversed(names[50:]):
        back.add(name, raster)
    back = Thumbnails.from_state_dict(json.loads(json.dumps(back.state_dict())))
    for name in names[:50]:
        back.add(name, raster)
    assert [one.name for one in forth.found] == [one.name for one in back.found]
    assert len(forth.found) == MOST
    numbers = sorted(int(one.name.removesuffix(".png")) for one in forth.found)
    assert numbers[0] < 20
    assert numbers[-1] > 180


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_halves_of_an_image_keep_their_order_of_brightness(dtype, channels):
    pixels = np.full((300, 400, channels), 20, dtype)
    pixels[:, 200:] = 200
    thumbnails = Thumbnails()
    thumbnails.add("a.tif", Raster(pixels, "TIFF"))
    assert max(thumbnails.found[0].pixels.shape) <= SIDE
    sheet = np.asarray(draw_sheet(thumbnails, statistics_of(pixels), "title")).astype(int)
    top = 26  # below the title
    left, right = sheet[top + 60, 6 + 20], sheet[top + 60, 6 + 108]
    expected = (20, 200) if dtype == "uint8" else (0, 255)
    assert (left[0], right[0]) == pytest.approx(expected, abs=1)
    assert len(set(left)) == len(set(right)) == 1


def test_named_colours_are_shown_as_such_and_means_are_those_of_blocks():
    pixels = np.zeros((256, 256, 4), np.uint8)
    pixels[..., 3] = np.arange(256)  # red is the last
    raster = Raster(pixels, "TIFF", names=("nir", "blue", "green", "red"))
    thumbnails = Thumbnails()
    thumbnails.add("a.tif", raster)
    one = thumbnails.found[0]
    assert one.places == [3, 2, 1]
    assert one.pixels[0, :3, 0].tolist() == [0.5, 2.5, 4.5]
    assert one.pixels[..., 1:].max() == 0


def test_nothing_and_what_has_no_value_can_be_drawn():
    assert draw_sheet(Thumbnails(), {}, "nothing").width > 0
    pixels = np.full((4, 4, 1), np.nan, np.float32)
    thumbnails = Thumbnails()
    thumbnails.add("\udcff.tif", Raster(pixels, "TIFF"))
    assert draw_sheet(thumbnails, statistics_of(pixels), "title").height > 0
