"""Scenes by their number: descriptions, images, and the map-style dataset with truth.

It needs numpy and Pillow only, and works as a torch `Dataset`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hf_geossl.data.scenes.arguments import (
    COUNT_LIMIT,
    check_choice,
    check_count,
    check_size,
    label_names,
    parse_config_name,
)
from hf_geossl.data.scenes.description import MODES, SCENES_VERSION, SEMANTIC_CLASSES, SPLITS, THING_CLASSES, Scene
from hf_geossl.data.scenes.objectview import sample_object
from hf_geossl.data.scenes.render import render
from hf_geossl.data.scenes.sideview import sample_sideview
from hf_geossl.data.scenes.topdown import sample_topdown

if TYPE_CHECKING:
    import datasets

_SAMPLERS = {"scene": sample_sideview, "topdown": sample_topdown, "object": sample_object}


def sample_scene(split: str, index: int, *, mode: str = "scene", seed: int = 0) -> Scene:
    """Describes one scene of the distribution; `render` draws it.

    Args:
        split (`str`): "train", "validation" or "test".
        index (`int`): number of the scene in its split, 0 to 2**31 - 2.
        mode (`str`, *optional*, defaults to `"scene"`): "scene" (seen from the side), "topdown" (seen from above) or "object" (one large object).
        seed (`int`, *optional*, defaults to 0): another seed is another draw of the whole dataset; not negative.

    Returns:
        `Scene`: equal arguments give equal scenes, in every process and on every machine.

    Raises:
        ValueError: for an unknown split or mode, or a negative seed.
        IndexError: for an index out of range.
    """
    check_choice("split", split, SPLITS)
    check_choice("mode", mode, MODES)
    index = operator.index(index)
    if not 0 <= index < COUNT_LIMIT:
        raise IndexError(f"index must be from 0 to {COUNT_LIMIT - 1}, got {index}")
    if operator.index(seed) < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    entropy = np.random.SeedSequence([MODES.index(mode), SPLITS.index(split), index, operator.index(seed)])
    return _SAMPLERS[mode](np.random.Generator(np.random.PCG64(entropy)), split, index, operator.index(seed))


def scene_image(split: str, index: int, config_name: str | None = None) -> Image.Image:
    """Renders one image of the streamed scenes (seed 0).

    Args:
        split (`str`): "train", "validation" or "test".
        index (`int`): a row's "index" from `stream_scenes`.
        config_name (`str`, *optional*): as in `parse_config_name`.

    Returns:
        `PIL.Image.Image`: RGB, square.

    Raises:
        ValueError: for an unknown split or configuration.
        IndexError: for an index out of range.
    """
    mode, size = parse_config_name(config_name)
    return Image.fromarray(render(sample_scene(split, index, mode=mode), size).image)


class SceneDataset:
    """Scenes 0 to `count` - 1 of a split, rendered when asked for; see `load_scenes` for the arguments."""

    def __init__(self, split: str, size: int, count: int | None, *, mode: str, seed: int) -> None:
        self.count = check_count(split, count)
        self.size = check_size(size)
        self.split, self.mode, self.seed = split, mode, operator.index(seed)
        sample_scene(split, 0, mode=mode, seed=self.seed)  # an impossible mode or seed fails here and not in a worker

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Renders one scene.

        Args:
            index (`int`): 0 to `len(self)` - 1, or negative from the end.

        Returns:
            `dict`: "image" (`PIL.Image.Image`, RGB), and the truth with the names and formats of `RenderedScene`.

        Raises:
            IndexError: if the index is out of range.
        """
        position = operator.index(index)
        if position < 0:
            position += self.count
        if not 0 <= position < self.count:
            raise IndexError(f"index {index} is out of range for {self.count} scenes")
        rendered = render(sample_scene(self.split, position, mode=self.mode, seed=self.seed), self.size)
        truth = ("label", "multi_label", "semantic", "instance", "depth", "objects")
        return {"image": Image.fromarray(rendered.image), **{name: getattr(rendered, name) for name in truth}}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(self.count))

    def __repr__(self) -> str:
        return (
            f"SceneDataset(split={self.split!r}, size={self.size}, count={self.count}, mode={self.mode!r}, "
            f"seed={self.seed}, version={SCENES_VERSION!r})"
        )

    @property
    def features(self) -> dict[str, Any]:
        """The columns in plain Python: "version", and for each key its kind, shape and class names."""
        square = (self.size, self.size)
        return {
            "version": SCENES_VERSION,
            "image": {"kind": "image", "shape": (*square, 3), "dtype": "uint8"},
            "label": {"kind": "class", "names": label_names(self.mode)},
            "multi_label": {"kind": "classes", "shape": (10,), "dtype": "uint8", "names": THING_CLASSES},
            "semantic": {"kind": "class map", "shape": square, "dtype": "uint8", "names": SEMANTIC_CLASSES},
            "instance": {"kind": "id map", "shape": square, "dtype": "uint8"},
            "depth": {"kind": "metres", "shape": square, "dtype": "float32"},
            "objects": {
                "kind": "list",
                "keys": ("id", "category", "bbox", "area", "angle", "mirror", "center", "depth"),
                "names": THING_CLASSES,
            },
        }

    def to_dataset(self) -> datasets.Dataset:
        """Makes a `datasets.Dataset` of the rows, with typed features, rendered one at a time into its cache folder.

        Returns:
            `datasets.Dataset`: "image", "semantic" and "instance" as `Image`, "depth" as `Array2D`, "label" as `ClassLabel`,
            "multi_label" as a list, "objects" as a list of structs; `info.version` is the version of the scenes.
        """
        from hf_geossl.data.scenes.stream import build_dataset  # here, so that the generator does not need `datasets`

        return build_dataset(self, self.split, self.mode, self.size)


def load_scenes(
    split: str = "train", size: int = 96, count: int | None = None, *, mode: str = "scene", seed: int = 0
) -> SceneDataset:
    """Opens the scenes of a split as a map-style dataset with exact truth.

    Args:
        split (`str`, *optional*, defaults to `"train"`): "train", "validation" or "test".
        size (`int`, *optional*, defaults to 96): side of the square images in pixels; a scene is the same at every size.
        count (`int`, *optional*): number of scenes, up to 2**31 - 1; 40,000 / 4,000 / 4,000 if not given.
        mode (`str`, *optional*, defaults to `"scene"`): "scene" (from the side), "topdown" (from above) or "object" (one large object).
        seed (`int`, *optional*, defaults to 0): another seed is another draw of the whole dataset.

    Returns:
        `SceneDataset`: indexable and picklable; `.to_dataset()` makes a `datasets.Dataset`.

    Raises:
        ValueError: for an unknown split or mode, or a size, count or seed out of range.
    """
    return SceneDataset(split, size, count, mode=mode, seed=seed)
