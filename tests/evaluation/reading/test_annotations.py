"""Labels, maps and boxes in the forms that datasets have them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_geossl.evaluation.reading.annotations import as_lists, class_number, corners, is_label, open_map

CLASSES = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5


def encoded(picture: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def palette(classes: np.ndarray) -> Image.Image:
    picture = Image.fromarray(classes, "L").convert("P")
    picture.putdata(classes.flatten().tolist())
    picture.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 90, 90, 90, 1, 2, 3] + [0] * 753)
    return picture


def array_file(values: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, values)
    return file.getvalue()


GREY = Image.fromarray(CLASSES)
FORMS: dict[str, Any] = {
    "picture": GREY,
    "palette": palette(CLASSES),
    "16 bits": Image.fromarray(CLASSES.astype(np.uint16)),
    "grey as RGB": Image.merge("RGB", [GREY] * 3),
    "grey as RGBA": Image.merge("RGBA", [GREY] * 3 + [Image.new("L", GREY.size, 255)]),
    **{f"{kind} file": encoded(GREY, kind) for kind in ("PNG", "TIFF", "BMP", "GIF")},
    **{
        f"array of {kind}": CLASSES.astype(kind)
        for kind in ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
    },
    "list": CLASSES.tolist(),
    ".npy file": array_file(CLASSES.astype(np.int64)),
    ".npy file of one channel": array_file(CLASSES[None].astype(np.float32)),
}


@pytest.mark.parametrize("form", [*FORMS])
def test_every_form_of_a_map_has_the_same_numbers(form: str) -> None:
    picture = open_map(FORMS[form], "annotation")
    assert np.array_equal(np.asarray(picture), CLASSES)


def test_boolean_maps() -> None:
    expected = CLASSES > 2
    for form in (expected, Image.fromarray(expected), expected.tolist()):
        assert np.array_equal(np.asarray(open_map(form, "m")).astype(int), expected.astype(int))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (encoded(GREY, "JPEG"), "holds JPEG files, whose compression may change the numbers of a map: save it as PNG"),
        (b"no picture", "no map that can be read"),
        (
            array_file(np.zeros((99, 99)))[:500],
            r"no map that can be read \(it is truncated.*save it as PNG, TIFF or .npy",
        ),
        (
            Image.new("RGB", (4, 4), (128, 0, 0)),
            r"maps in colours, such as \(128, 0, 0\): save the number of the class",
        ),
        (np.zeros((2, 3, 4, 5), np.float32), "no map that can be read"),
    ],
)
def test_what_is_no_map_is_refused_in_a_sentence(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_map(value, "annotation")


# one object in an image of 40 x 20: x 4 to 12, y 5 to 15
BOX = {
    "coco": [4, 5, 8, 10],
    "pascal_voc": [4, 5, 12, 15],
    "yolo": [0.2, 0.5, 0.2, 0.5],
    "xyxy_fractions": [0.1, 0.25, 0.3, 0.75],
    "xywh_fractions": [0.1, 0.25, 0.2, 0.5],
}


@pytest.mark.parametrize("kind", [*BOX])
def test_every_format_of_boxes_has_the_same_corners(kind: str) -> None:
    assert corners(np.array([BOX[kind], BOX[kind]]), kind, 40, 20) == pytest.approx(np.array([[4, 5, 12, 15]] * 2))
    assert corners(np.array([]), kind, 40, 20).shape == (0, 4)


@pytest.mark.parametrize("boxes", ["bbox", "boxes", "box"])
@pytest.mark.parametrize("categories", ["category", "categories", "label", "labels", "category_id"])
@pytest.mark.parametrize("points", [{}, {"keypoints": [[1, 2, 2], [3, 4, 0]]}])
def test_lists_of_objects_and_objects_of_lists(boxes: str, categories: str, points: dict[str, list]) -> None:
    lists = {boxes: [[1, 2, 3, 4], [5, 6, 7, 8]], categories: [3, 1], **points}
    objects = [{key: values[place] for key, values in lists.items()} for place in range(2)]
    expected = {"bbox": lists[boxes], "category": [3, 1], **points}
    assert as_lists(lists, "objects") == as_lists(objects, "objects") == expected
    assert as_lists([], "objects") == {"bbox": [], "category": []}


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[1, 2, 3, 4]]}, "holds bbox, and no categories: they must stand under category or"),
        ({"label": [1]}, "holds label, and no boxes"),
        ({"bbox": [[1, 2, 3, 4]], "label": [1, 2]}, "holds 1 boxes and 2 categories"),
        ([[1, 2, 3, 4]], "must hold dictionaries of objects, got list"),
        *(
            ({"bbox": [[1, 2, 3, 4], box], "label": [1, 2]}, "holds the box .*: a box must be four numbers")
            for box in ([1, 2, 3, 4, 5], ["1", "2", "3", "x"], None, [1, 2, None, 4], [1, 2, 3, float("nan")])
        ),
        *(
            (
                {"bbox": [[1, 2, 3, 4]] * 2, "label": [1, 2], "keypoints": points},
                "x, y and visibility of as many points",
            )
            for points in ([[1, 1, 2], [1, 1, 2, 3, 3, 2]], [[1, 1, 2]], [[1, 1], [1, 1]], [None, [1, 1, 2]])
        ),
    ],
)
def test_objects_that_are_not_whole_are_refused(objects: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_lists(objects, "objects")


@pytest.mark.parametrize("value", [3, 3.0, np.int16(3), np.float32(3), np.array(3)])
def test_class_numbers(value: Any) -> None:
    assert class_number(value, None, "label") == 3
    assert type(class_number(value, None, "label")) is int
    assert class_number(value, (7, 9, 3), "label") == 2
    assert class_number("cat", ("bird", "cat"), "label") == 1
    assert type(class_number(True, None, "label")) is int  # as a tensor of numbers


@pytest.mark.parametrize(
    ("value", "known", "message"),
    [
        (2.7, None, "must hold the numbers of classes, got '2.7'"),
        ("cat", None, "got the text 'cat': number the classes, or put"),
        ([1], None, "must hold the numbers of classes"),
        (-3, None, "must hold the numbers of classes, from 0 on, got -3"),
        ("dog", ("bird", "cat"), "holds 'dog', which is none of the 2 known classes"),
    ],
)
def test_what_is_no_class_is_refused(value: Any, known: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_number(value, known, "label")


def test_missing_labels() -> None:
    assert [is_label(value) for value in (None, "", -1, float("nan"), 0, "0", False, 7.0)] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("ending", ["npy", "npz", "tif", "png", "pgm", "gif", "bmp"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_maps_of_every_lossless_format_keep_their_numbers(ending: str, as_bytes: bool, tmp_path: Path) -> None:
    numbers = np.arange(30, dtype=np.uint8).reshape(5, 6)
    path = tmp_path / f"map.{ending}"
    {"npy": np.save, "npz": np.savez}.get(ending, lambda file, array: Image.fromarray(array).save(file))(path, numbers)
    opened = open_map(path.read_bytes() if as_bytes else path, "annotation")
    assert np.array_equal(np.asarray(opened), numbers)


def test_maps_that_pillow_does_not_read_are_read(tmp_path: Path) -> None:
    numbers = np.arange(30, dtype=np.int64).reshape(5, 6)
    tifffile.imwrite(tmp_path / "map.tif", numbers, compression="zlib")
    assert np.array_equal(np.asarray(open_map(tmp_path / "map.tif", "annotation")), numbers)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_maps_are_refused(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "map", kind)
    with pytest.raises(ValueError, match=f"holds {kind} files, whose compression may change the numbers of a map"):
        open_map(tmp_path / "map", "annotation")
