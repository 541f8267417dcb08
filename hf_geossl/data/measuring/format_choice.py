"""Chooses what a model reads of images, from what the user says and from what was measured."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from hf_geossl.data.measuring.channel_statistics import ChannelStatistics
from hf_geossl.data.measuring.image_statistics import Measurement
from hf_geossl.data.pixel_values import named_color_places
from hf_geossl.data.rasters import MAX_CHANNELS
from hf_geossl.data.wording import counted
from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD, RGB_NAMES, TYPE_RANGES, ImageFormat

T = TypeVar("T")
U = TypeVar("U")
Channels = str | tuple[int, ...]

_CONSTANT = 1e-7  # a smaller deviation is rounding
MOST = 0.75  # of the images: their type is the model's, whatever the others are
_FAR = 20  # times what was measured, or 1: a mean or deviation of stored values


def choose_format(
    measured: Measurement,
    *,
    channels: str | None = None,
    value_range: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[ImageFormat, list[str]]:
    """Chooses what a model reads of images, from what the user says and from what was measured.

    Args:
        measured ([`Measurement`]): of the images.
        channels (`str`, *optional*): "rgb" (the default), "gray", "all", or numbers of the file's channels from 1, such as
            "4,3,2,8".
        value_range (`str`, *optional*): which stored values become 0 and 1: "type", "0,4095" (or a pair for each channel,
            "0,4095;0,255"), "percentiles:1,99" or "window:center,width". By default the whole type for 8 bits, 0 to the
            smallest 2^k - 1 that holds all measured values for other whole numbers from 0 on, 0 to 1 for floating point
            numbers inside it, else the percentiles 0.1 and 99.9.
        mean, std (*optional*): of values mapped to 0..1, one a channel; by default ImageNet's for RGB of 8 bits, and the
            measured ones for anything else.
        names (*optional*): of the channels.

    Returns:
        `(ImageFormat, list[str])`: and a line for each thing that was chosen, with how to choose otherwise.

    Raises:
        ValueError: if the images do not have what is asked for; the message names the argument.
    """
    numbers, lines = _choose_channels(measured, channels)
    dtype = _choose_dtype(measured, lines)
    count = len(numbers) if isinstance(numbers, tuple) else 3 if numbers == "rgb" else 1
    statistics = _statistics_of(measured, numbers, dtype)
    pairs, source = _choose_range(measured, numbers, dtype, statistics, value_range, lines)
    if names is not None and len(names) != count:
        raise ValueError(f"--channel_names must name each of the {count} channels, got {', '.join(names) or 'none'}")
    chosen = ImageFormat(
        channels=numbers,
        names=tuple(names) if names is not None else _names_of(measured, numbers),
        dtype=dtype,
        value_range=pairs,
        range_source=source,
        mean=(0.0,) * count,
        std=(1.0,) * count,
    )
    moments: tuple[tuple[float, ...], tuple[float, ...]] = (IMAGENET_MEAN, IMAGENET_STD)
    if not chosen.is_rgb8:
        moments = _moments(chosen, statistics, lines, given=std is not None)
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != count:
            raise ValueError(f"--{name} must have a number for each of the {count} channels, got {list(values)}")
        if values is not None and max(map(abs, values)) > _FAR * max(map(abs, (1.0, *moments[0], *moments[1]))):
            raise ValueError(
                f"--{name} must be that of values mapped to 0..1 by the value range, got {list(values)}: stored values v are "
                "(v - low) / (high - low) there"
            )
    chosen = replace(chosen, mean=tuple(mean or moments[0]), std=tuple(std or moments[1]))
    if not chosen.is_rgb8 and (mean is None or std is None):
        shown = ", ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(chosen.mean, chosen.std, strict=True))
        lines.append(
            f"mean and deviation of the values mapped to 0..1, of {counted(measured.images, 'measured image')}: {shown} "
            "(--mean and --std set others)"
        )
    return chosen, lines


def parse_channels(word: str | None) -> Channels:
    """Reads "rgb", "gray", "all" or numbers of channels from 1, separated by commas; None is "rgb".

    Raises:
        ValueError: for anything else.
    """
    word = "rgb" if word is None else str(word).strip().lower()
    if word in ("rgb", "gray", "all"):
        return word
    if word == "grey":
        return "gray"
    if not re.fullmatch(r"[1-9]\d{0,4}((\s*,\s*|\s+)[1-9]\d{0,4})*", word):
        raise ValueError(
            f"--channels must be rgb, gray, all, or numbers of the file's channels counted from 1, such as 4,3,2, got {word!r}"
        )
    return tuple(int(number) for number in re.split(r"[,\s]+", word))


def _choose_channels(measured: Measurement, word: str | None) -> tuple[Channels, list[str]]:
    asked = parse_channels(word)
    if isinstance(asked, tuple):
        return asked, _lines_of_numbers(measured, asked)
    if asked == "all":
        return _all_channels(measured)
    lines = []
    more = Counter({count: number for count, number in measured.channels.items() if count > 3 or count == 2})
    if more and asked == "rgb":
        of = "the images have" if more.total() == measured.images else _some(more.total(), measured, "has", "have")
        most = more.most_common(1)[0][0]
        taken = [place + 1 for place in named_color_places(most, file_names(measured))]
        what = "are red, green and blue of the model" if len(taken) == 3 else "is taken three times"
        numbers = ",".join(str(number) for number in range(1, most + 1))
        lines.append(
            f"{of} {counted(most, 'channel')}{'' if len(more) == 1 else ' or another number above 3'}: "
            f"{', '.join(map(str, taken))} {what}, the others are left out; --channels "
            f"{'all reads all of them' if len(measured.channels) == 1 else 'names those to read'}, such as --channels {numbers}"
        )
    return asked, lines


def _all_channels(measured: Measurement) -> tuple[Channels, list[str]]:
    if not measured.images:
        raise ValueError(f"--channels all: no image could be measured ({measured.first_broken()})")
    if len(measured.channels) > 1:
        shown = ", ".join(
            f"{count} (in {number}, such as {measured.channel_examples[count]})"
            for count, number in sorted(measured.channels.items())
        )
        fewest = ",".join(map(str, range(1, min(measured.channels) + 1)))
        raise ValueError(
            f"--channels all: the images have different numbers of channels: {shown}; name those that all have, such as "
            f"--channels {fewest}, or rgb or gray"
        )
    count = _common(measured.channels, 3)
    lines = []
    alpha = _common(measured.transparent, 0)
    if alpha:
        lines.append(
            f"{_some(measured.transparent.total(), measured, 'has', 'have')} transparency as channel {alpha}, which is left "
            "out; --channels takes it by its number"
        )
    if count == 1:
        return "gray", lines
    numbers = tuple(number for number in range(1, count + 1 + bool(alpha)) if number != alpha)
    if count == 3 and measured.color == measured.images:
        return "rgb", lines
    if count > MAX_CHANNELS:
        raise ValueError(
            f"--channels all: the images have {count} channels, more than {MAX_CHANNELS}; name those to read, such as "
            "--channels 4,3,2"
        )
    return numbers, lines


def _lines_of_numbers(measured: Measurement, numbers: tuple[int, ...]) -> list[str]:
    twice = [number for number in set(numbers) if numbers.count(number) > 1]
    if twice:
        raise ValueError(f"--channels names channel {min(twice)} twice")
    # transparency has a number too
    few = sum(n for count, n in measured.channels.items() if count + bool(measured.transparent) < max(numbers))
    if measured.images and few == measured.images:
        raise ValueError(
            f"--channels asks for channel {max(numbers)}, and the images have {_common(measured.channels, 0)}: name some of these"
        )
    if few:
        return [f"{_some(few, measured, 'has', 'have')} no channel {max(numbers)} and will count as broken"]
    return []


def _choose_dtype(measured: Measurement, lines: list[str]) -> str:
    if not measured.dtypes:
        return "uint8"
    if len(measured.dtypes) == 1:
        return _common(measured.dtypes, "uint8")
    most = _common(measured.dtypes, "uint8")
    chosen = "uint8" if "uint8" in measured.dtypes and not _is_usual(measured, most) else most
    shown = ", ".join(f"{dtype} (in {count})" for dtype, count in measured.dtypes.most_common())
    if chosen == "uint8":
        how = "all are brought to 8 bits"
    elif _is_usual(measured, chosen):
        how = f"{chosen} is kept, and others are read as it" + (
            ", those of 8 bits by their whole range"
            if chosen in ("uint16", "uint32") and "uint8" in measured.dtypes
            else ""
        )
    else:
        how = f"each is mapped to the whole range of {chosen}"
    lines.append(f"the measured images store values of several types: {shown}; {how}")
    return chosen


def _is_usual(measured: Measurement, dtype: str) -> bool:
    return measured.dtypes[dtype] >= MOST * measured.dtypes.total()


def _statistics_of(measured: Measurement, channels: Channels, dtype: str) -> list[ChannelStatistics]:
    """Statistics of each channel of the model, in the stored values; fewer where nothing was measured."""
    of_file = measured.values.get(dtype, [])
    if isinstance(channels, tuple):
        return [of_file[number - 1] for number in channels if number <= len(of_file)]
    if not of_file:
        return []
    places = named_color_places(min(_common(measured.channels, 3), len(of_file)), file_names(measured))
    if channels == "gray":
        return [measured.luminance[dtype] if len(places) == 3 and dtype in measured.luminance else of_file[0]]
    return [of_file[place] for place in (places if len(places) == 3 else places * 3)]


def _choose_range(
    measured: Measurement,
    channels: Channels,
    dtype: str,
    statistics: list[ChannelStatistics],
    word: str | None,
    lines: list[str],
) -> tuple[tuple[tuple[float, float], ...], str]:
    whole = TYPE_RANGES[dtype]
    if word is not None:
        pairs, source = _read_range(word, whole, statistics if isinstance(channels, tuple) else [*_merged(statistics)])
        _check_inside(pairs, statistics, word)
        return pairs, source
    known = [one for one in statistics if one.count]
    if dtype == "uint8" or not known or not _is_usual(measured, dtype):
        return (whole,), "type"
    low, high = min(one.low for one in known), max(one.high for one in known)
    extent = f"the measured values ({dtype}) go from {low:g} to {high:g}"
    if low == high == 0:
        return (whole,), "type"
    if not dtype.startswith("float") and low >= 0:
        said = _common(measured.bits, None)
        bits = said if said is not None and high < 2**said else math.ceil(math.log2(high + 1))
        pair = (0.0, float(2**bits - 1))
        lines.append(
            f"{extent}: 0 to {pair[1]:g} ({bits} bits) become 0 to 1; --value_range chooses otherwise, such as type"
        )
        return (pair,), f"bits:{bits}"
    if dtype.startswith("float") and low >= 0 and high <= 1:
        return (whole,), "type"
    pairs = _percentiles(known if isinstance(channels, tuple) else [*_merged(known)], 0.1, 99.9)
    shown = ", ".join(f"{pair[0]:g} to {pair[1]:g}" for pair in pairs)
    lines.append(
        f"{extent}: the percentiles 0.1 to 99.9 of {'each channel' if len(pairs) > 1 else 'them'} ({shown}) become 0 to 1, "
        f"nothing is clipped; --value_range chooses otherwise, such as --value_range {low:g},{high:g}"
    )
    return pairs, "percentiles:0.1,99.9"


def _check_inside(pairs: tuple[tuple[float, float], ...], statistics: list[ChannelStatistics], word: str) -> None:
    """Refuses a range in which no value of a channel lies: all would be below black, or above white."""
    for (low, high), one in zip(pairs * (len(statistics) if len(pairs) == 1 else 1), statistics, strict=False):
        if one.count and (one.high < low or one.low > high):
            raise ValueError(
                f"--value_range {word} holds none of the measured values, which go from {one.low:g} to {one.high:g}: give the "
                f"stored values that become 0 and 1, such as {one.low:g},{one.high:g}"
            )


def _read_range(
    word: str, whole: tuple[float, float], statistics: list[ChannelStatistics]
) -> tuple[tuple[tuple[float, float], ...], str]:
    text = word.strip().lower()
    if text == "type":
        return (whole,), "type"
    kind, _, rest = text.rpartition(":")
    pairs = [pair.split(",") for pair in re.split(r"[;\s]+", re.sub(r"\s*,\s*", ",", rest.strip()))]
    try:
        numbers = tuple((float(low), float(high)) for low, high in pairs)
    except ValueError:
        numbers = ()
    finite = all(math.isfinite(number) for pair in numbers for number in pair)
    if not numbers or not finite or kind not in ("", "percentiles", "window") or (kind and len(numbers) > 1):
        raise ValueError(
            "--value_range must be type, two numbers such as 0,4095 (or a pair for each channel: 0,4095;0,255), "
            f"percentiles:1,99 or window:center,width, got {word!r}"
        )
    first, second = numbers[0]
    if kind == "window":
        if second <= 0:
            raise ValueError(f"--value_range window:center,width must have a width above 0, got {word!r}")
        return ((first - second / 2, first + second / 2),), f"window:{first:g},{second:g}"
    if kind == "percentiles":
        if not 0 <= first < second <= 100:
            raise ValueError(f"--value_range percentiles:low,high must have 0 <= low < high <= 100, got {word!r}")
        known = [one for one in statistics if one.count]
        if not known:
            raise ValueError(f"--value_range {word}: no image could be measured; give two numbers, such as 0,4095")
        return _percentiles(known, first, second), f"percentiles:{first:g},{second:g}"
    for low, high in numbers:
        if not low < high:
            raise ValueError(f"--value_range must be low,high with low < high, got {low:g},{high:g}")
    return numbers, "given"


def _percentiles(statistics: list[ChannelStatistics], low: float, high: float) -> tuple[tuple[float, float], ...]:
    pairs = []
    for one in statistics:
        start, end = one.percentile(low), one.percentile(high)
        if not start < end:  # nearly all values are equal
            start, end = one.low, max(one.high, one.low + 1)
        pairs.append((start, end))
    return tuple(pairs)


def _merged(statistics: list[ChannelStatistics]) -> Iterator[ChannelStatistics]:
    """One for all colours, so that their balance stays; of one channel that was repeated, that channel."""
    different = list({id(one): one for one in statistics}.values())
    if different:
        merged = ChannelStatistics(different[0].dtype)
        for one in different:
            merged.merge(one)
        yield merged


def _names_of(measured: Measurement, channels: Channels) -> tuple[str, ...]:
    if isinstance(channels, str):
        return RGB_NAMES if channels == "rgb" else ("gray",)
    said = file_names(measured)
    if not said and measured.color == measured.images > 0:
        said = RGB_NAMES
    return tuple(
        said[number - 1] if number <= len(said) and said[number - 1] else f"channel {number}" for number in channels
    )


def file_names(measured: Measurement) -> tuple[str, ...]:
    """The names that most files give their channels, or that all give which give any; none where most give none.

    Args:
        measured ([`Measurement`]): Of the images.

    Returns:
        `tuple[str, ...]`: A name for each channel; texts may be empty.
    """
    nothing: tuple[str, ...] = ()
    named = [names for names in measured.names if any(names)]
    return named[0] if len(named) == 1 else _common(measured.names, nothing)


def _moments(
    chosen: ImageFormat, statistics: list[ChannelStatistics], lines: list[str], given: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    count = chosen.num_channels
    if len(statistics) < count or not all(one.count for one in statistics):
        lines.append("no values of these channels could be measured: mean 0.5 and deviation 0.25 are taken")
        return (0.5,) * count, (0.25,) * count
    means, stds = [], []
    for name, (low, high), one in zip(chosen.names, chosen.ranges(), statistics, strict=True):
        means.append((one.mean - low) / (high - low))
        std = one.std / (high - low)
        if std < _CONSTANT and not given:
            lines.append(f"{name} has the same value everywhere ({one.mean:g}): its deviation is taken as 1")
            std = 1.0
        stds.append(std)
    return tuple(means), tuple(stds)


def _some(number: int, measured: Measurement, one: str, several: str) -> str:
    """Begins a sentence about some of the images."""
    return f"{number} of {counted(measured.images, 'measured image')} {one if number == 1 else several}"


def _common(counter: Counter[T], otherwise: U) -> T | U:
    """The most frequent entry; of several the first that was counted."""
    return counter.most_common(1)[0][0] if counter else otherwise
