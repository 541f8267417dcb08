"""The one description of what an image is: values to units, JSON and back, and refusals that name the argument."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.modeling.image_format import IMAGENET_MEAN, ImageFormat

FOUR = ImageFormat(
    channels=(4, 3, 2, 8),
    names=("red", "green", "blue", "infrared"),
    dtype="uint16",
    value_range=((0, 4095),),
    range_source="bits:12",
    mean=(0.1, 0.2, 0.3, 0.4),
    std=(0.5, 0.6, 0.7, 0.8),
)
GRAY = {"channels": "gray", "names": ["gray"], "mean": [0.5], "std": [0.25]}


def test_the_default_is_rgb_of_8_bits_with_imagenets_statistics() -> None:
    plain = ImageFormat()
    assert plain.is_rgb8
    assert plain.is_rgb
    assert plain.num_channels == 3
    assert plain.mean == (0.485, 0.456, 0.406)
    assert plain.describe() == "3 channels: red, green, blue; uint8, values 0 to 255 (type)"


@pytest.mark.parametrize("described", [ImageFormat(), FOUR, ImageFormat(**GRAY)])
def test_a_format_goes_through_json(described: ImageFormat) -> None:
    again = ImageFormat.from_dict(json.loads(json.dumps(described.to_dict())))
    assert again == described
    assert hash(again) == hash(described)


def test_descriptions_name_channels_and_range() -> None:
    assert FOUR.describe() == (
        "4 channels: red (4), green (3), blue (2), infrared (8); uint16, values 0 to 4095 (bits:12)"
    )
    assert ImageFormat(**GRAY).describe() == "1 channel: gray; uint8, values 0 to 255 (type)"
    assert not FOUR.is_rgb
    assert not FOUR.is_rgb8
    assert not ImageFormat(**GRAY).is_rgb8
    assert ImageFormat(**GRAY).is_uint8
    assert ImageFormat(channels=(3, 2, 1)).is_rgb  # of a file with blue, green, red: no fast path
    assert not ImageFormat(channels=(3, 2, 1)).is_rgb8
    assert not ImageFormat(value_range=((0, 100),)).is_uint8


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("ranges", [((100, 300),), ((0, 50), (100, 300), (-20, 20))])
@pytest.mark.parametrize("last", [True, False])
def test_stored_values_become_units_without_clipping(dtype: str, ranges: Any, last: bool) -> None:
    described = ImageFormat(dtype=dtype, value_range=ranges)
    stored = np.random.default_rng(0).integers(0, 128, (5, 4, 3)).astype(dtype)
    pairs = np.array(ranges if len(ranges) == 3 else ranges * 3, dtype=np.float64)
    expected = (stored.astype(np.float64) - pairs[:, 0]) / (pairs[:, 1] - pairs[:, 0])
    assert expected.min() < 0  # values below the range stay below
    pixels, expected = (stored, expected) if last else (stored.transpose(2, 0, 1), expected.transpose(2, 0, 1))
    for units in (
        described.to_unit(pixels, channels_last=last),
        described.to_unit(torch.from_numpy(pixels.copy()), channels_last=last).numpy(),
        described.to_unit(torch.from_numpy(pixels.copy())[None], channels_last=last)[0].numpy(),
    ):
        assert units.dtype == np.float32
        np.testing.assert_allclose(units, expected, rtol=1e-6, atol=1e-6)


def test_large_integers_keep_their_small_differences() -> None:
    described = ImageFormat(
        channels="gray", names=("gray",), mean=(0,), std=(1,), dtype="uint32", value_range=((4e9, 4e9 + 100),)
    )
    stored = np.array([[[4_000_000_001], [4_000_000_099]]], dtype=np.uint32)  # float32 would make both 4e9 + 0 or + 256
    np.testing.assert_allclose(described.to_unit(stored).ravel(), [0.01, 0.99], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": "bgr"}, 'channels must be "rgb", "gray" or numbers'),
        ({"channels": (0, 1, 2)}, "channels are counted from 1"),
        ({"channels": (1.5, 1, 2)}, "channels must be whole numbers"),
        ({"channels": ()}, "channels are counted from 1"),
        ({"channels": 3}, "channels must be a list"),
        ({"channels": (1, 2)}, "names must have one entry for each of the 2 channels"),
        ({"names": "rgb"}, "names must be a list"),
        ({"dtype": "int64"}, "dtype must be one of uint8"),
        ({"value_range": ((5, 5),)}, "low < high"),
        ({"value_range": ((0, 1), (0, 1))}, "value_range must be one pair, or one for each of the 3"),
        ({"value_range": (0, 255)}, "value_range must be a list"),
        ({"value_range": ((0, float("nan")),)}, "value_range must be finite"),
        ({"mean": (0.5,)}, "mean must have one entry for each of the 3"),
        ({"mean": ("a", "b", "c")}, "mean must be a list of numbers"),
        ({"mean": (123.675, 116.28, 103.53)}, "mean and std must be those of values mapped to 0..1.*divide by 255"),
        ({"std": (1, 0, 1)}, "std must be greater than 0"),
    ],
)  # fmt: skip
def test_formats_that_make_no_sense_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFormat(**fields)


def test_unknown_entries_and_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="image_format has no chanels; it has channels, names"):
        ImageFormat.from_dict({"chanels": "rgb"})
    with pytest.raises(ValueError, match=r"3 channels in dimension -1, got shape \(3, 8, 8\)"):
        ImageFormat().to_unit(np.zeros((3, 8, 8)))


def test_the_description_is_part_of_the_configuration(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 32}
    assert GTSAConfig(**fields).image_format is None
    assert GTSAConfig(**fields).get_image_format() == ImageFormat()
    assert GTSAConfig(**fields, num_channels=5).get_image_format() is None
    GTSAModel(GTSAConfig(**fields, num_channels=4, image_format=FOUR.to_dict())).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).get_image_format() == FOUR
    assert AutoModel.from_pretrained(tmp_path)(torch.zeros(1, 4, 32, 32)).last_hidden_state.shape == (1, 5, 16)
    code = f"from transformers import AutoConfig as A; print(A.from_pretrained({str(tmp_path)!r}, trust_remote_code=True).image_format['range_source'])"
    stranger = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert stranger.stdout.strip() == "bits:12", stranger.stderr[-2000:]
    with pytest.raises(Exception, match="num_channels must be 4, as image_format says"):
        GTSAConfig(**fields, image_format=FOUR.to_dict())
    with pytest.raises(Exception, match="image_format has no bands"):
        GTSAConfig(**fields, image_format={"bands": 4})


def test_imagenets_statistics_are_those_of_transformers() -> None:
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    assert list(IMAGENET_MEAN) == IMAGENET_DEFAULT_MEAN
    assert list(ImageFormat().std) == IMAGENET_DEFAULT_STD
