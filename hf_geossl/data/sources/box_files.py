"""Files of boxes beside images, as labelling tools write them: COCO's JSON of any name, YOLO, Pascal VOC, LabelMe, CVAT."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import yaml
from PIL import Image

from hf_geossl.data.sources.coco import is_coco_name, objects_beside, objects_of_document
from hf_geossl.data.sources.split_names import split_of
from hf_geossl.data.wording import Place, counted

_DOCUMENTS = 64  # JSON and XML files at most that are looked into, each of which may be about all images
_TRIED = 3  # files called after images, whose first holds something that tells what they are
_HEAD = 1 << 16
_ROLES = re.compile(
    r"(images?|imgs?|jpegimages|labels?|annotations?|ann|anns|xmls?|txts?|jsons?|b?boxes|obj_(\w+_)?data)([\s_.-]?(dir|files?))?"
)
_LISTS_OF_CLASSES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
_KINDS = {".txt": "YOLO", ".xml": "Pascal VOC", ".json": "LabelMe"}
_Shape = tuple[str, list[float]]  # a category, and x, y, width, height
_Annotated = tuple[float, float, list[_Shape]]  # width and height of an image, and what is in it


def box_files(root: str, files: Sequence[str], images: Sequence[str]) -> list[str]:
    """Those of some files that hold boxes of images, by their names and what stands in the first of them.

    Args:
        root (`str`): the folder that all lie below.
        files (`Sequence[str]`): beside the images.
        images (`Sequence[str]`): of the images.
    """
    stems = {_stem(name) for name in images}
    found = [file for file in files if is_coco_name(file)]
    called = {file for file in files if _stem(file) in stems} - set(found)
    alone = [
        file for file in files if file not in called and file not in found and file.lower().endswith((".json", ".xml"))
    ]
    if len(alone) <= _DOCUMENTS:
        found += [file for file in alone if _is_document(os.path.join(root, file))]
    for ending, kind in _KINDS.items():
        own = sorted(file for file in called if file.lower().endswith(ending))
        first = [text for file in own if (text := _head(os.path.join(root, file)).strip())][:_TRIED] if own else []
        if first and all(_looks_like(kind, text) for text in first):
            found += own
            found += [file for file in files if kind == "YOLO" and _may_name_classes(file) and file not in found]
    return found


def read_boxes(names: Sequence[str], files: Sequence[str], split: str, place: Place) -> dict[str, dict[str, Any]]:
    """The objects of the images of a split, from the first kind of files that has some; see [`objects_beside`] of COCO.

    Raises:
        ValueError: if a file cannot be read.
    """
    documents = [
        file for file in files if file.lower().endswith(".json") and _is_document(os.path.join(place.path, file))
    ]
    documents += [file for file in files if is_coco_name(file) and file not in documents]
    if objects := objects_beside(names, documents, split, place):
        return objects
    rest = [file for file in files if file not in documents]
    for kind in ("CVAT", *_KINDS.values()):
        own = [file for file in rest if _kind_of(file, place.path) == kind]
        found = _one_of_many(own, names, place) if kind == "CVAT" else _one_each(own, names, _READERS[kind], place)
        pairs = dict(found)
        if any(shapes for _, _, shapes in pairs.values()):
            place.warn(
                f"files of {kind}, such as {own[0]}, have the objects of {counted(len(pairs), 'image')} of {len(names)} of the "
                f"split {split}"
            )
            return objects_of_document(_as_coco(pairs), place)
    return {}


def _stem(name: str) -> str:
    return os.path.splitext(name.rpartition("/")[2])[0]


def _head(path: str) -> str:
    if not os.path.isfile(path):  # a pipe would be waited for
        return ""
    try:
        with open(path, "rb") as opened:
            return opened.read(_HEAD).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def _looks_like(kind: str, text: str) -> bool:
    if kind == "YOLO":
        line = text.split("\n")[0].split()
        return (
            len(line) >= 5 and line[0].isdigit() and all(re.fullmatch(r"-?\d*\.?\d+(e-?\d+)?", word) for word in line)
        )
    return ("<annotation" if kind == "Pascal VOC" else '"shapes"') in text  # also where nothing is in the image


def _is_document(path: str) -> bool:
    """Whether a file is of COCO's kind with boxes, or CVAT's, whatever it is called."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as opened:
            if path.lower().endswith(".xml"):
                return b"<annotations" in opened.read(_HEAD)
            content = opened.read()
    except OSError:
        return False
    return all(word in content for word in (b'"images"', b'"annotations"', b'"bbox"', b'"file_name"'))


def _kind_of(file: str, root: str) -> str:
    ending = os.path.splitext(file.lower())[1]
    return "CVAT" if ending == ".xml" and _is_document(os.path.join(root, file)) else _KINDS.get(ending, "")


def _key(name: str) -> tuple[str, ...]:
    """Where an image or its file of boxes lies, without the folders that say which of the two it is."""
    folders = name.split("/")[:-1]
    return (*(folder for folder in folders if not _ROLES.fullmatch(folder.lower())), _stem(name))


def _one_each(
    files: Sequence[str], names: Sequence[str], read: Callable[[str, str], _Annotated], place: Place
) -> Iterator[tuple[str, _Annotated]]:
    """The images of files that are called after one each."""
    by_key = {_key(file): file for file in files}
    stems: dict[str, list[str]] = {}
    for file in files:
        stems.setdefault(_stem(file), []).append(file)
    classes = _class_names(place.path, files)
    for name in names:
        same = stems.get(_stem(name), [])
        alone = same[0] if len(same) == 1 and not _splits_differ(name, same[0]) else None
        own = by_key.get(_key(name)) or alone
        if own is None:
            continue
        try:
            width, height, shapes = read(os.path.join(place.path, own), os.path.join(place.path, name))
        except (ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
            raise ValueError(f"{own} cannot be read as boxes ({error}): mend or remove it") from error
        yield name, (width, height, [(classes.get(category, category), box) for category, box in shapes])


def _splits_differ(one: str, other: str) -> bool:
    first, second = ({split_of(folder) for folder in name.split("/")[:-1]} - {None} for name in (one, other))
    return first != second and bool(second)


def _may_name_classes(file: str) -> bool:
    name = file.rpartition("/")[2].lower()
    return name in _LISTS_OF_CLASSES or name.endswith((".yaml", ".yml"))


def _class_names(root: str, files: Sequence[str]) -> dict[str, str]:
    """The names of YOLO's class numbers, from `data.yaml`, `classes.txt` or `obj.names` in the folder or beside the boxes."""
    if not files or not files[0].lower().endswith(".txt"):
        return {}
    for folder in dict.fromkeys((root, *(os.path.join(root, os.path.dirname(file)) for file in files[:1]))):
        for file in sorted(os.listdir(folder)):
            path = os.path.join(folder, file)
            if file.lower() in _LISTS_OF_CLASSES:
                with open(path, encoding="utf-8-sig") as opened:
                    return {str(number): line.strip() for number, line in enumerate(opened) if line.strip()}
            if _may_name_classes(file):
                content = yaml.safe_load(_head(path))
                names = content.get("names") if isinstance(content, dict) else None
                if isinstance(names, list | dict):
                    pairs = names.items() if isinstance(names, dict) else enumerate(names)
                    return {str(number): str(name) for number, name in pairs}
    return {}


def _upright_size(path: str) -> tuple[int, int]:
    """Width and height of an image as it is shown."""
    try:
        with Image.open(path) as opened:
            turned = opened.getexif().get(0x0112, 1) >= 5
            return opened.size[::-1] if turned else opened.size
    except (OSError, ValueError, SyntaxError):
        return 0, 0  # broken images are counted where they are read


def _of_yolo(path: str, image: str) -> _Annotated:
    """Boxes as shares of the image: class, center x, center y, width, height; of an odd number of values corners follow."""
    width, height = _upright_size(image)
    shapes: list[_Shape] = []
    with open(path, encoding="utf-8-sig") as opened:
        for line in opened:
            category, *values = line.split() or [""]
            if not category:
                continue
            numbers = [float(value) for value in values]
            if len(numbers) < 4:
                raise ValueError(f"the line {line.strip()[:40]!r} has no class and four numbers")
            if len(numbers) >= 6 and len(numbers) % 2 == 0:  # a polygon, or an oriented box
                box = _around(numbers[::2], numbers[1::2])
            else:
                x, y, wide, high = numbers[:4]
                box = [x - wide / 2, y - high / 2, wide, high]
            shapes.append((category, [value * side for value, side in zip(box, (width, height) * 2, strict=True)]))
    return width, height, shapes


def _of_voc(path: str, _: str) -> _Annotated:
    root = ElementTree.parse(path).getroot()
    width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    shapes = []
    for entry in root.iter("object"):
        left, top, right, bottom = (
            float(entry.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")
        )
        shapes.append(((entry.findtext("name") or "").strip(), [left, top, right - left, bottom - top]))
    return width, height, shapes


def _of_labelme(path: str, image: str) -> _Annotated:
    with open(path, encoding="utf-8-sig") as opened:
        content = json.load(opened)
    shapes = []
    for shape in content["shapes"]:
        points = shape["points"]
        if shape.get("shape_type") == "circle":  # its center, and a point on it
            (x, y), (a, b) = points
            radius = ((x - a) ** 2 + (y - b) ** 2) ** 0.5
            points = [[x - radius, y - radius], [x + radius, y + radius]]
        shapes.append((str(shape["label"]), _around([x for x, _ in points], [y for _, y in points])))
    width, height = _upright_size(image)
    return content.get("imageWidth") or width, content.get("imageHeight") or height, shapes


def _of_cvat(entry: ElementTree.Element) -> _Annotated:
    shapes = []
    for shape in entry:
        label, points = shape.get("label", ""), shape.get("points")
        if shape.tag == "box":
            left, top, right, bottom = (float(shape.get(side, "")) for side in ("xtl", "ytl", "xbr", "ybr"))
            shapes.append((label, [left, top, right - left, bottom - top]))
        elif shape.tag == "polygon" and points:
            pairs = [tuple(map(float, pair.split(","))) for pair in points.split(";")]
            shapes.append((label, _around([x for x, _ in pairs], [y for _, y in pairs])))
    return float(entry.get("width", 0)), float(entry.get("height", 0)), shapes


def _one_of_many(files: Sequence[str], names: Sequence[str], place: Place) -> Iterator[tuple[str, _Annotated]]:
    """The images of files that are about many, by the end of their paths."""
    for file in files:
        try:
            entries = list(ElementTree.parse(os.path.join(place.path, file)).getroot().iter("image"))
            read = [(entry.get("name", "").replace("\\", "/"), _of_cvat(entry)) for entry in entries]
        except (ValueError, ElementTree.ParseError) as error:
            raise ValueError(f"{file} cannot be read as boxes ({error}): mend or remove it") from error
        for listed, annotated in read:
            own = [name for name in names if f"/{name}".endswith(f"/{listed}")]
            if len(own) == 1:
                yield own[0], annotated


_READERS: dict[str, Callable[[str, str], _Annotated]] = {
    "YOLO": _of_yolo,
    "Pascal VOC": _of_voc,
    "LabelMe": _of_labelme,
}


def _around(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _as_coco(annotated: Mapping[str, _Annotated]) -> dict[str, Any]:
    """What was read of each image, as COCO writes it."""
    return {
        "images": [
            {"id": name, "file_name": name, "width": width, "height": height}
            for name, (width, height, _) in annotated.items()
        ],
        "annotations": [
            {"image_id": name, "category_id": category, "bbox": box}
            for name, (_, _, shapes) in annotated.items()
            for category, box in shapes
        ],
    }
