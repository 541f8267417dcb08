"""What the images of views are: given flat, as a format, or implied; one with the statistics."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from hf_geossl import GTSAViews
from hf_geossl.methods import METHODS
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.base import Views
from hf_geossl.views.crops import read_pixels
from hf_geossl.views.image_settings import ImageSettings, implied_image_settings
from hf_geossl.views.photometric import Normalization
from hf_geossl.views.settings import group

CLASSES = [method.load("views") for method in METHODS.values()]
INFRARED = ImageFormat(
    (4, 3, 2), ("infrared", "red", "green"), "uint16", ((0, 4095),), "bits:12", (0.3, 0.2, 0.1), (0.1, 0.2, 0.3)
)


@pytest.mark.parametrize("cls", CLASSES)
def test_flat_settings_and_a_format_make_the_same_views(cls: type[Views]) -> None:
    assert cls().image_format == ImageFormat()
    flat = cls(
        channels=[4, 3, 2],
        channel_names=["infrared", "red", "green"],
        dtype="uint16",
        value_range=[0, 4095],
        mean=[0.3, 0.2, 0.1],
        std=[0.1, 0.2, 0.3],
    )
    whole = cls(image_format=INFRARED)
    assert flat.image_format == dataclasses.replace(INFRARED, range_source="type")
    assert whole.image_format == INFRARED
    assert cls(image_format=INFRARED.to_dict()) == whole
    assert dataclasses.replace(whole, image=flat.image) == flat
    assert whole.channel_names == ("infrared", "red", "green")
    assert json.loads(json.dumps(dataclasses.asdict(whole)))["image"]["value_range"] == [[0, 4095]]
    assert whole.describe() != cls(mean=INFRARED.mean, std=INFRARED.std).describe()
    assert "uint16" in whole.describe()
    assert "hue" not in whole.describe()


def test_names_and_range_follow_from_channels_and_type() -> None:
    views = GTSAViews(channels=(2, 5), dtype="int16", mean=(0.5, 0.5), std=(0.2, 0.2))
    assert views.image_format.names == ("channel 2", "channel 5")
    assert views.image_format.value_range == ((-32768, 32767),)
    assert GTSAViews(channels="gray", mean=(0.5,), std=(0.2,)).image_format.names == ("gray",)
    assert implied_image_settings({}) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": (1, 2, 3, 4, 5)}, "mean and std must have a number for each of the 5 channels, got 3 and 3"),
        ({"channels": "all"}, 'channels must be "rgb", "gray" or numbers'),
        ({"channels": (0, 1, 2)}, "counted from 1"),
        ({"dtype": "complex64"}, "dtype must be one of 'uint8', "),
        ({"value_range": (5, 5)}, "low < high"),
        ({"value_range": ((0, 1), (0, 1))}, "one pair, or one for each of the 3 channels"),
        ({"channel_names": ("red", "green")}, "names must have one entry for each of the 3 channels"),
    ],
)
def test_settings_that_make_no_image_get_a_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GTSAViews(**settings)


def test_settings_are_those_of_a_format() -> None:
    assert ImageSettings.of(INFRARED).describe(INFRARED.mean, INFRARED.std) == INFRARED


def test_pixels_are_read_as_the_format_says() -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4096, (6, 5, 4), dtype=np.uint16)
    expected = torch.from_numpy((stored[:, :, [3, 2, 1]] / 4095).astype(np.float32))
    torch.testing.assert_close(read_pixels(stored, INFRARED), expected)
    decoded = read_pixels(stored, INFRARED)
    assert read_pixels(decoded, INFRARED) is decoded
    eight = ImageFormat((1, 2, 3, 4, 5), tuple("abcde"), mean=(0.5,) * 5, std=(0.2,) * 5)
    values = rng.integers(0, 256, (6, 5, 5), dtype=np.uint8)
    assert torch.equal(read_pixels(values, eight), torch.from_numpy(values))


def test_views_that_do_not_say_what_images_are_make_rgb_of_8_bits() -> None:
    @dataclasses.dataclass(frozen=True, init=False)
    class Plain(Views):
        normalization: Normalization = group(Normalization())

        views = augment = normalize = main_crops = describe = lambda self, *_: None  # type: ignore[assignment]

    plain = Plain(image_format=ImageFormat(mean=(0.1, 0.2, 0.3)))
    assert (plain.mean, plain.image_format.is_rgb8, plain.in_units) == ((0.1, 0.2, 0.3), True, False)
    with pytest.raises(
        ValueError, match="Plain makes views of RGB of 8 bits alone, got images of 3 channels: infrared"
    ):
        Plain(image_format=INFRARED)
