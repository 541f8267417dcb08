"""Measures the images of a dataset: sizes, channels, types, values; and chooses from that what a model is to read of them."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hf_geossl.data.blocks import UnitReader
from hf_geossl.data.images import is_plain, read_raster
from hf_geossl.data.measuring.format_choice import choose_format, parse_channels
from hf_geossl.data.measuring.image_statistics import Measurement
from hf_geossl.data.notes import Note, collect_notes
from hf_geossl.data.rasters import DEFAULT_MAX_PIXELS, BrokenImageError, Raster
from hf_geossl.data.sources.base import Source
from hf_geossl.data.streams import ImageStream

__all__ = [
    "Measurement",
    "are_plain",
    "choose_format",
    "measure_images",
    "name_of_row",
    "parse_channels",
    "read_noted",
    "sample_rows",
]

_LISTED = (
    "folder",
    "indexed",
    "scenes",
)  # kinds of sources whose rows are names: to read a whole unit of them costs nothing
_UNITS = 8  # from which the images are taken at least, and about as many from each
_ENOUGH_IMAGES, _ENOUGH_VALUES = 16, 2**28  # large images: fewer than `limit` tell enough


def measure_images(
    stream: ImageStream | Source, limit: int = 256, *, max_pixels: int | None = None, channels: int = 0
) -> Measurement:
    """Measures images that are spread evenly over a dataset.

    Of large images fewer than `limit` are taken, but 16 at least, and of each channel of an image 262,144 values, spread
    evenly; smallest and largest value are those of all pixels. The same dataset gives the same result.

    Args:
        stream (`ImageStream` or [`Source`]): the dataset; the position of a stream stays where it is.
        limit (`int`, *optional*, defaults to 256): images at most.
        max_pixels (`int`, *optional*): larger images count as broken; by default the stream's.
        channels (`int`, *optional*): channels that are needed: pages of TIFF files are channels where the first has fewer.

    Returns:
        [`Measurement`]: with the images that cannot be read.
    """
    source = stream.source if isinstance(stream, ImageStream) else stream
    if max_pixels is None:
        max_pixels = stream.max_pixels if isinstance(stream, ImageStream) else DEFAULT_MAX_PIXELS
    measured, values = Measurement(), 0
    for key, row in sample_rows(source, limit):
        try:
            raster, notes = read_noted(source, row, max_pixels, channels=channels)
        except BrokenImageError as error:
            measured.add_broken(key, error.reason)
            continue
        measured.add(key, raster, notes, sample=True)
        values += raster.pixels.size
        if measured.images >= _ENOUGH_IMAGES and values >= _ENOUGH_VALUES:
            break
    return measured


def are_plain(stream: ImageStream | Source, limit: int = 32) -> bool:
    """Whether images are colour or grey images of 8 bits, as far as the headers of some, spread evenly, tell.

    Args:
        stream (`ImageStream` or [`Source`]): the dataset; the position of a stream stays where it is.
        limit (`int`, *optional*, defaults to 32): images at most.

    Returns:
        `bool`: False where one may be of more bits or channels, and where none can be read.
    """
    source = stream.source if isinstance(stream, ImageStream) else stream
    found = False
    for _, row in sample_rows(source, limit):
        try:
            plain = is_plain(source.read(row))
        except BrokenImageError:  # counted when it is read
            continue
        if not plain:
            return False
        found = True
    return found


def read_noted(
    source: Source,
    row: Mapping[str, Any],
    max_pixels: int,
    *,
    channels: int = 0,
    observe: Callable[[Any], None] | None = None,
) -> tuple[Raster, list[Note]]:
    """Reads the image of a row, with notes of what decoding did to its values.

    Args:
        source ([`Source`]): of the row.
        row (`Mapping`): of the source.
        max_pixels (`int`): larger images count as broken.
        channels (`int`, *optional*): as in [`measure_images`].
        observe (`Callable`, *optional*): called with the encoded image before it is decoded.

    Returns:
        `(Raster, list[Note])`: stored values and notes.

    Raises:
        BrokenImageError: if the image cannot be used.
    """
    with collect_notes() as notes:
        value = source.read(dict(row))
        if observe is not None:
            observe(value)
        raster = read_raster(value, max_pixels)
        if raster.kind == "TIFF" and raster.all_channels().shape[2] < channels:
            raster = read_raster(value, max_pixels, pages_as_channels=True)
    return raster, notes


def sample_rows(source: Source, limit: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Gives up to `limit` rows of a source, spread evenly over it, with the names of their images."""
    enough = math.ceil(limit * source.units / source.num_images) if source.num_images else 0
    first = min(source.units, limit, max(_UNITS, limit // _UNITS, enough))
    spread = [index * source.units // first for index in range(first)]
    rest = sorted(set(range(source.units)) - set(spread))  # for units that have fewer rows than others
    left = limit
    for index, unit in enumerate([*spread, *rest]):
        if left < 1:
            return
        share = math.ceil(left / max(1, first - index))
        rows = UnitReader(source, unit).read(10**9 if source.kind in _LISTED else share)
        offset = (index % first + 0.5) / first  # another place in each unit, since units can be interleaved
        places = (
            range(len(rows)) if share >= len(rows) else [int((i + offset) * len(rows) / share) for i in range(share)]
        )
        left -= len(places)
        for place in places:
            yield name_of_row(source, unit, place, rows[place]), rows[place]


def name_of_row(source: Source, unit: int, number: int, row: Mapping[str, Any]) -> str:
    """What people call a row: as in the messages of a stream."""
    return source.label.format(**row) or f"unit {unit} row {number}"
