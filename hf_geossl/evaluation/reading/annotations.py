"""Labels, maps, boxes of an image in the forms that datasets have them, read as one form."""

import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from hf_geossl.data.images import DEFAULT_MAX_PIXELS, BrokenImageError, read_raster

IGNORED = 255  # a pixel without truth
MAP_FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # lossless
ARRAY_FORMATS = ("TIFF", "NPY", "NPZ", "DICOM", "PBM", "PGM", "PPM", "PAM", "PFM")  # lossless too
BOX_FORMATS = ("coco", "pascal_voc", "yolo", "xyxy_fractions", "xywh_fractions")
_BOX_KEYS = ("bbox", "boxes", "box", "bboxes")
_CATEGORY_KEYS = ("category", "categories", "label", "labels", "category_id", "class", "classes", "class_labels")


def is_label(value: object) -> bool:
    """Whether a value says a class: not missing, not NaN, and not -1, which test splits without truth hold."""
    if value is None or isinstance(value, str):
        return bool(value)
    return not (isinstance(value, Real) and (math.isnan(value) or value == -1))


def class_number(value: object, known: tuple[object, ...] | None, column: str) -> int:
    """The class number of a label or category.

    Args:
        value: As the dataset has it.
        known (`tuple`, *optional*): All values in the order of their numbers; None where they are the numbers.
        column (`str`): Where it stands, for messages.

    Raises:
        ValueError: If it is no class.
    """
    if known is not None:
        same = str(value) if isinstance(known[0], str) else value
        if same in known:
            return known.index(same)
        raise ValueError(
            f"the column {column!r} holds {str(value)[:40]!r}, which is none of the {len(known)} known classes"
        )
    if isinstance(value, str):
        raise ValueError(
            f"the column {column!r} must hold the numbers of classes, got the text {value[:40]!r}: number the classes, or "
            "put the images in one folder a class"
        )
    number = value.item() if isinstance(value, np.ndarray | np.generic) or hasattr(value, "item") else value
    if not isinstance(number, Real) or not float(number).is_integer():
        raise ValueError(f"the column {column!r} must hold the numbers of classes, got {str(value)[:40]!r}")
    number = int(number) if isinstance(number, int) else int(float(number))
    if number < 0:
        raise ValueError(
            f"the column {column!r} must hold the numbers of classes, from 0 on, got {number}: number them so"
        )
    return number


def open_map(value: object, column: str) -> Image.Image:
    """Opens a map of classes or depths, one number a pixel: never turned to RGB, and never through a lossy format.

    Args:
        value (`bytes`, path, `PIL.Image.Image` or array of shape `(height, width)`): The map; files may be arrays too.
        column (`str`): Where it stands, for messages.

    Returns:
        `PIL.Image.Image`: of one channel.

    Raises:
        ValueError: If it is a JPEG or no image, too large, or of several channels that differ.
    """
    try:
        if isinstance(value, bytes | str | Path):
            value = _open_file(value, column)
        elif not isinstance(value, Image.Image):
            value = Image.fromarray(_map_array(np.asarray(value)))
    except (UnidentifiedImageError, TypeError, OSError, BrokenImageError) as error:
        reason = error.reason if isinstance(error, BrokenImageError) else type(error).__name__
        raise ValueError(
            f"the column {column!r} holds no map that can be read ({reason}): save it as PNG, TIFF or .npy"
        ) from error
    if value.width * value.height > DEFAULT_MAX_PIXELS:
        raise ValueError(f"a map of {value.width} x {value.height} pixels is larger than {DEFAULT_MAX_PIXELS} pixels")
    return _one_channel(value, column)


def _open_file(value: bytes | str | Path, column: str) -> Image.Image:
    """Opens the file of a map by Pillow, which keeps palettes, and what Pillow does not open as an image of numbers."""
    try:
        picture = Image.open(BytesIO(value) if isinstance(value, bytes) else value, formats=(*MAP_FORMATS, "JPEG"))
        if picture.format != "JPEG":
            picture.load()
            return picture
        kind = "JPEG"
    except (UnidentifiedImageError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raster = read_raster(value)
        kind = raster.kind
        if kind in ARRAY_FORMATS:
            pixels = raster.pixels[..., 0] if raster.pixels.shape[2] == 1 else raster.pixels
            return Image.fromarray(_map_array(pixels))
    raise ValueError(
        f"the column {column!r} holds {kind} files, whose compression may change the numbers of a map: save it as PNG"
    )


def _map_array(values: np.ndarray) -> np.ndarray:
    if values.dtype == bool or values.dtype == np.int8:
        return values.astype(np.uint8 if values.dtype == bool else np.int32)
    if values.dtype in (np.int64, np.uint32, np.uint64, np.int16):
        return values.astype(np.int32)
    return values.astype(np.float32) if values.dtype in (np.float64, np.float16) else values


def _one_channel(picture: Image.Image, column: str) -> Image.Image:
    if len(picture.getbands()) == 1:
        return picture
    pixels = np.asarray(picture)
    colors = pixels[..., : 3 if pixels.shape[-1] >= 3 else 1]
    if (colors == colors[..., :1]).all():  # a grey picture, saved as a coloured one
        return Image.fromarray(np.ascontiguousarray(colors[..., 0]))
    some = np.unique(colors.reshape(-1, colors.shape[-1]), axis=0)[:4].tolist()
    raise ValueError(
        f"the column {column!r} holds maps in colours, such as {', '.join(map(str, map(tuple, some)))}: save the number of "
        "the class (or the depth) of each pixel instead (one channel, as PNG)"
    )


def _first(objects: Mapping[str, Any], keys: Sequence[str], column: str, what: str) -> Any:
    for key in keys:
        if key in objects:
            return objects[key]
    raise ValueError(
        f"the column {column!r} holds {', '.join(map(str, objects)) or 'nothing'}, and no {what}: they must stand under "
        f"{' or '.join(keys[:3])}"
    )


def as_lists(objects: Any, column: str) -> dict[str, Any]:
    """Objects as a dictionary of lists with "bbox", "category" and, where they are there, "keypoints".

    Args:
        objects (`dict` of lists or list of `dict`): As the dataset has them.
        column (`str`): Where they stand, for messages.

    Raises:
        ValueError: If boxes or categories are missing, or their numbers differ.
    """
    if not isinstance(objects, Mapping):
        if not all(isinstance(entry, Mapping) for entry in objects):
            raise ValueError(
                f"the column {column!r} must hold dictionaries of objects, got {type(objects[0]).__name__}"
            )
        objects = {key: [entry.get(key) for entry in objects] for key in (objects[0] if len(objects) else ())}
        if not objects:
            return {"bbox": [], "category": []}
    lists = {
        "bbox": _first(objects, _BOX_KEYS, column, "boxes"),
        "category": _first(objects, _CATEGORY_KEYS, column, "categories"),
    }
    if len(lists["bbox"]) != len(lists["category"]):
        raise ValueError(
            f"the column {column!r} holds {len(lists['bbox'])} boxes and {len(lists['category'])} categories of an image: "
            "each object needs both"
        )
    wrong = next((box for box in lists["bbox"] if not _are_numbers(box, 4)), None)
    if wrong is not None or any(box is None for box in lists["bbox"]):
        raise ValueError(f"the column {column!r} holds the box {str(wrong)[:60]}: a box must be four numbers")
    points = objects.get("keypoints")
    if points is None:
        return lists
    lengths = {len(each) if isinstance(each, Sequence | np.ndarray) else 0 for each in points}
    if len(points) != len(lists["bbox"]) or len(lengths) > 1 or any(not n or n % 3 for n in lengths):
        raise ValueError(
            f"the column {column!r} holds keypoints that are not x, y and visibility of as many points for each object: "
            "write 0, 0, 0 for a point without truth"
        )
    return lists | {"keypoints": points}


def _are_numbers(values: Any, count: int) -> bool:
    try:
        return len(values) == count and all(math.isfinite(value) for value in values)
    except TypeError:
        return False


def categories_of(objects: Any) -> Iterable[Any]:
    """The categories of objects as a dataset has them, in either form of `as_lists`."""
    if isinstance(objects, Mapping):
        return next((objects[key] for key in _CATEGORY_KEYS if key in objects), ())
    return [entry[key] for entry in objects for key in _CATEGORY_KEYS if key in entry]


def corners(boxes: np.ndarray, bbox_format: str, width: int, height: int) -> np.ndarray:
    """Boxes `(objects, 4)` of any format as x1, y1, x2, y2 in pixels of an image of `width` x `height`."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).copy()
    if bbox_format == "yolo":
        boxes[:, :2] -= boxes[:, 2:] / 2
    if bbox_format in ("coco", "yolo", "xywh_fractions"):
        boxes[:, 2:] += boxes[:, :2]
    return boxes if bbox_format in ("coco", "pascal_voc") else boxes * np.array([width, height, width, height])


def lies_inside(boxes: np.ndarray, width: int, height: int) -> bool:
    """Whether boxes of x1, y1, x2, y2 are not empty and lie in an image, give or take a pixel of rounding."""
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all()
    return bool(
        ordered and boxes.min() >= -1 and boxes[:, [0, 2]].max() <= width + 1 and boxes[:, [1, 3]].max() <= height + 1
    )
