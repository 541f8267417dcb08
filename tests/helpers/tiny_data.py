"""Small data for the protocols of evaluation: clusters of features, and folders of images with truth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def clusters(seed: int, images: int, classes: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features around one random centre a class."""
    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(classes, width))
    labels = generator.integers(classes, size=images)
    return (centers[labels] + 1.5 * generator.normal(size=(images, width))).astype(np.float32), labels


def davis_folder(root: Path, side: int = 64, frames: int = 5) -> Path:
    """Two clips of a speckled square that moves by 4 pixels a frame over a plain ground; masks with a palette."""
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for clip in ("runner", "swimmer"):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / clip).mkdir(parents=True)
        for frame in range(frames):
            image = np.full((side, side, 3), 90, np.uint8)
            mask = np.zeros((side, side), np.uint8)
            place = slice(16, 32), slice(8 + 4 * frame, 24 + 4 * frame)
            image[place], mask[place] = noise, 1
            Image.fromarray(image).save(root / f"JPEGImages/480p/{clip}/{frame:05}.png")
            palette = Image.fromarray(mask, mode="P")
            palette.putpalette([0, 0, 0, 128, 0, 0])
            palette.save(root / f"Annotations/480p/{clip}/{frame:05}.png")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("swimmer\n")
    return root


def folder_with_maps(path: Path, *, classes: int, maps: bool = True) -> str:
    """Four images of noise, with maps of classes from 0 to `classes`."""
    rows = []
    (path / "train").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(4):
        image = Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8))
        image.save(path / "train" / f"{index}.png")
        truth = np.arange(40 * 48, dtype=np.uint8).reshape(40, 48) % (classes + 1)
        Image.fromarray(truth).save(path / "train" / f"{index}_map.png")
        rows.append({"file_name": f"{index}.png"} | ({"annotation_file_name": f"{index}_map.png"} if maps else {}))
    if not maps:
        for file in path.glob("train/*_map.png"):
            file.unlink()
    (path / "train" / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def coco_folder(root: Path) -> Path:
    """Twelve images of 80 x 60 with a red or blue rectangle each, in COCO's fields, with three keypoints; some have none."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        rows = []
        (root / split).mkdir()
        for index in range(12):
            image = np.full((60, 80, 3), 128, np.uint8)
            objects: dict[str, Any] = {"bbox": [], "category": [], "keypoints": []}
            if index != 5:
                x, y, category = int(draw.integers(12, 40)), int(draw.integers(5, 30)), int(draw.integers(2))
                image[y : y + 24, x : x + 20] = (220, 30, 30) if category else (30, 30, 220)
                objects["bbox"].append([x, y, 20, 24])
                objects["category"].append(category)
                objects["keypoints"].append([x, y, 2, x + 20, y, 1, 5, 5, 0])
            Image.fromarray(image).save(root / split / f"{index}.png")
            rows.append(json.dumps({"file_name": f"{index}.png", "objects": objects}))
        (root / split / "metadata.jsonl").write_text("\n".join(rows))
    return root
