"""Scenes to pretrain on, rendered once by all cores into a file that all arms, processes and later starts read."""

import fcntl
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from hf_geossl.data.scenes.dataset import load_scenes
from hf_geossl.data.scenes.description import SCENES_VERSION

BLOCK = 256  # images that a process renders at a time


class RenderedScenes:
    """
    Rendered scenes as a map-style dataset: one file of uint8, mapped and not read, that all processes share.

    Args:
        file (`Path`): What `render_scenes` has written, `(count, size, size, 3)`.
    """

    def __init__(self, file: Path) -> None:
        self.images = np.load(file, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": np.asarray(self.images[index])}


def render_scenes(
    folder: Path, mode: str, size: int, count: int, *, split: str = "train", seed: int = 0, workers: int = 1
) -> Path:
    """
    Renders scenes into a file of `folder`, unless it is there.

    The name says what is in it: mode, split, size, count, seed and the version of the scenes. It appears when it is whole;
    what a killed process leaves behind has another name, and is thrown away by the next.

    Args:
        folder (`Path`): Of all such files.
        mode, split, size, count, seed: As in `load_scenes`.
        workers (`int`): Processes that render.

    Returns:
        `Path`: For `RenderedScenes`.
    """
    file = folder / f"{mode}-{split}-{size}px-{count}-seed{seed}-v{SCENES_VERSION}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another start renders the same only once
        if not file.is_file():
            part = file.with_suffix(".part")
            shape = (count, size, size, 3)
            np.lib.format.open_memmap(part, "w+", np.uint8, shape).flush()
            jobs = [
                (part, mode, split, size, seed, start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)
            ]
            if workers > 1 and len(jobs) > 1:
                with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
                    list(pool.map(_render, *zip(*jobs, strict=True)))
            else:
                for job in jobs:
                    _render(*job)
            os.replace(part, file)
    return file


def _render(part: Path, mode: str, split: str, size: int, seed: int, start: int, stop: int) -> None:
    images = np.load(part, mmap_mode="r+")
    scenes = load_scenes(split, size, stop, mode=mode, seed=seed)
    for index in range(start, stop):
        images[index] = np.asarray(scenes[index]["image"])
    images.flush()
