"""Photographs with shapes pasted on them, whose class, masks, depths and boxes are known: `python -m tests.helpers.labelled_photographs OUT`."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.helpers.photographs import pieces

SHAPES = ("disc", "square", "triangle")
BACKGROUND = 10.0  # metres; a shape is the nearer the larger it is


def _paste(
    photograph: Image.Image, kind: int, generator: np.random.Generator
) -> tuple[Image.Image, np.ndarray, list[int]]:
    """The photograph with a shape of random place, size and colour; where it is, and its box (x, y, width, height)."""
    side = photograph.width
    size = int(generator.integers(side // 4, side // 2))
    left, top = (int(generator.integers(0, side - size)) for _ in range(2))
    mask = Image.new("1", photograph.size)
    draw = ImageDraw.Draw(mask)
    right, bottom = left + size - 1, top + size - 1
    if kind == 0:
        draw.ellipse((left, top, right, bottom), fill=1)
    elif kind == 1:
        draw.rectangle((left, top, right, bottom), fill=1)
    else:
        draw.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=1)
    colour = tuple(int(value) for value in generator.integers(0, 255, 3))
    pasted = photograph.copy()
    pasted.paste(colour, mask=mask)
    return pasted, np.asarray(mask), [left, top, size, size]


def write_labelled_photographs(folder: Path, train: int = 12, test: int = 6, side: int = 48) -> Path:
    """A folder of two splits whose `metadata.jsonl` has label, masks, depths and boxes of each image; the same for all calls."""
    generator = np.random.default_rng(0)
    different = list(dict.fromkeys(pieces(train + test, side)))
    border = len(different) * train // (train + test)  # no piece is in both splits
    for split, count, own in (("train", train, different[:border]), ("test", test, different[border:])):
        (folder / split).mkdir(parents=True)
        rows = []
        for index, kind in enumerate(generator.permutation(np.arange(count) % len(SHAPES)).tolist()):
            photograph = Image.open(io.BytesIO(own[index % len(own)])).convert("RGB")
            image, mask, box = _paste(photograph, kind, generator)
            name = f"{index:03d}"
            image.save(folder / split / f"{name}.png")
            Image.fromarray((mask * (kind + 1)).astype(np.uint8)).save(folder / split / f"{name}_map.png")
            depth = np.where(mask, BACKGROUND * side / 8 / box[2], BACKGROUND)
            Image.fromarray((1000 * depth).astype(np.uint16)).save(folder / split / f"{name}_depth.png")
            row: dict[str, Any] = {"file_name": f"{name}.png", "label": SHAPES[kind]}
            row |= {"annotation_file_name": f"{name}_map.png", "depth_map_file_name": f"{name}_depth.png"}
            rows.append(json.dumps(row | {"objects": {"bbox": [box], "category": [SHAPES[kind]]}}))
        (folder / split / "metadata.jsonl").write_text("\n".join(rows))
    return folder


if __name__ == "__main__":
    print(write_labelled_photographs(Path(sys.argv[1]), 180, 60, 96))
