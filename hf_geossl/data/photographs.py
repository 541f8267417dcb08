"""Crops of the few photographs that scikit-image and scikit-learn carry: real pixels without a download, for the eye."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

PHOTOGRAPHS = "photographs"  # the name of the dataset
SIDE = 128  # pixels of a crop
SMALLEST = 0.3  # of a crop's side, as a share of the photograph's shorter one
COUNTS = {"train": 8192, "validation": 512}
# of validation are those that no crop of training shows
_NAMES = {"train": ("china", "flower", "astronaut", "coffee", "rocket"), "validation": ("chelsea", "motorcycle")}


class Photographs:
    """A map-style dataset of square crops, of random places and sizes that follow from their index.

    Args:
        split (`str`): "train", 8,192 crops of five photographs, or "validation", 512 of two others.

    Raises:
        ImportError: If scikit-image or scikit-learn is not installed.
        ValueError: For any other split.
    """

    def __init__(self, split: str = "train") -> None:
        if split not in COUNTS:
            raise ValueError(f"{PHOTOGRAPHS} has no split {split!r}; its splits are {', '.join(COUNTS)}")
        self.split = split
        _read(_NAMES[split][0])  # an error now, not in a data loader's process

    def __len__(self) -> int:
        return COUNTS[self.split]

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """A crop of `SIDE` pixels square, as `{"image": PIL.Image.Image}`."""
        names = _NAMES[self.split]
        photograph = _read(names[index % len(names)])
        generator = np.random.default_rng([index, list(COUNTS).index(self.split)])
        shorter = min(photograph.size)
        side = round(shorter * generator.uniform(SMALLEST, 1))
        left, top = (int(generator.integers(length - side + 1)) for length in photograph.size)
        box = (left, top, left + side, top + side)
        return {"image": photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)}


@lru_cache
def _read(name: str) -> Image.Image:
    try:
        import skimage.data
        import sklearn.datasets
    except ImportError as error:
        raise ImportError(
            f"the dataset {PHOTOGRAPHS} is made of what scikit-image and scikit-learn carry ({error}): pip install "
            "scikit-image scikit-learn, or name other images"
        ) from error
    if name in ("china", "flower"):
        return Image.fromarray(sklearn.datasets.load_sample_image(f"{name}.jpg"))
    if name == "motorcycle":
        return Image.fromarray(skimage.data.stereo_motorcycle()[0])
    read: Callable[[], np.ndarray] = getattr(skimage.data, name)
    return Image.fromarray(read())
