"""The scenes as objects of the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import datasets
from PIL import Image

from hf_geossl.data.scenes.arguments import label_names, parse_config_name, shard_ranges
from hf_geossl.data.scenes.description import SCENES_VERSION, THING_CLASSES


def scene_features(mode: str, size: int) -> datasets.Features:
    """Returns the typed features of the rows of a scene dataset; see `RenderedScene` for the meaning of each."""
    floats = datasets.Value("float32")
    return datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(label_names(mode))),
            "multi_label": datasets.List(datasets.Value("uint8"), length=len(THING_CLASSES)),
            "semantic": datasets.Image(),
            "instance": datasets.Image(),
            "depth": datasets.Array2D((size, size), "float32"),
            "objects": datasets.List(
                {
                    "id": datasets.Value("uint8"),
                    "category": datasets.ClassLabel(names=list(THING_CLASSES)),
                    "bbox": datasets.List(floats, length=4),
                    "area": datasets.Value("int32"),
                    "angle": floats,
                    "mirror": datasets.Value("bool"),
                    "center": datasets.List(floats, length=2),
                    "depth": floats,
                }
            ),
        }
    )


def build_dataset(scenes: Iterable[dict[str, Any]], split: str, mode: str, size: int) -> datasets.Dataset:
    """Makes a `datasets.Dataset` of the rows of `scenes`, with the class maps as grey images; see `SceneDataset.to_dataset`."""
    dataset = datasets.Dataset.from_generator(
        _rows,
        features=scene_features(mode, size),
        gen_kwargs={"scenes": scenes, "version": SCENES_VERSION},  # the version is part of the cache's fingerprint
        split=datasets.Split(split),
    )
    dataset.info.update(datasets.DatasetInfo(version=datasets.Version(SCENES_VERSION)))
    return dataset


def _rows(scenes: Iterable[dict[str, Any]], version: str) -> Iterator[dict[str, Any]]:
    for row in scenes:
        yield {**row, "semantic": Image.fromarray(row["semantic"]), "instance": Image.fromarray(row["instance"])}


def stream_scenes(
    split: str = "train", *, config_name: str | None = None, num_shards: int = 64, count: int | None = None
) -> datasets.IterableDataset:
    """Streams light rows `{"index": int}`, which `scene_image` renders when they are needed: skipping costs nothing.

    Args:
        split (`str`, *optional*, defaults to `"train"`): "train", "validation" or "test".
        config_name (`str`, *optional*): "<mode>-<size>", checked here and given to `scene_image` later.
        num_shards (`int`, *optional*, defaults to 64): number of shards, at most one for each index.
        count (`int`, *optional*): number of rows; 40,000 / 4,000 / 4,000 if not given.

    Returns:
        `datasets.IterableDataset`: shardable and resumable.

    Raises:
        ValueError: for an unknown split or configuration, or a count or number of shards out of range.
    """
    parse_config_name(config_name)
    shards = shard_ranges(split, num_shards, count)
    return datasets.IterableDataset.from_generator(
        _indices, features=datasets.Features({"index": datasets.Value("int64")}), gen_kwargs={"shards": shards}
    )


def _indices(shards: list[tuple[int, int]]) -> Iterator[dict[str, int]]:
    for start, stop in shards:
        for index in range(start, stop):
            yield {"index": index}
