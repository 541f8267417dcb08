"""Photographs that the wheels of scikit-image and scikit-learn carry, cut into pieces: real input without a network."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photographs() -> list[Image.Image]:
    from skimage import data as skimage_data  # here, as benchmarks.gpu runs without them
    from sklearn.datasets import load_sample_images

    arrays = [*load_sample_images().images, skimage_data.astronaut(), skimage_data.chelsea(), skimage_data.coffee()]
    return [Image.fromarray(np.asarray(array)) for array in arrays]


def pieces(count: int, side: int = 96) -> list[bytes]:
    """`count` JPEG files of square pieces, taken in raster order over all photographs."""
    found: list[bytes] = []
    for photograph in photographs():
        for top in range(0, photograph.height - side + 1, side):
            for left in range(0, photograph.width - side + 1, side):
                buffer = io.BytesIO()
                photograph.crop((left, top, left + side, top + side)).save(buffer, "JPEG", quality=90)
                found.append(buffer.getvalue())
    return [found[index % len(found)] for index in range(count)]


def write_folder(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, content in enumerate(pieces(count)):
        (folder / f"{index:03d}.jpg").write_bytes(content)
    return folder
