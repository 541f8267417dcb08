"""From the stored values of a file to those that a model gets: channels chosen, types and ranges converted, notes made."""

import re
from collections.abc import Sequence

import numpy as np

from hf_geossl.data.notes import note
from hf_geossl.data.rasters import BrokenImageError, Raster
from hf_geossl.modeling.image_format import RGB_NAMES, ImageFormat

_DARK = 1 / 8  # of the range: below it a picture looks black
_LUMINANCE_16 = (19595, 38470, 7471)  # of red, green and blue in 65536ths, as Pillow's "L"
_OTHER_NAMES = {"r": "red", "g": "green", "b": "blue"}


def rgb8(raster: Raster) -> np.ndarray:
    """Makes the picture of 8 bits that stands for a raster where nobody said what its values mean.

    Grey is repeated; of more than three channels those called red, green and blue, else the first three, are taken.
    Whole numbers of 16 bits, or of the bits that the file names, are scaled to 0..255; floating point numbers of 0 to 1
    too; others have no fixed range. Transparency is laid over white.

    Args:
        raster ([`Raster`]): the stored values.

    Returns:
        `numpy.ndarray` of shape `(height, width, 3)`: uint8.

    Raises:
        BrokenImageError: if the values have no fixed range; it names `--value_range`.
    """
    values = to_bytes(raster, _colors(raster))
    alpha = raster.transparency
    if alpha is not None and alpha.min() < _opaque(alpha, raster):
        note("transparency", number=raster.transparency_place + 1)
        values = _over_white(values, alpha, _opaque(alpha, raster))
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def in_format(raster: Raster, image_format: ImageFormat) -> np.ndarray:
    """Takes the channels of a format out of a raster, and maps its values to those of the format.

    Args:
        raster ([`Raster`]): the stored values.
        image_format (`ImageFormat`): of the model.

    Returns:
        `numpy.ndarray` of shape `(height, width, channels)`: uint8 for formats of 8 bits, else float32 in units, in which
        the value range goes from 0 to 1 and nothing is clipped.

    Raises:
        BrokenImageError: if the file lacks a channel.
    """
    numbers = image_format.channels
    values = _numbered(raster, numbers) if isinstance(numbers, tuple) else _colors(raster)
    if image_format.is_uint8:
        values = _gray(to_bytes(raster, values)) if numbers == "gray" else to_bytes(raster, values)
    else:
        values = _units(raster, values, image_format)
    alpha, at = raster.transparency, raster.transparency_place
    if alpha is not None and alpha.min() < _opaque(alpha, raster):
        if not isinstance(numbers, tuple):
            note("transparency", number=at + 1)
            values = _over_white(values, alpha, _opaque(alpha, raster))
        elif at + 1 not in numbers:
            note("transparency_ignored")
    if numbers == "rgb" and values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    return np.require(values, requirements=["C", "W"])  # a copy only where it must be


def _over_white(values: np.ndarray, alpha: np.ndarray, opaque: float) -> np.ndarray:
    share = alpha[..., None] / opaque
    if values.dtype == np.uint8:
        return np.round(values * share + 255 * (1 - share)).astype(np.uint8)
    return (values * share + (1 - share)).astype(np.float32)


def _gray(values: np.ndarray) -> np.ndarray:
    """Luminance of colours, as Pillow's mode "L" has it; one channel stays as it is."""
    if values.shape[2] == 1:
        return values
    if values.dtype == np.uint8:
        weighted = values.astype(np.uint32) @ np.array(_LUMINANCE_16, np.uint32)
        return ((weighted + 2**15) >> 16).astype(np.uint8)[..., None]
    return luminance(values)[..., None]


def luminance(colors: np.ndarray) -> np.ndarray:
    """Weighted mean of red, green and blue, as Pillow's mode "L" has it: `(..., 3)` -> `(...)`, float64."""
    weighted: np.ndarray = colors.astype(np.float64) @ (np.array(_LUMINANCE_16) / 2**16)
    return weighted


def _opaque(alpha: np.ndarray, raster: Raster) -> float:
    if alpha.dtype.kind == "f":
        return 1.0
    return float(2**raster.bits - 1 if raster.bits else np.iinfo(alpha.dtype).max)


def _numbered(raster: Raster, numbers: tuple[int, ...]) -> np.ndarray:
    values = raster.all_channels()
    if max(numbers) > values.shape[2]:
        present = "1 channel" if values.shape[2] == 1 else f"{values.shape[2]} channels"
        raise BrokenImageError(
            f"it has {present}, and channel {max(numbers)} is asked for (--channels {','.join(map(str, numbers))})"
        )
    if numbers == tuple(range(1, values.shape[2] + 1)):
        return values
    return values[..., [number - 1 for number in numbers]]


def _colors(raster: Raster) -> np.ndarray:
    """Red, green and blue, or the one channel, with a note where others are left out."""
    count, chosen = raster.num_channels, color_places(raster)
    if count > len(chosen):
        taken = ", ".join(str(number + 1) for number in chosen)
        example = ",".join(str(number + 1) for number in range(min(count, 8)))
        note("channels", taken=taken, count=count, example=example)
    return raster.pixels if chosen == list(range(count)) else raster.pixels[..., chosen]


def color_places(raster: Raster) -> list[int]:
    """Which channels of `raster.pixels` are red, green and blue: those of these names, else the first three, else the first."""
    return named_color_places(raster.num_channels, raster.names)


def named_color_places(count: int, names: Sequence[str]) -> list[int]:
    """Which of `count` channels are red, green and blue, counted from 0; `names` are those of the file, if it has any."""
    known = [_OTHER_NAMES.get(name.lower(), name.lower()) for name in names]
    if count > 3 and all(name in known for name in RGB_NAMES):
        return [known.index(name) for name in RGB_NAMES]
    return [0, 1, 2] if count >= 3 else [0]


def are_colors(names: Sequence[str]) -> bool:
    """Whether nothing that a file calls its first three channels says that they are not red, green and blue.

    Microscopes' programs store three stains as planes of a colour image, and name them.
    """
    known = [_OTHER_NAMES.get(name.lower(), name.lower()) for name in names[:3] if name]
    return all(
        name in RGB_NAMES or (re.fullmatch(r"[a-z]*[\d\s:_-]*", name) and re.search(r"\d", name)) for name in known
    )


def _missing(values: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """Which values mean "no value"; None if none does. Where that is 0, it belongs into the picture as black."""
    named = nodata is not None and np.isfinite(nodata) and nodata != 0
    # one pass over the values where nothing is missing: a sum is finite where all of them are
    if not named and (values.dtype.kind != "f" or np.isfinite(values.sum(dtype=np.float64))):
        return None
    missing = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)
    if nodata is not None and named:
        missing |= values == (values.dtype.type(nodata) if values.dtype.kind == "f" else nodata)
    return missing if missing.any() else None


def to_bytes(raster: Raster, values: np.ndarray) -> np.ndarray:
    """Scales stored values to 8 bits by the range that they can have.

    Args:
        raster ([`Raster`]): where they come from.
        values (`numpy.ndarray`): those channels of it that are used.

    Returns:
        `numpy.ndarray`: uint8, of the same shape.

    Raises:
        BrokenImageError: if they have no fixed range.
    """
    kind, (low, high) = values.dtype, raster.value_span()
    if kind == np.uint8 and (low, high) == (0, 255):
        return values
    missing = _missing(values, raster.nodata)
    known = values if missing is None else values[~missing]
    largest = float(known.max()) if known.size else low
    _check_fixed_range(raster, known)
    if raster.span is None and kind.kind == "i":
        low = 0.0
    if missing is not None:
        note("nodata", count=int(missing.sum()))
        values = np.where(missing, kind.type(low) if kind.kind == "f" else low, values)
    if kind == np.uint16 and (low, high) == (0, 65535):
        scaled = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        share = (values.astype(np.float64) - low) / (high - low)
        scaled = np.clip(np.floor(share * 255 + 0.5), 0, 255).astype(np.uint8)
    dark = _dark_range(known, low, high, largest)
    if kind.kind == "f" and raster.span is None:
        note("floats")
    elif kind != np.uint8:
        note("depth", low=low, high=high, example=dark or f"{low:g},{high:g}")
    if dark:
        note("dark", largest=largest, high=high, example=dark)
    return scaled


def _dark_range(values: np.ndarray, low: float, high: float, largest: float) -> str:
    """The range to give where values fill so little of theirs that a picture looks black; else nothing."""
    if not values.size or values.dtype == np.uint8 or largest - low >= (high - low) * _DARK:
        return ""
    whole = values.dtype.kind in "iu" and low == 0
    return f"0,{max(1, 2 ** int(largest).bit_length() - 1)}" if whole else f"{low:g},{largest:g}"


def _check_fixed_range(raster: Raster, known: np.ndarray) -> None:
    """Refuses values whose type does not say what is black and white, unless the file does."""
    kind = known.dtype
    if raster.span is not None or not known.size:
        return
    smallest, largest = float(known.min()), float(known.max())
    if kind.kind == "f" and not (smallest >= 0 and largest <= 1):
        what = f"{kind.itemsize * 8}-bit floating point"
    elif kind.kind in "iu" and kind.itemsize == 4:
        what = "32-bit integer"
    elif kind.kind == "i" and smallest < 0:
        what = "signed 16-bit integer"
    else:
        return
    raise BrokenImageError(
        f"{what} pixels from {smallest:g} to {largest:g} have no fixed range; say which values are black and white, "
        f"such as --value_range {smallest:g},{largest:g}"
    )


def _units(raster: Raster, values: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    """Maps stored values to units; those of another type by their own whole range where the format's is the type's."""
    missing = _missing(values, raster.nodata)
    known = values if missing is None else values[~missing]
    _note_dark_units(raster, known, image_format)
    same = raster.dtype == image_format.dtype or (
        raster.pixels.dtype.kind == "f" and image_format.dtype.startswith("float")
    )
    # 255 of a picture of 8 bits is white, whatever white is of the scans of more bits beside it
    picture = raster.dtype == "uint8" and image_format.takes_pictures
    as_they_are = same or (image_format.range_source != "type" and not picture)
    if not as_they_are:
        _check_fixed_range(raster, known)
    if image_format.channels == "gray":
        values = _gray(values)
        missing = missing if missing is None else np.any(missing, axis=2, keepdims=True)
    elif image_format.channels == "rgb" and values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    if as_they_are:
        units, how = image_format.to_unit(values), "values taken as they are"
    else:
        low, high = raster.value_span()
        low = low if raster.span else max(low, 0.0)  # no value is below 0
        units = ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)
        how = f"{low:g} to {high:g} became the whole range"
    if not same:
        note("type", stored=raster.dtype, expected=image_format.dtype, how=how)
    if missing is not None:
        note("nodata", count=int(missing.sum()))
        units = np.where(missing, np.float32(0), units)
    return units


def _note_dark_units(raster: Raster, known: np.ndarray, image_format: ImageFormat) -> None:
    if known.size and image_format.range_source == "type" and known.dtype.kind == "u":
        low, high = raster.value_span()
        largest = float(known.max())
        dark = _dark_range(known, low, high, largest)
        if dark:
            note("dark", largest=largest, high=high, example=dark)
