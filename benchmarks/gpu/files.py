"""JPEG files to train on: cut at random from scikit-image's photographs where it is installed, else smooth noise."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")  # what the package carries itself


def sources() -> list[Image.Image]:
    """The pictures that files are cut from."""
    try:
        from skimage import data
    except ImportError:
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
        return [Image.fromarray(each).resize((640, 480), Image.Resampling.BICUBIC) for each in noise]
    return [Image.fromarray(np.asarray(getattr(data, name)())) for name in PHOTOGRAPHS]


def write(job: tuple[Path, Sequence[int], tuple[int, int]]) -> None:
    """Writes the files of some numbers."""
    folder, numbers, size = job
    pictures = sources()
    for number in numbers:
        rng = np.random.default_rng(number)
        picture = pictures[rng.integers(len(pictures))]
        width = int(picture.width * rng.uniform(0.5, 1.0))
        height = min(width * 3 // 4, picture.height)
        left, top = rng.integers(picture.width - width + 1), rng.integers(picture.height - height + 1)
        cut = picture.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
        cut.save(folder / f"{number:06d}.jpg", quality=90)


def make_jpegs(folder: Path, count: int, size: tuple[int, int] = (640, 480)) -> Path:
    """Writes `count` JPEG files with all cores, unless they are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.glob("*.jpg"))) < count:
        cores = os.cpu_count() or 1
        jobs = [(folder, range(core, count, cores), size) for core in range(cores)]
        with ProcessPoolExecutor(cores) as pool:
            list(pool.map(write, jobs))
    return folder
