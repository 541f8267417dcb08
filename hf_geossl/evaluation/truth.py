"""Truth of a labelled dataset: what its columns mean, decided once from its rows, said where it is not the default."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_geossl.data.images import BrokenImageError, decode_image
from hf_geossl.data.sources.archives import ADDRESS
from hf_geossl.data.sources.base import encoded_image
from hf_geossl.data.sources.copies import find_copies
from hf_geossl.data.sources.opening import LabelledRows
from hf_geossl.data.wording import as_text, counted
from hf_geossl.evaluation.reading.annotations import (
    BOX_FORMATS,
    IGNORED,
    as_lists,
    categories_of,
    corners,
    is_label,
    lies_inside,
    open_map,
)

logger = logging.getLogger(__name__)

ROWS_READ = 32  # of each split, to decide what its truth means
_FEW_IDS = 10  # class numbers may have gaps, but not nine of ten missing

Row = Mapping[str, Any]
Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset


@dataclass(frozen=True)
class Columns:
    """Names of a dataset's columns and what their values mean; those that it lacks are left out of its samples.

    Args:
        image (`str`): The image.
        label (`str`): Its class: a number, `ClassLabel`, id or text; or a list of them, which are `multi_label`.
        semantic (`str`): An image of class indices, one a pixel.
        depth (`str`): Depths, one a pixel, 0 where unknown.
        depth_scale (`float`, *optional*): Metres a unit of them. By default floating point depths are metres, whole numbers
            millimetres.
        objects (`str`): Boxes and categories of the objects, and optionally "keypoints" as in COCO: x, y and visibility (0
            where not labelled) of each, `[[x, y, v, x, y, v, ...], ...]`. A dictionary of lists or a list of dictionaries,
            with the boxes under "bbox", "boxes" or "box" and the categories under "category", "label" or "category_id".
        bbox_format (`str`, *optional*): `"coco"` (x, y, width, height), `"pascal_voc"` (x1, y1, x2, y2, as torchvision),
            `"yolo"` (center x, center y, width, height as shares of the image), `"xyxy_fractions"` or `"xywh_fractions"`. By
            default what the boxes of the first images can only be.
        reduce_labels (`bool`): Whether 0 means "no class" in `semantic` (as in ADE20k), so that classes start at 1.

    Raises:
        ValueError: For another `bbox_format`, or a scale that is not above 0.
    """

    image: str = "image"
    label: str = "label"
    semantic: str = "annotation"
    depth: str = "depth_map"
    depth_scale: float | None = None
    objects: str = "objects"
    bbox_format: str | None = None
    reduce_labels: bool = False

    def __post_init__(self) -> None:
        if self.bbox_format not in (None, *BOX_FORMATS):
            raise ValueError(f"bbox_format must be one of {', '.join(BOX_FORMATS)}, got {self.bbox_format!r}")
        if self.depth_scale is not None and not 0 < self.depth_scale < math.inf:
            raise ValueError(f"depth_scale must be above 0 (metres a unit), got {self.depth_scale}")


@dataclass(frozen=True)
class Truth:
    """What the values of a dataset's columns mean.

    Args:
        labels, categories (`tuple`, *optional*): The values in the order of their class numbers, where they are no such
            numbers themselves.
        lists (`bool`): Whether an image has a list of labels.
        vectors (`str`): "one-hot" or "multi-hot" where an image has a vector of 0 and 1, one place a class.
        binary (`bool`): Whether maps of classes hold 0 and 255 alone, of which 255 is class 1.
        bbox_format (`str`): See `Columns`.
        depth_scale (`float`): Metres a unit.
    """

    labels: tuple[object, ...] | None = None
    categories: tuple[object, ...] | None = None
    lists: bool = False
    binary: bool = False
    bbox_format: str = "coco"
    depth_scale: float = 1.0
    vectors: str = ""


def decide_truth(
    splits: Sequence[Rows], columns: Columns, name: str, tables: Sequence[datasets.Dataset] | None = None
) -> Truth:
    """Decides what the truth of a dataset means, from its labels and some rows of each split; logs what is not the default.

    Args:
        splits (`Sequence` of datasets): With images undecoded. All labels of a `datasets.Dataset` are read; of a stream the
            first `ROWS_READ` rows.
        columns (`Columns`): Names of the columns.
        name (`str`): Of the dataset, for messages.
        tables (`Sequence[datasets.Dataset]`, *optional*): All labels and objects, where `splits` are streams.

    Returns:
        `Truth`: The same for all of its splits.

    Raises:
        ValueError: If the values can be no truth, or have several meanings; it names the argument that says which.
    """
    some = [row for rows in splits for row in _some(rows, columns)]
    tables = [rows for rows in splits if isinstance(rows, datasets.Dataset)] if tables is None else tables
    vectors, width = _vectors(tables, columns.label, name)
    labels, lists = (
        (tuple(range(width)), vectors == "multi-hot")
        if vectors
        else _number(_values(tables, columns.label), columns.label, "labels", name)
    )
    categories = None
    if any(row.get(columns.objects) is not None for row in some):
        found = (categories_of(value) for value in _values(tables, columns.objects, whole=True) if value is not None)
        categories, _ = _number(
            [(entry for entries in found for entry in entries)], columns.objects, "categories", name
        )
    return Truth(
        labels,
        categories,
        lists,
        _is_binary(some, columns, name),
        columns.bbox_format or _box_format(some, columns, name),
        columns.depth_scale or _depth_scale(some, columns, name),
        vectors,
    )


def _some(rows: Rows, columns: Columns) -> Iterator[Row]:
    if isinstance(rows, datasets.IterableDataset):
        yield from islice(rows, ROWS_READ)
    else:
        wanted = {columns.image, columns.semantic, columns.depth, columns.objects}
        truth = wanted & set(rows.column_names) - {columns.image}
        step = max(1, len(rows) // ROWS_READ)
        yield from (rows[index] for index in range(0, len(rows) if truth else 0, step))


def _values(tables: Sequence[datasets.Dataset], column: str, *, whole: bool = False) -> Iterator[Iterable[Any]]:
    """All values of a column, table by table."""
    for rows in tables:
        if column in rows.column_names:
            feature = rows.features[column]
            if not hasattr(getattr(feature, "feature", feature), "names"):  # ClassLabel has numbers
                values = rows.with_format(None)[column]
                yield from values if whole else [values]


def _vectors(tables: Sequence[datasets.Dataset], column: str, name: str) -> tuple[str, int]:
    """Whether labels are vectors of 0 and 1 of one length, which lists of classes are not; and that length."""
    lengths, places = set[int](), set[int]()
    for values in _values(tables, column):
        for value in values:
            if value is None:
                continue
            if not isinstance(value, list | tuple | np.ndarray) or not set(value) <= {0, 1}:
                return "", 0
            lengths.add(len(value))
            places.add(int(sum(value)))
    if len(lengths) != 1 or max(lengths) < 2:
        return "", 0
    vectors = "one-hot" if places == {1} else "multi-hot"
    logger.warning(
        "the labels of %s in column %r are %s vectors: %s",
        name,
        column,
        vectors,
        counted(max(lengths), "class", "classes"),
    )
    return vectors, max(lengths)


def _number(
    splits: Iterable[Iterable[Any]], column: str, what: str, name: str
) -> tuple[tuple[object, ...] | None, bool]:
    """The values in the order of their class numbers, None where they are such numbers; and whether they come in lists."""
    distinct: set[Any] = set()
    lists = False
    for values in splits:
        for value in values:
            if isinstance(value, dict):
                raise ValueError(
                    f"the column {column!r} of {name} holds dictionaries of {', '.join(map(str, value))}: make a column of the "
                    f"{what} and name it"
                )
            if isinstance(value, list | tuple | np.ndarray):
                lists = True
                distinct.update(value)
            elif is_label(value):
                distinct.add(value)
    if not distinct:
        return None, lists
    if any(isinstance(value, str) for value in distinct):
        ordered = sorted(
            map(str, distinct), key=lambda text: (not text.isdigit(), int(text) if text.isdigit() else 0, text)
        )
        logger.warning(
            "the %s of %s in column %r are texts: %s, numbered in the order %s%s",
            what, name, column, counted(len(ordered), "class", "classes"), ", ".join(ordered[:5]),
            ", ..." if len(ordered) > 5 else "",
        )  # fmt: skip
        return tuple(ordered), lists
    wrong = next((v for v in distinct if not isinstance(v, Real) or not float(v).is_integer()), None)
    if wrong is not None:
        raise ValueError(
            f"the column {column!r} of {name} holds values such as {str(wrong)[:40]!r}, which are no classes: name the one "
            f"with the {what}, or number the classes"
        )
    numbers = sorted(int(value) for value in distinct)
    if any(not isinstance(value, Integral) for value in distinct):
        logger.warning("the %s of %s in column %r are floating point: taken as whole numbers", what, name, column)
    if numbers[0] != 0 or (len(numbers) > 1 and numbers[-1] >= _FEW_IDS * len(numbers)):
        logger.warning(
            "the %s of %s in column %r go from %d to %d: %s, numbered in that order from 0 on",
            what, name, column, numbers[0], numbers[-1], counted(len(numbers), "class", "classes"),
        )  # fmt: skip
        return tuple(numbers), lists
    return (tuple(range(numbers[-1] + 1)) if lists else None), lists


def _maps(some: Sequence[Row], column: str) -> Iterator[np.ndarray]:
    for row in some:
        if row.get(column) is not None:
            yield np.asarray(open_map(encoded_image(row[column]), column))


def _is_binary(some: Sequence[Row], columns: Columns, name: str) -> bool:
    values: set[float] = set()
    for classes in _maps(some, columns.semantic):
        values.update(np.unique(classes).tolist())
    whole = {value for value in values if value != IGNORED}
    if values == {IGNORED}:
        raise ValueError(
            f"the maps of {name} in column {columns.semantic!r} hold 255 alone, a pixel without truth: name the column of the "
            "classes by --semantic_column, or write classes from 0 on"
        )
    if values == {0, IGNORED}:
        logger.warning(
            "the maps of %s in column %r hold 0 and 255 alone: 255 is taken as class 1 (in maps with other classes it is a "
            "pixel without truth)",
            name, columns.semantic,
        )  # fmt: skip
        return True
    if len(whole) > 1 and max(whole) >= 4 * len(whole) and max(whole) < IGNORED:
        logger.warning(
            "the maps of %s in column %r hold the values %s, so that there are %d classes; if these are grey levels of %d "
            "classes, number them 0, 1, 2, ...",
            name, columns.semantic, ", ".join(f"{value:g}" for value in sorted(whole)[:8]), int(max(whole)) + 1, len(whole),
        )  # fmt: skip
    return False


def _depth_scale(some: Sequence[Row], columns: Columns, name: str) -> float:
    largest, whole = 0.0, False
    for depths in _maps(some, columns.depth):
        whole = whole or np.issubdtype(depths.dtype, np.integer)
        known = depths[np.isfinite(depths)]
        largest = max(largest, float(known.max())) if known.size else largest
    if whole:
        logger.warning(
            "the depths of %s in column %r are whole numbers up to %g: taken as millimetres (%g m); --depth_scale says how "
            "many metres a unit is",
            name, columns.depth, largest, largest / 1000,
        )  # fmt: skip
        return 0.001
    if largest > 1000:
        logger.warning(
            "the depths of %s in column %r reach %g and are taken as metres; --depth_scale 0.001 reads millimetres",
            name, columns.depth, largest,
        )  # fmt: skip
    return 1.0


def _box_format(some: Sequence[Row], columns: Columns, name: str) -> str:
    """The only format in which all boxes lie in their images; COCO's where it is one of several."""
    possible, seen, fractions = set(BOX_FORMATS), 0, True
    for row in some:
        if row.get(columns.objects) is None:
            continue
        boxes = np.asarray(as_lists(row[columns.objects], columns.objects)["bbox"], dtype=np.float64).reshape(-1, 4)
        if not len(boxes):
            continue
        try:
            image = decode_image(encoded_image(row[columns.image]))
        except BrokenImageError:
            continue
        seen, fractions = seen + len(boxes), fractions and bool(boxes.max() <= 1)
        possible = {kind for kind in possible if lies_inside(corners(boxes, kind, *image.size), *image.size)}
    pixels = [kind for kind in ("coco", "pascal_voc") if kind in possible]
    shares = [kind for kind in ("yolo", "xyxy_fractions", "xywh_fractions") if kind in possible]
    fitting = shares if fractions else pixels
    if not seen or (not fractions and "coco" in possible):
        return "coco"
    if len(fitting) == 1:
        logger.warning(
            "the boxes of %s in column %r lie in their images as %s alone, and are read so (--bbox_format says otherwise)",
            name, columns.objects, fitting[0],
        )  # fmt: skip
        return fitting[0]
    how = (
        "may be " + " or ".join(fitting) if fitting else f"reach out of their images as any of {', '.join(BOX_FORMATS)}"
    )
    raise ValueError(f"the boxes of {name} in column {columns.objects!r} {how}: say which by --bbox_format")


def _say_copies(splits: Sequence[tuple[str, Rows]], columns: Columns, name: str) -> None:
    """Says how many images of the second split are there in the first too, where both are files on this machine."""
    paths = [_paths(rows, columns.image) for _, rows in splits]
    copies = find_copies(*paths)
    if copies:
        pair = " is ".join(as_text(_short(path)) for path in copies[0])
        logger.warning(
            "%s: %s of the %d of the split %s have the content of one of the split %s (%s): measured images were seen in "
            "training",
            name, counted(len(copies), "image"), len(paths[1]), splits[1][0], splits[0][0], pair,
        )  # fmt: skip


def _short(path: str) -> str:
    """The last folders and the name of a file."""
    member = path.removeprefix(ADDRESS).split("::")[0] if path.startswith(ADDRESS) else path
    return "/".join(member.split("/")[-3:])


def _paths(rows: Rows, column: str) -> list[str]:
    """The paths of a column's files; none of images that lie in the table itself."""
    if isinstance(rows, datasets.IterableDataset) or not isinstance(rows.features.get(column), datasets.Image):
        return []
    cells = pa.chunked_array(rows.data.column(column))
    if pc.struct_field(cells, "bytes").null_count < len(cells):
        return []
    return [path for path in pc.struct_field(cells, "path").to_pylist() if path is not None]


class SharedTruth:
    """What the truth of several splits means, decided and logged once.

    Args:
        splits (`Sequence[str]`): Their names; those that are not there are passed over.
    """

    def __init__(self, splits: Sequence[str]) -> None:
        self.splits = tuple(dict.fromkeys(splits))
        self.truth: Truth | None = None
        self.labelled: dict[str, Sequence[int]] = {}
        self.lacking: dict[str, int] = {}  # how many rows have no label

    def decide(
        self, opened: dict[str, LabelledRows], opening: Callable[[str], LabelledRows], columns: Columns, name: str
    ) -> Truth:
        """Decides it by all splits, of which some are open already."""
        if self.truth is None:
            for split in self.splits:
                with suppress(ValueError):  # tasks of one split do not need the other
                    opened[split] = opened[split] if split in opened else opening(split)
            if len(self.splits) == 2 and all(split in opened for split in self.splits):
                _say_copies([(split, opened[split].rows) for split in self.splits], columns, name)
            splits = [opened[key] for key in sorted(opened)]
            tables = [
                table for split in splits if (table := split.columns((columns.label, columns.objects))) is not None
            ]
            self.truth = decide_truth([split.rows for split in splits], columns, name, tables)
        return self.truth

    def with_label(self, opened: LabelledRows, columns: Columns, name: str) -> Sequence[int]:
        """The rows that have a label, where labels are the only truth and can be known; says how many have none."""
        if name not in self.labelled:
            present = opened.rows.column_names or ()
            others = {columns.semantic, columns.depth, columns.objects} & set(present)
            table = None if others or columns.label not in present else opened.columns((columns.label,))
            labels = [] if table is None else table.with_format(None)[columns.label]
            chosen = [index for index, label in enumerate(labels) if is_label(label)]
            if chosen and len(chosen) < len(labels):
                logger.warning(
                    "%s: images without a label, left out: %d of %d", name, len(labels) - len(chosen), len(labels)
                )
            rows = opened.rows
            self.labelled[name] = chosen or range(0 if isinstance(rows, datasets.IterableDataset) else len(rows))
            self.lacking[name] = len(labels) - len(chosen) if chosen else 0
        return self.labelled[name]
