"""COCO's annotations: the objects of images, from a file beside them."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_geossl.data.sources.split_names import SPLIT_OF_WORD
from hf_geossl.data.wording import Place, counted

_NAME = re.compile(r"(instances|person_keypoints).*\.json|.*coco.*\.json", re.IGNORECASE)


def is_coco_name(name: str) -> bool:
    """Whether a file is called as COCO's annotations of objects are: instances_train2017.json, _annotations.coco.json."""
    return _NAME.fullmatch(name.rpartition("/")[2]) is not None


def images_of(document: Mapping[str, Any], place: Place) -> list[dict[str, Any]]:
    """The images of annotations with their objects: boxes (x, y, width, height), names of categories, keypoints.

    Args:
        document (`Mapping`): with "images", "annotations" and perhaps "categories".
        place (`Place`): of the file, to say how many crowds, which are one box around many objects, are left out.
    """
    names = {category["id"]: category.get("name", category["id"]) for category in document.get("categories", [])}
    objects: dict[Any, dict[str, list[Any]]] = {
        image["id"]: {"bbox": [], "category": []} for image in document["images"]
    }
    keypoints = any("keypoints" in entry for entry in document["annotations"])
    crowds = 0
    for entry in document["annotations"]:
        own = objects.get(entry.get("image_id"))
        if own is None or "bbox" not in entry:
            continue
        if entry.get("iscrowd"):
            crowds += 1
            continue
        own["bbox"].append([float(value) for value in entry["bbox"]])
        own["category"].append(names.get(entry.get("category_id"), entry.get("category_id")))
        if keypoints:
            own.setdefault("keypoints", []).append(entry.get("keypoints", []))
    if crowds:
        place.warn(f"{counted(crowds, 'box', 'boxes')} around crowds left out")
    return [{"file_name": image["file_name"], "objects": objects[image["id"]]} for image in document["images"]]


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
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(name.rpartition("/")[2], []).append(name)
    for file in sorted(files, key=lambda file: ("keypoints" in file, file)):
        words = {SPLIT_OF_WORD.get(word) for word in re.findall(r"[a-z]+", file.lower())} - {None}
        if words and split not in words:
            continue
        try:
            with open(os.path.join(place.path, file), encoding="utf-8") as opened:
                images = images_of(json.load(opened), place)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{file} cannot be read as annotations of COCO ({error}): mend or remove it") from error
        found = {
            own[0]: image["objects"]
            for image in images
            if len(
                own := [
                    name
                    for name in by_name.get(image["file_name"].rpartition("/")[2], [])
                    if f"/{name}".endswith(f"/{image['file_name']}")
                ]
            )
            == 1
        }
        if any(objects["bbox"] for objects in found.values()):
            place.warn(f"{file} has the objects of {counted(len(found), 'image')} of {len(names)} of the split {split}")
            return found
    return {}
