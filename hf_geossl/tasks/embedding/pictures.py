"""Pictures of single images of a dataset, by their keys, and sheets of them."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pandas as pd
from PIL import Image

from hf_geossl.data.images import BrokenImageError, decode_image
from hf_geossl.tasks.embedding.images import DatasetImages
from hf_geossl.tasks.embedding.inputs import ImageInputs
from hf_geossl.tasks.embedding.tiles import Box, Place

SIDE = 128  # of a picture of a sheet
_CORNERS = ("x1", "y1", "x2", "y2")


def pictures_of(
    images: DatasetImages, inputs: ImageInputs, places: Collection[Place]
) -> Iterator[tuple[Place, Image.Image]]:
    """Opens some images of a dataset as people see them; a stream is read until all have come.

    Args:
        images ([`DatasetImages`]): The dataset.
        inputs ([`ImageInputs`]): Of the model; says what its images are.
        places (`Collection[Place]`): Which; those that can no longer be read are left out.

    Yields:
        `(Place, PIL.Image.Image)`: RGB, in the order of the dataset.
    """
    wanted: dict[str, list[Box | None]] = {}
    for key, box in places:
        wanted.setdefault(key, []).append(box)
    for key, values in images.find(wanted):
        try:
            picture = decode_image(images.image_of(values), inputs.max_pixels, inputs.image_format)
        except BrokenImageError:
            continue
        for box in wanted[key]:
            yield (key, box), picture if box is None else picture.crop(box)


def small_pictures(
    images: DatasetImages, inputs: ImageInputs, places: Collection[Place]
) -> Mapping[Place, Image.Image]:
    """Small versions of some images of a dataset, for a sheet."""
    found: dict[Place, Image.Image] = {}
    for place, picture in pictures_of(images, inputs, places):
        found[place] = shrink(picture)
    return found


def as_columns(place: Place, name: str = "key") -> dict[str, Any]:
    """The columns of a table that say which image and tile: `key`, and `x1` and the others; of another name `name_x1`."""
    prefix = "" if name == "key" else f"{name}_"
    key, box = place
    return {name: key, **{f"{prefix}{corner}": value for corner, value in zip(_CORNERS, box or (), strict=False)}}


def places_in(table: pd.DataFrame, name: str = "key") -> list[Place]:
    """What `as_columns` has written, for each row of a table."""
    columns = [corner if name == "key" else f"{name}_{corner}" for corner in _CORNERS]
    if columns[0] not in table:
        return [(key, None) for key in table[name]]
    return [
        (key, (x1, y1, x2, y2))
        for key, x1, y1, x2, y2 in zip(table[name], *(table[column].tolist() for column in columns), strict=True)
    ]


def shrink(picture: Image.Image) -> Image.Image:
    """A picture that fits into a sheet."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    return small
