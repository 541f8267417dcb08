"""COCO's annotations: the objects of images, from a file beside them."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from hf_geossl.data.sources.split_names import SPLIT_OF_WORD, split_of
from hf_geossl.data.wording import Place, counted

_LOOKED_AT = 1000  # images whose orientation is compared
_NAME = re.compile(r"(instances|person_keypoints).*\.json|.*coco.*\.json", re.IGNORECASE)


def is_coco_name(name: str) -> bool:
    """Whether a file is called as COCO's annotations of objects are: instances_train2017.json, _annotations.coco.json."""
    return _NAME.fullmatch(name.rpartition("/")[2]) is not None


def images_of(document: Mapping[str, Any], place: Place) -> list[dict[str, Any]]:
    """The images of annotations with their objects: boxes (x, y, width, height), names of categories, keypoints.

    Boxes are cut where they reach out of the image whose size is written down.

    Args:
        document (`Mapping`): with "images", "annotations" and perhaps "categories".
        place (`Place`): of the file, to say how many boxes are left out, such as crowds, which are one box around many
            objects.
    """
    names = {category["id"]: category.get("name", category["id"]) for category in document.get("categories", [])}
    for name, count in Counter(names.values()).items():
        if count > 1:
            place.warn(f"{count} categories are called {name!r}: they are one class")
    objects: dict[Any, dict[str, list[Any]]] = {
        image["id"]: {"bbox": [], "category": []} for image in document["images"]
    }
    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in document["images"]}
    keypoints = any("keypoints" in entry for entry in document["annotations"])
    changes: Counter[str] = Counter()
    without = 0
    for entry in document["annotations"]:
        own, category = objects.get(entry.get("image_id")), entry.get("category_id")
        if not entry.get("bbox"):
            without += 1
            continue
        if own is None or (names and category not in names):
            changes["of images or categories that are not listed left out"] += 1
            continue
        if entry.get("iscrowd"):
            changes["around crowds left out"] += 1
            continue
        box = [float(value) for value in entry["bbox"]]
        inside = _cut(box, *sizes[entry["image_id"]])
        if inside[2] <= 0 or inside[3] <= 0:
            changes["without area left out"] += 1
            continue
        changes["cut at the edge of the image"] += max(abs(x - y) for x, y in zip(box, inside, strict=True)) > 1
        own["bbox"].append(inside)
        own["category"].append(names.get(category, category))
        if keypoints:
            own.setdefault("keypoints", []).append(entry.get("keypoints", []))
    if without:
        place.warn(f"{counted(without, 'annotation')} without a bbox left out")
    for change, count in changes.items():
        if count:
            place.warn(f"{counted(count, 'box', 'boxes')} {change}")
    return [{"file_name": image["file_name"], "objects": objects[image["id"]]} for image in document["images"]]


def _cut(box: list[float], width: float | None, height: float | None) -> list[float]:
    """The part of a box (x, y, width, height) in an image, where its size is known; a box inside stays as it is."""
    x, y, box_width, box_height = box
    if not width or not height or (x >= 0 and y >= 0 and x + box_width <= width and y + box_height <= height):
        return box
    left, top = max(x, 0.0), max(y, 0.0)
    return [left, top, min(x + box_width, width) - left, min(y + box_height, height) - top]


def _refuse_turned(document: Mapping[str, Any], paths: Mapping[str, str], file: str) -> None:
    """Refuses boxes of an image as its pixels are stored, where its EXIF orientation lays it on its side."""
    images = [image for image in document["images"] if image["file_name"] in paths and image.get("width")]
    for image in images[:: len(images) // _LOOKED_AT + 1]:
        try:
            with Image.open(paths[image["file_name"]]) as opened:
                turned = opened.getexif().get(0x0112, 1) >= 5 and opened.width != opened.height
                as_stored = opened.size == (image["width"], image.get("height"))
        except (OSError, ValueError, SyntaxError):
            continue  # broken images are counted where they are read
        if turned and as_stored:
            raise ValueError(
                f"{file} gives {image['file_name']} as {image['width']} x {image['height']} pixels, and its EXIF "
                "orientation lays it on its side, so that the boxes would lie elsewhere: write images as they are shown, "
                "without the orientation, or boxes of the image as shown"
            )


def objects_beside(names: Sequence[str], files: Sequence[str], split: str, place: Place) -> dict[str, dict[str, Any]]:
    """The objects of the images of a split, from the first of COCO's files in their folder that is about them.

    Args:
        names (`Sequence[str]`): of the split's images.
        files (`Sequence[str]`): of annotations, below the folder of `place`.
        split (`str`): by its own word: "train", "validation" or "test".
        place (`Place`): of the folder.

    Raises:
        ValueError: if a file cannot be read.
    """
    for file in sorted(files, key=lambda file: ("keypoints" in file, file)):
        words = {SPLIT_OF_WORD.get(word) for word in re.findall(r"[a-z]+", file.lower())} - {None}
        if words and split not in words:
            continue
        try:
            with open(os.path.join(place.path, file), encoding="utf-8-sig") as opened:
                document = json.load(opened)
            own_names, moved = _own_names([image["file_name"] for image in document["images"]], names, split)
            objects_of = objects_of_document(document, place, file, own_names)
        except (KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} cannot be read as annotations of COCO ({error}): mend or remove it") from error
        if any(objects["bbox"] for objects in objects_of.values()):
            place.warn(
                f"{file} has the objects of {counted(len(objects_of), 'image')} of {len(names)} of the split {split}{moved}"
            )
            return objects_of
    return {}


def objects_of_document(
    document: Mapping[str, Any], place: Place, file: str = "", own_names: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """The objects of images by the names of their files.

    Args:
        document (`Mapping`): COCO's annotations, see [`images_of`].
        place (`Place`): of the folder of the images.
        file (`str`, *optional*): of the annotations, for messages.
        own_names (`Mapping[str, str]`, *optional*): name in the document -> name below the folder, of the images that count;
            by default all, by the names in the document.

    Raises:
        ValueError: if boxes lie elsewhere than in the image as shown.
    """
    images = images_of(document, place)
    own_names = {image["file_name"]: image["file_name"] for image in images} if own_names is None else own_names
    objects_of = {
        own_names[image["file_name"]]: image["objects"] for image in images if image["file_name"] in own_names
    }
    if any(objects["bbox"] for objects in objects_of.values()):
        paths = {listed: os.path.join(place.path, name) for listed, name in own_names.items()}
        _refuse_turned(document, paths, file or place.name)
    return objects_of


def _own_names(listed: Sequence[str], names: Sequence[str], split: str) -> tuple[dict[str, str], str]:
    """The images that annotations are about, by the names there; and, where these lead elsewhere, what is said of it.

    An image is found by the end of its path. Where no path of a file leads to any image, as those of another machine
    (Label Studio's upload folder), the last part alone decides, if one image is called so.
    """
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(name.rpartition("/")[2], []).append(name)
    found, by_last_part = {}, {}
    for path in listed:
        parts = path.replace("\\", "/").split("/")
        same = by_name.get(parts[-1], [])
        ends = [name for name in same if f"/{name}".endswith("/" + "/".join(parts))]
        if len(ends) == 1:
            found[path] = ends[0]
        elif len(same) == 1 and {split_of(part) for part in parts[:-1]} <= {None, split}:
            by_last_part[path] = same[0]
    if found or not by_last_part:
        return found, ""
    path, name = next(iter(by_last_part.items()))
    return by_last_part, f"; their paths lead elsewhere, and the names of the files decide ({path} is {name})"
