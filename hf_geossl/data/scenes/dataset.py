"""The scenes as a map-style dataset with truth; needs numpy and Pillow only, and works as a torch `Dataset`."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

from hf_geossl.data.scenes.arguments import check_count, check_mode, check_size, label_names
from hf_geossl.data.scenes.description import SCENES_VERSION, SEMANTIC_CLASSES, THING_CLASSES
from hf_geossl.data.scenes.render import render
from hf_geossl.data.scenes.sampling import sample_scene

if TYPE_CHECKING:
    import datasets


class SceneDataset:
    """Scenes 0 to `count` - 1 of a split, rendered when asked for.

    Args:
        split (`str`): "train", "validation" or "test".
        size (`int`): side of the images in pixels.
        count (`int` or `None`): number of scenes; `None` for 40,000 / 4,000 / 4,000.
        mode (`str`): "scene", "topdown" or "object".
        seed (`int`): another seed is another draw of the whole dataset.

    Raises:
        ValueError: for an unknown split or mode, or a size, count or seed out of range.
    """

    def __init__(self, split: str, size: int, count: int | None, *, mode: str, seed: int) -> None:
        self.count = check_count(split, count)
        self.size = check_size(size)
        check_mode(mode)
        self.split, self.mode, self.seed = split, mode, operator.index(seed)
        sample_scene(split, 0, mode=mode, seed=self.seed)  # an impossible seed fails here and not in a worker

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Renders one scene.

        Args:
            index (`int`): 0 to `len(self)` - 1, or negative from the end.

        Returns:
            `dict`: "image" (`PIL.Image.Image`, RGB) and the truth under the names and in the formats of `RenderedScene`:
            "label", "multi_label", "semantic", "instance", "depth", "objects".

        Raises:
            IndexError: if the index is out of range.
        """
        position = operator.index(index)
        if position < 0:
            position += self.count
        if not 0 <= position < self.count:
            raise IndexError(f"index {index} is out of range for {self.count} scenes")
        rendered = render(sample_scene(self.split, position, mode=self.mode, seed=self.seed), self.size)
        return {
            "image": Image.fromarray(rendered.image),
            "label": rendered.label,
            "multi_label": rendered.multi_label,
            "semantic": rendered.semantic,
            "instance": rendered.instance,
            "depth": rendered.depth,
            "objects": rendered.objects,
        }

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
            "multi_label": {
                "kind": "classes",
                "shape": (len(THING_CLASSES),),
                "dtype": "uint8",
                "names": THING_CLASSES,
            },
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

        return build_dataset(self)


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
