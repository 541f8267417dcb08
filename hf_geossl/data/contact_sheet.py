"""A contact sheet: small pictures of images that are spread evenly over a dataset, in false colour where they are no RGB."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hf_geossl.data.fonts import Font, font_for
from hf_geossl.data.measuring.channel_statistics import ChannelStatistics
from hf_geossl.data.pixel_values import color_places
from hf_geossl.data.rasters import Raster

SIDE, COLUMNS, MOST = 128, 8, 48
_GAP, _CAPTION = 6, 16
_BACKGROUND, _INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Thumbnail:
    """A small version of an image.

    Args:
        rank (`str`): hash of the name.
        name (`str`): of the image.
        dtype (`str`): stored type of its values.
        places (`list[int]`): which channels of the file these are, from 0.
        pixels (`numpy.ndarray` of shape `(height, width, 1 or 3)`): stored values, float32.
    """

    rank: str
    name: str
    dtype: str
    places: list[int]
    pixels: np.ndarray


@dataclass
class Thumbnails:
    """Small versions of up to 48 images: those whose names have the smallest hashes, whatever the order of the images.

    Args:
        found (`list[Thumbnail]`): by rank.
    """

    found: list[Thumbnail] = field(default_factory=list)

    def add(self, name: str, raster: Raster) -> None:
        """Takes an image in, if its turn has come.

        Args:
            name (`str`): of the image; its hash decides.
            raster ([`Raster`]): its stored values.
        """
        rank = rank_of(name)
        if len(self.found) == MOST and rank >= self.found[-1].rank:
            return
        places = color_places(raster)
        one = Thumbnail(rank, name, raster.dtype, places, _reduced(raster.pixels[..., places]))
        self.found = sorted([*self.found, one], key=lambda entry: (entry.rank, entry.name))[:MOST]

    def state_dict(self) -> list[dict[str, Any]]:
        """Returns plain values for JSON."""
        encoded = [base64.b64encode(one.pixels.astype("<f4").tobytes()).decode() for one in self.found]
        return [
            {**vars(one), "shape": one.pixels.shape, "pixels": pixels}
            for one, pixels in zip(self.found, encoded, strict=True)
        ]

    @classmethod
    def from_state_dict(cls, state: Sequence[dict[str, Any]]) -> "Thumbnails":
        """Makes the thumbnails of what `state_dict` returned."""
        found = []
        for entry in state:
            pixels = np.frombuffer(base64.b64decode(entry["pixels"]), "<f4").reshape(entry["shape"])
            found.append(
                Thumbnail(**{**{name: entry[name] for name in ("rank", "name", "dtype", "places")}, "pixels": pixels})
            )
        return cls(found)


def rank_of(name: str) -> str:
    """The hash of an image's name by which it is chosen or not."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """Means over blocks of pixels: at most 128 x 128, float32."""
    height, width = pixels.shape[:2]
    step = max(1, -(-max(height, width) // SIDE))
    pixels = pixels[: height // step * step or height, : width // step * step or width]
    rows = np.arange(0, pixels.shape[0], step)
    columns = np.arange(0, pixels.shape[1], step)
    with np.errstate(invalid="ignore"):  # of values that are not finite, which are shown black
        sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=0), columns, axis=1)
    counts = np.outer(np.diff([*rows, pixels.shape[0]]), np.diff([*columns, pixels.shape[1]]))[..., None]
    reduced: np.ndarray = (sums / counts).astype(np.float32)
    return reduced


def draw_sheet(thumbnails: Thumbnails, values: dict[str, list[ChannelStatistics]], title: str) -> Image.Image:
    """Draws the contact sheet.

    8 bits are shown as they are. Of other types the percentiles 2 to 98 of each channel over the dataset become black and
    white, so that images can be compared with each other.

    Args:
        thumbnails ([`Thumbnails`]): of the images.
        values (`dict`): stored type -> statistics of each channel.
        title (`str`): a line above them.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    ordered = sorted(thumbnails.found, key=lambda entry: entry.name)
    pictures = [(one.name, Image.fromarray(_shown(one, values.get(one.dtype, [])))) for one in ordered]
    return draw_rows([pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)], title)


def draw_rows(rows: Sequence[Sequence[tuple[str, Image.Image]]], title: str) -> Image.Image:
    """Draws rows of small pictures.

    Args:
        rows (`Sequence[Sequence[(str, PIL.Image.Image)]]`): caption and picture, scaled to 128 pixels a side at most.
        title (`str`): a line above them.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    columns = max([4, *map(len, rows)])
    cell_width, cell_height = SIDE + _GAP, SIDE + _CAPTION + _GAP
    sheet = Image.new(
        "RGB", (columns * cell_width + _GAP, max(1, len(rows)) * cell_height + _CAPTION + 2 * _GAP), _BACKGROUND
    )
    pen, font = ImageDraw.Draw(sheet), font_for(12, title, *(caption for row in rows for caption, _ in row))
    pen.text((_GAP, _GAP), _fitting(title, sheet.width - 2 * _GAP, font), _INK, font)
    for number, row in enumerate(rows):
        for column, (caption, picture) in enumerate(row):
            left, top = _GAP + column * cell_width, 2 * _GAP + _CAPTION + number * cell_height
            scale = SIDE / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            small = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
            sheet.paste(small, (left + (SIDE - size[0]) // 2, top + (SIDE - size[1]) // 2))
            pen.text((left, top + SIDE + 1), _fitting(caption, SIDE, font), _INK, font)
    return sheet


def _fitting(text: str, width: int, font: Font) -> str:
    """The end of a text, which tells images apart, as far as there is room for it."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"


def _shown(thumbnail: Thumbnail, statistics: Sequence[ChannelStatistics]) -> np.ndarray:
    pixels: np.ndarray = thumbnail.pixels
    shown: np.ndarray = np.zeros(pixels.shape, np.uint8)
    for channel, place in enumerate(thumbnail.places):
        low, high = 0.0, 255.0
        if thumbnail.dtype != "uint8":
            known = [one for one in statistics[place : place + 1] if one.count]
            low, high = (known[0].percentile(2), known[0].percentile(98)) if known else (0.0, 1.0)
            high = high if high > low else low + 1
        units = np.nan_to_num((pixels[..., channel] - low) / (high - low), nan=0, posinf=1, neginf=0)
        shown[..., channel] = np.round(np.clip(units, 0, 1) * 255)
    return np.repeat(shown, 3, axis=2) if shown.shape[2] == 1 else shown
