"""Choosing what a model reads of images."""

from collections import Counter

import numpy as np
import pytest

from hf_geossl.data.measuring.channel_statistics import ChannelStatistics
from hf_geossl.data.measuring.format_choice import choose_format, parse_channels
from hf_geossl.data.measuring.image_statistics import Measurement
from hf_geossl.data.rasters import Raster
from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD, ImageFormat


def measured(pixels: np.ndarray, images: int = 4, **known: object) -> Measurement:
    """The measurement of equal images, `(height, width, channels)`."""
    result = Measurement()
    for index in range(images):
        result.add(f"{index}.tif", Raster(pixels, "TIFF", **known), [], sample=True)  # type: ignore[arg-type]
    return result


def ramp(dtype: str, low: float, high: float, channels: int = 1) -> np.ndarray:
    """`channels` channels of 100 values from `low` to `high`, each but the first a little darker."""
    values = np.linspace(low, high, 100)[:, None] * (1 - np.arange(channels) / 20)
    return values.reshape(10, 10, channels).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "known", "pair", "source"),
    [
        ("uint8", 0, 20, {}, (0, 255), "type"),
        ("uint16", 0, 4080, {}, (0, 4095), "bits:12"),
        ("uint16", 5, 255, {}, (0, 255), "bits:8"),
        ("uint16", 0, 256, {}, (0, 511), "bits:9"),
        ("uint16", 0, 65535, {}, (0, 65535), "bits:16"),
        ("uint16", 0, 900, {"bits": 12}, (0, 4095), "bits:12"),
        ("uint16", 0, 5000, {"bits": 12}, (0, 8191), "bits:13"),
        ("int16", 0, 1000, {}, (0, 1023), "bits:10"),
        ("uint32", 0, 2**31, {}, (0, 2**32 - 1), "bits:32"),
        ("float32", 0, 1, {}, (0, 1), "type"),
        ("float64", 0.25, 0.5, {}, (0, 1), "type"),
        ("uint16", 0, 0, {}, (0, 65535), "type"),
    ],
)
def test_the_range_follows_from_type_and_values(dtype, low, high, known, pair, source):
    chosen, _ = choose_format(measured(ramp(dtype, low, high), **known))
    assert (chosen.dtype, chosen.value_range, chosen.range_source) == (dtype, (pair,), source)


@pytest.mark.parametrize(("dtype", "low", "high"), [("int16", -1024, 3071), ("float32", 250, 310), ("float32", -1, 1)])
def test_values_without_a_fixed_range_are_mapped_by_percentiles(dtype, low, high):
    pixels = ramp(dtype, low, high)
    chosen, lines = choose_format(measured(pixels))
    expected = [np.percentile(np.repeat(pixels.ravel(), 4), q) for q in (0.1, 99.9)]
    assert chosen.value_range[0] == pytest.approx(expected, rel=1 / 2048)
    assert chosen.range_source == "percentiles:0.1,99.9"
    assert "nothing is clipped" in lines[0]


@pytest.mark.parametrize(
    ("word", "ranges"),
    [
        ("type", ((0, 65535),)),
        ("0,4095", ((0, 4095),)),
        (" -5 , 1e3 ", ((-5, 1000),)),
        ("window:40,400", ((-160, 240),)),
        ("0,10;5,20", ((0, 10), (5, 20))),
        ("percentiles:10,90", tuple(tuple(np.percentile(np.repeat(ramp("uint16", 0, 900, 2)[..., c], 4), [10, 90])) for c in (0, 1))),
    ],
)  # fmt: skip
def test_a_range_that_is_given_is_taken(word, ranges):
    chosen, _ = choose_format(measured(ramp("uint16", 0, 900, 2)), channels="all", value_range=word)
    assert np.array(chosen.value_range) == pytest.approx(np.array(ranges))


@pytest.mark.parametrize(
    "word", ["", "4095", "0,1,2", "a,b", "5,5", "9,2", "percentiles:90,10", "percentiles:-1,50", "window:40,0", "window:40", "bits:12", "0,nan"]
)  # fmt: skip
def test_a_range_that_makes_no_sense_is_refused_by_name(word):
    with pytest.raises(ValueError, match="--value_range"):
        choose_format(measured(ramp("uint16", 0, 900, 2)), value_range=word)


@pytest.mark.parametrize(
    ("channels", "count", "numbers"),
    [
        (None, 1, "rgb"), (None, 5, "rgb"), ("rgb", 2, "rgb"), ("gray", 5, "gray"), ("grey", 1, "gray"),
        ("all", 1, "gray"), ("all", 2, (1, 2)), ("all", 3, (1, 2, 3)), ("all", 13, tuple(range(1, 14))),
        ("4,3,2,1", 4, (4, 3, 2, 1)), ("2", 3, (2,)), ("1 3", 3, (1, 3)),
    ],
)  # fmt: skip
def test_channels_are_resolved_against_the_files(channels, count, numbers):
    chosen, lines = choose_format(measured(ramp("uint8", 0, 200, count)), channels=channels)
    assert chosen.channels == numbers
    left_out = numbers == "rgb" and count in (2, 5)
    assert any("left out" in line and "--channels all" in line for line in lines) == left_out


def test_all_of_plain_colour_files_is_the_fast_path():
    chosen, lines = choose_format(measured(ramp("uint8", 0, 200, 3), color=True), channels="all")
    assert chosen == ImageFormat()
    assert not lines


@pytest.mark.parametrize("word", ["0", "1,0", "rgba", "1.5", "-1", "1,,2", ""])
def test_channels_that_make_no_sense_are_refused(word):
    with pytest.raises(ValueError, match="--channels must be rgb, gray, all, or numbers"):
        parse_channels(word)


def test_channels_that_files_lack_or_that_differ_are_refused_or_said():
    with pytest.raises(ValueError, match="asks for channel 8, and the images have 4"):
        choose_format(measured(ramp("uint8", 0, 9, 4)), channels="4,8")
    with pytest.raises(ValueError, match="names channel 2 twice"):
        choose_format(measured(ramp("uint8", 0, 9, 4)), channels="2,2")
    mixed = measured(ramp("uint8", 0, 9, 4), images=3)
    mixed.add("other.tif", Raster(ramp("uint8", 0, 9, 3), "TIFF"), [], sample=True)
    with pytest.raises(
        ValueError,
        match=r"different numbers of channels: 3 \(in 1, such as other.tif\), 4 \(in 3, such as 0.tif\).*--channels 1,2,3",
    ):
        choose_format(mixed, channels="all")
    _, lines = choose_format(mixed, channels="4,1")
    assert lines[0] == "1 of 4 measured images has no channel 4 and will count as broken"
    with pytest.raises(ValueError, match="no image could be measured"):
        choose_format(Measurement(), channels="all")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", ["rgb", "all", "gray", "2,1"])
def test_mean_and_deviation_are_those_of_mapped_values(dtype, channels):
    pixels = ramp(dtype, 0.1, 0.9 if dtype == "float32" else 200, 3)
    chosen, lines = choose_format(measured(pixels), channels=channels)
    if dtype == "uint8" and channels == "rgb":
        assert (chosen.mean, chosen.std) == (IMAGENET_MEAN, IMAGENET_STD)
        assert not lines
        return
    wide = pixels.astype(np.float64)
    order = {"rgb": [0, 1, 2], "all": [0, 1, 2], "2,1": [1, 0]}.get(channels)
    taken = wide[..., order] if order else wide @ np.array([[0.299], [0.587], [0.114]])
    units = taken / chosen.value_range[0][1]
    assert chosen.mean == pytest.approx(units.mean((0, 1)), rel=1e-4)
    assert chosen.std == pytest.approx(units.std((0, 1)), rel=1e-3)


def test_what_is_given_wins_and_must_fit():
    four = measured(ramp("uint8", 0, 200, 4))
    given = {"mean": (0.1, 0.2, 0.3, 0.4), "std": (1, 2, 3, 4), "names": ("a", "b", "c", "d")}
    chosen, _ = choose_format(four, channels="all", **given)  # type: ignore[arg-type]
    assert (chosen.mean, chosen.std, chosen.names) == (*map(tuple, list(given.values())[:2]), given["names"])
    for name, word in (("mean", "--mean"), ("std", "--std"), ("names", "--channel_names")):
        with pytest.raises(ValueError, match=f"{word} must .* each of the 4 channels"):
            choose_format(four, channels="all", **{**given, name: given[name][:3]})  # type: ignore[arg-type]


def test_means_of_stored_values_are_refused():
    """As mmsegmentation writes them, 123.675 for 0.485, or those of 16 bits."""
    for measuring, values in (
        (measured(ramp("uint16", 0, 900, 2)), (450, 300)),
        (Measurement(), (123.675, 116.28, 103.53)),
    ):
        with pytest.raises(ValueError, match="mean.* must be th.* of values mapped to 0..1"):
            choose_format(measuring, channels="all" if len(values) == 2 else None, mean=values)


@pytest.mark.parametrize("word", ["1000,2000", "-5,-1", "window:5000,10", "0,900;1000,2000"])
def test_a_range_without_any_measured_value_is_refused(word):
    with pytest.raises(ValueError, match=f"--value_range {word} holds none of the measured values, which go from"):
        choose_format(measured(ramp("uint16", 0, 900, 2)), channels="all", value_range=word)


def test_names_come_from_the_files():
    named = measured(ramp("uint16", 0, 900, 5), names=("coastal", "blue", "green", "red", ""))
    assert choose_format(named, channels="all")[0].names == ("coastal", "blue", "green", "red", "channel 5")
    chosen, lines = choose_format(named)
    assert chosen.is_rgb
    assert "4, 3, 2 are red, green and blue" in lines[0]
    aerial = measured(ramp("uint8", 0, 200, 4), color=True)
    assert choose_format(aerial, channels="4,1,2")[0].names == ("channel 4", "red", "green")


def test_several_types_are_brought_to_one_with_a_line():
    mixed = measured(ramp("uint8", 0, 200))
    mixed.add("deep.png", Raster(ramp("uint16", 0, 900), "PNG"), [], sample=True)
    chosen, lines = choose_format(mixed)
    assert chosen.is_rgb8
    assert lines == [
        "the measured images store values of several types: uint8 (in 4), uint16 (in 1); all are brought to 8 bits"
    ]
    few = measured(ramp("uint16", 0, 900, 3), images=3)
    few.add("small.png", Raster(ramp("uint8", 0, 200), "PNG"), [], sample=True)
    chosen, lines = choose_format(few)
    assert (chosen.dtype, chosen.value_range) == ("uint16", ((0, 1023),)), "three of four are of 16 bits"
    assert lines[0].endswith("uint16 is kept, and others are read as it, those of 8 bits by their whole range")
    few.add("small2.png", Raster(ramp("uint8", 0, 200), "PNG"), [], sample=True)
    assert choose_format(few)[0].is_rgb8
    assert choose_format(few, channels="gray")[0].mean == pytest.approx([few.values["uint8"][0].mean / 255])
    wide = measured(ramp("uint16", 0, 900), images=2)
    wide.add("float.tif", Raster(ramp("float32", 0, 1), "TIFF"), [], sample=True)
    assert choose_format(wide)[0].range_source == "type"


def test_transparency_is_left_out_of_all_with_a_line():
    alpha = np.full((10, 10), 9, np.uint8)
    chosen, lines = choose_format(measured(ramp("uint8", 0, 200, 4), transparency=alpha), channels="all")
    assert chosen.channels == (1, 2, 3, 4)
    assert "have transparency as channel 5, which is left out" in lines[0]
    assert choose_format(measured(ramp("uint8", 0, 200, 4), transparency=alpha), channels="5,1")[0].mean[
        0
    ] == pytest.approx(9 / 255)


def test_a_constant_channel_does_not_divide_by_zero():
    pixels = ramp("uint16", 0, 900, 2)
    pixels[..., 1] = 7
    chosen, lines = choose_format(measured(pixels), channels="all")
    assert chosen.std[1] == 1
    assert any("channel 2 has the same value everywhere (7)" in line for line in lines)


def test_nothing_measured_gives_the_default():
    assert choose_format(Measurement()) == (ImageFormat(), [])
    empty = Measurement(images=1, channels=Counter({2: 1}), dtypes=Counter({"uint16": 1}))
    empty.values["uint16"] = [ChannelStatistics("uint16"), ChannelStatistics("uint16")]
    assert choose_format(empty, channels="all")[0].mean == (0.5, 0.5)
