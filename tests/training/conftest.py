"""Images that the tests of training share."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def images() -> list[dict[str, np.ndarray]]:
    """24 images of noise."""
    generator = np.random.default_rng(0)
    return [{"image": generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)} for _ in range(24)]


@pytest.fixture(scope="session")
def smooth_images() -> list[dict[str, np.ndarray]]:
    """24 images with something to find at the same place in two crops: grids of 6 x 5 colours, enlarged."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (24, 6, 5, 3), dtype=np.uint8)
    return [{"image": np.array(Image.fromarray(grid).resize((40, 48), Image.Resampling.BICUBIC))} for grid in coarse]
