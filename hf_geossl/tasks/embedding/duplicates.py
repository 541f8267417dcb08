"""Near-duplicates in a table: the same picture again, resized or recompressed.

Features alone do not tell them, for all images are alike to a trunk of random weights. Candidates are pairs whose thumbnails
hardly differ; they are compared by the pixels of the images themselves.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from hf_geossl.data.contact_sheet import draw_rows
from hf_geossl.data.wording import counted
from hf_geossl.tasks.embedding.agreement import LEAST_PLACES, compared_pixels, differences, prominent_places
from hf_geossl.tasks.embedding.embed import Embedding
from hf_geossl.tasks.embedding.features import THUMBNAIL
from hf_geossl.tasks.embedding.neighbours import compared_column
from hf_geossl.tasks.embedding.pictures import as_columns, pictures_of, places_in, small_pictures
from hf_geossl.tasks.embedding.search import read_blocks, read_rows, similar_pairs
from hf_geossl.tasks.embedding.tiles import Place

CANDIDATE = 0.25  # largest relative difference of thumbnails
_PAIRS_AT_ONCE = 1024
_MOST_GROUPS, _MOST_SHOWN = 12, 8  # of a sheet, and of each of them


def find_duplicates(embedding: Embedding) -> pd.DataFrame:
    """Finds images of a table that show the same picture.

    Of images without content, of one colour or nothing but noise, nothing tells a copy from another such image: they are
    duplicates only where all their pixels are equal.

    Args:
        embedding ([`Embedding`]): The table, as `embed` has returned it.

    Returns:
        `pandas.DataFrame`: A row for each copy, in the order of the table: `group` from 1, `key`, `copy_of` (the image before
        it that it is most like), the corners of both where images were cut into tiles, `difference` of their pixels (0 of
        equal ones, at most 0.4; see `agreement.differences`), and `similarity`, the cosine of their features. `attrs["plain"]`
        is how many images without content look like another image.
    """
    thumbnails = [block[THUMBNAIL] for block in read_blocks(embedding.files, [THUMBNAIL])]
    device = embedding.encoder.device
    pairs = similar_pairs(np.concatenate(thumbnails), CANDIDATE, device)
    places = embedding.places(set(pairs.flatten().tolist()))
    small = _SmallImages(embedding, places)
    best: dict[int, tuple[float, int]] = {}  # copy -> difference, the image before it
    groups = _Groups()
    for first, second, difference in small.compare(pairs):
        groups.join(first, second)
        best[second] = min(best.get(second, (np.inf, 0)), (difference, first))
    features = _features(embedding, {*best, *(first for _, first in best.values())})
    names = groups.numbered(sorted(best))
    rows = []
    for copy, (difference, original) in sorted(best.items()):
        row: dict[str, Any] = {"group": names[copy], **as_columns(places[copy])}
        row |= {**as_columns(places[original], "copy_of"), "difference": difference}
        if features:
            one, other = features[copy], features[original]
            row["similarity"] = float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))
        rows.append(row)
    table = pd.DataFrame(rows, columns=None if rows else ["group", "key", "copy_of", "difference", "similarity"])
    table.attrs["plain"] = small.plain
    return table


def describe_duplicates(table: pd.DataFrame, rows: int) -> list[str]:
    """Lines for people about what `find_duplicates` has returned for a table of so many rows."""
    lines = []
    if plain := table.attrs["plain"]:
        lines.append(
            f"{counted(plain, 'image')} of one colour, or without anything that stands out of noise, {'is' if plain == 1 else 'are'}"
            " a duplicate only where all pixels are equal"
        )
    return [*lines, f"{counted(len(table), 'near-duplicate')} of {rows:,} rows" if len(table) else "no near-duplicates"]


def draw_duplicates(embedding: Embedding, table: pd.DataFrame) -> Image.Image:
    """Draws a sheet: a row a group, the first image of it and its copies."""
    groups: dict[int, list[tuple[str, Place]]] = {}
    originals, copies = places_in(table, "copy_of"), places_in(table)
    for group, original, copy, difference in zip(table["group"], originals, copies, table["difference"], strict=True):
        row = groups.setdefault(group, [(original[0], original)])
        row.append((f"{difference:.3f} {copy[0]}", copy))
    shown = [row[:_MOST_SHOWN] for row in list(groups.values())[:_MOST_GROUPS]]
    pictures = small_pictures(embedding.images, embedding.inputs, {place for row in shown for _, place in row})
    rows = [[(caption, pictures[place]) for caption, place in row if place in pictures] for row in shown]
    return draw_rows(
        rows, f"{len(table):,} copies in {len(groups):,} groups; each row: an image and its copies (0: no difference)"
    )


class _SmallImages:
    """Images of a table as they are compared: small, and a digest of the pixels of those without content."""

    def __init__(self, embedding: Embedding, places: Mapping[int, Place]) -> None:
        numbers: dict[Place, list[int]] = {}
        for number, place in places.items():
            numbers.setdefault(place, []).append(number)
        self._pixels: dict[int, torch.Tensor] = {}
        self._sides: dict[int, float] = {}
        self._digests: dict[int, bytes] = {}
        for place, picture in pictures_of(embedding.images, embedding.inputs, numbers):
            small, side = torch.from_numpy(compared_pixels(picture)), float(min(picture.size))
            self._pixels |= dict.fromkeys(numbers[place], small)
            self._sides |= dict.fromkeys(numbers[place], side)
            if prominent_places(small[None], torch.tensor([side])) < LEAST_PLACES:
                described = f"{picture.size}".encode() + picture.tobytes()
                self._digests |= dict.fromkeys(numbers[place], hashlib.sha256(described).digest())

    @property
    def plain(self) -> int:
        """How many have no content."""
        return len(self._digests)

    def compare(self, pairs: np.ndarray) -> list[tuple[int, int, float]]:
        """Of pairs of numbers those that show the same picture, and their difference."""
        same: list[tuple[int, int, float]] = []
        shown: list[tuple[int, int]] = []
        for first, second in pairs.tolist():
            if first in self._digests and second in self._digests:
                if self._digests[first] == self._digests[second]:
                    same.append((first, second, 0.0))
            elif first in self._pixels and second in self._pixels:
                shown.append((first, second))
        for start in range(0, len(shown), _PAIRS_AT_ONCE):
            some = shown[start : start + _PAIRS_AT_ONCE]
            one, other = (torch.stack([self._pixels[number] for number in side]) for side in zip(*some, strict=True))
            sides = torch.tensor([min(self._sides[first], self._sides[second]) for first, second in some])
            for (first, second), difference in zip(some, differences(one, other, sides).tolist(), strict=True):
                if difference < np.inf:
                    same.append((first, second, difference))
        return same


def _features(embedding: Embedding, numbers: set[int]) -> dict[int, np.ndarray]:
    """Features of some rows; none of a table of patches."""
    if set(embedding.arguments.features) == {"patches"}:
        return {}
    column = compared_column(embedding)
    return {number: row[column].astype(np.float32) for number, row in read_rows(embedding.files, [column], numbers)}


class _Groups:
    """Images that are joined by pairs."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def _first(self, image: int) -> int:
        while (parent := self._parents.get(image, image)) != image:
            self._parents[image] = self._parents.get(parent, parent)
            image = parent
        return image

    def join(self, one: int, other: int) -> None:
        """Makes two images of one group; its first image stands for it."""
        first, second = sorted((self._first(one), self._first(other)))
        self._parents[second] = first

    def numbered(self, images: list[int]) -> dict[int, int]:
        """Numbers of the groups of images, from 1 in the order of their first images."""
        firsts = sorted({self._first(image) for image in images})
        numbers = {first: number for number, first in enumerate(firsts, start=1)}
        return {image: numbers[self._first(image)] for image in images}
