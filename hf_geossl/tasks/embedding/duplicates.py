"""Near-duplicates in a table: the same picture again, resized or recompressed.

Features alone do not tell them, for all images are alike to a trunk of random weights. Candidates are pairs whose thumbnails
hardly differ; they are compared by the pixels of the images themselves.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from PIL import Image

from hf_geossl.data.contact_sheet import draw_rows
from hf_geossl.tasks.embedding.embed import Embedding
from hf_geossl.tasks.embedding.features import THUMBNAIL
from hf_geossl.tasks.embedding.neighbours import compared_column
from hf_geossl.tasks.embedding.pictures import as_columns, pictures_of, places_in, small_pictures
from hf_geossl.tasks.embedding.search import read_blocks, read_rows, relative_difference, similar_pairs
from hf_geossl.tasks.embedding.tiles import Place

CANDIDATE, DUPLICATE = 0.06, 0.12  # largest relative differences, of thumbnails and of images of 24 x 24 pixels
_SIDE = 24
_MOST_GROUPS, _MOST_SHOWN = 12, 8  # of a sheet, and of each of them


def find_duplicates(embedding: Embedding) -> pd.DataFrame:
    """Finds images of a table that show the same picture.

    Args:
        embedding ([`Embedding`]): The table, as `embed` has returned it.

    Returns:
        `pandas.DataFrame`: A row for each copy, in the order of the table: `group` from 1, `key`, `copy_of` (the image before
        it that it is most like), the corners of both where images were cut into tiles, `difference` of their pixels (0 for
        equal ones; see `relative_difference`), and `similarity`, the cosine of their features.
    """
    thumbnails = [block[THUMBNAIL] for block in read_blocks(embedding.files, [THUMBNAIL])]
    device = embedding.encoder.device
    pairs = similar_pairs(np.concatenate(thumbnails), CANDIDATE, device)
    numbers = set(pairs.flatten().tolist())
    places = embedding.places(numbers)
    pixels = _small_pixels(embedding, places)
    best: dict[int, tuple[float, int]] = {}  # copy -> difference, the image before it
    groups = _Groups()
    for first, second in pairs.tolist():
        if first not in pixels or second not in pixels:
            continue
        difference = _difference(pixels[first], pixels[second])
        if difference <= DUPLICATE:
            groups.join(first, second)
            best[second] = min(best.get(second, (np.inf, 0)), (difference, first))
    features = _features(embedding, {*best, *(first for _, first in best.values())})
    names = groups.numbered(sorted(best))
    rows = []
    for copy, (difference, original) in sorted(best.items()):
        row = {"group": names[copy], **as_columns(places[copy]), **as_columns(places[original], "copy_of")}
        row |= {"difference": difference}
        if features:
            one, other = features[copy], features[original]
            row["similarity"] = float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["group", "key", "copy_of", "difference", "similarity"])


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
    return draw_rows(rows, f"{len(table):,} copies in {len(groups):,} groups; each row: an image and its copies")


def _small_pixels(embedding: Embedding, places: Mapping[int, Place]) -> dict[int, torch.Tensor]:
    numbers: dict[Place, list[int]] = {}
    for number, place in places.items():
        numbers.setdefault(place, []).append(number)
    pixels: dict[int, torch.Tensor] = {}
    for place, picture in pictures_of(embedding.images, embedding.inputs, numbers):
        small = torch.from_numpy(np.array(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)))  # (24, 24, 3)
        pixels |= dict.fromkeys(numbers[place], small)
    return pixels


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    first, second = one.float(), other.float()
    variances = [image.var(dim=(0, 1), correction=0).mean() for image in (first, second)]
    return float(relative_difference((first - second).square().mean(), torch.stack(variances).mean()))


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
