"""The scenes as a map-style dataset, as a stream, and the errors of the room."""

from __future__ import annotations

import ast
import math
import pickle
import sys
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pytest
from torch.utils.data import DataLoader

import hf_geossl.data.scenes as scenes_room
from hf_geossl.data import (
    SCENE_CLASSES,
    SCENES_VERSION,
    SEMANTIC_CLASSES,
    load_scenes,
    parse_config_name,
    sample_scene,
    scene_image,
)
from hf_geossl.data.scenes import render, stream_scenes


def test_map_style_dataset_indexes_like_a_list_and_pickles() -> None:
    scenes = load_scenes("validation", 32, 5, mode="topdown")
    assert len(scenes) == 5
    assert [len(load_scenes(split)) for split in ("train", "validation", "test")] == [40_000, 4_000, 4_000]
    assert (np.asarray(scenes[-1]["image"]) == np.asarray(scenes[4]["image"])).all()
    assert sum(1 for _ in scenes) == 5
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 5"):
            scenes[index]
    with pytest.raises(TypeError):
        scenes["1"]  # type: ignore[index]
    assert scenes.features["version"] == SCENES_VERSION
    assert scenes.features["semantic"]["names"] == SEMANTIC_CLASSES
    again = pickle.loads(pickle.dumps(scenes))
    loader = DataLoader(again, batch_size=None, num_workers=2)
    for row, direct in zip(loader, scenes, strict=True):
        assert (np.asarray(row["image"]) == np.asarray(direct["image"])).all()
        assert (np.asarray(row["depth"]) == direct["depth"]).all()


def test_dataset_of_the_hub_library_holds_the_same_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    scenes = load_scenes("test", 32, 4)
    converted = scenes.to_dataset()
    assert str(converted.info.version) == SCENES_VERSION
    assert converted.features["label"].names == list(SCENE_CLASSES)
    for row, direct in zip(converted, scenes, strict=True):
        for key in ("image", "semantic", "instance"):
            assert (np.asarray(row[key]) == np.asarray(direct[key])).all()
        assert (np.asarray(row["depth"], np.float32) == direct["depth"]).all()
        assert (row["label"], row["multi_label"]) == (direct["label"], direct["multi_label"].tolist())
        assert [item["bbox"] for item in row["objects"]] == [list(item["bbox"]) for item in direct["objects"]]
        assert [item["category"] for item in row["objects"]] == [item["category"] for item in direct["objects"]]


def test_stream_gives_each_index_once_in_disjoint_shards() -> None:
    stream = stream_scenes("test", config_name="topdown-64", num_shards=7, count=100)
    assert stream.num_shards == 7
    shards = [[row["index"] for row in stream.shard(7, shard)] for shard in range(7)]
    assert sorted(chain(*shards)) == list(range(100))
    assert {len(shard) for shard in shards} == {14, 15}
    assert [row["index"] for row in stream] == list(range(100))
    assert stream_scenes("test").num_shards == 64
    assert stream_scenes("test", num_shards=64, count=3).num_shards == 3


def test_stream_resumes_from_its_state() -> None:
    stream = stream_scenes("train", num_shards=4, count=20)
    rows = iter(stream)
    first = [next(rows)["index"] for _ in range(8)]
    state = stream.state_dict()
    fresh = stream_scenes("train", num_shards=4, count=20)
    fresh.load_state_dict(state)
    assert first + [row["index"] for row in fresh] == list(range(20))


def test_scene_image_is_the_rendered_scene() -> None:
    for name, mode, size in (
        ("topdown-40", "topdown", 40),
        ("object", "object", 128),
        ("48", "scene", 48),
        (None, "scene", 128),
    ):
        assert parse_config_name(name) == (mode, size)
        image = scene_image("validation", 2, name)
        assert image.mode == "RGB"
        assert (np.asarray(image) == render(sample_scene("validation", 2, mode=mode), size).image).all()


# Errors


@pytest.mark.parametrize(
    "name", ["", "x", "scene-", "-96", "scene-96-1", "96-scene", "0", "7", "4097", "+96", "9_6", "٩٦", 96]
)
def test_a_wrong_configuration_is_named_with_examples(name: str) -> None:
    for call in (lambda: scene_image("train", 0, name), lambda: stream_scenes("train", config_name=name)):
        with pytest.raises(ValueError, match=r'config_name must be .*"scene-96", "topdown", "128".*, got ') as caught:
            call()
        assert repr(name) in str(caught.value)


def test_wrong_arguments_are_named() -> None:
    for call in (
        lambda: sample_scene("dev", 0),
        lambda: load_scenes("dev"),
        lambda: stream_scenes("dev"),
        lambda: scene_image("dev", 0),
    ):
        with pytest.raises(ValueError, match="split must be one of 'train', 'validation', 'test', got 'dev'"):
            call()
    for call in (lambda: sample_scene("train", 0, mode="aerial"), lambda: load_scenes(mode="aerial")):
        with pytest.raises(ValueError, match="mode must be one of 'scene', 'topdown', 'object', got 'aerial'"):
            call()
    for index in (-1, 2**31 - 1):
        with pytest.raises(IndexError, match=f"index must be from 0 to 2147483646, got {index}"):
            sample_scene("train", index)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        load_scenes(seed=-1)
    with pytest.raises(ValueError, match="count must be from 1 to 2147483647, got 0"):
        load_scenes(count=0)
    with pytest.raises(ValueError, match="num_shards must be at least 1, got 0"):
        stream_scenes(num_shards=0)
    for call in (lambda: load_scenes(size=7), lambda: render(sample_scene("train", 0), 7)):
        with pytest.raises(ValueError, match="size must be from 8 to 4096 pixels, got 7"):
            call()
    with pytest.raises(ValueError, match="t must be a finite number of seconds, got nan"):
        render(sample_scene("train", 0), 16, t=math.nan)


def test_the_generator_needs_numpy_and_pillow_only() -> None:
    allowed = {"numpy", "PIL", *sys.stdlib_module_names}
    files = [path for path in Path(scenes_room.__file__).parent.glob("*.py") if path.name != "hub.py"]
    assert len(files) > 8
    for path in files:
        for node in ast.parse(
            path.read_text(encoding="utf-8")
        ).body:  # top level: what is run when the file is imported
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.module != "hub"
                names = [node.module] if node.level == 0 and node.module else []
            assert {name.split(".")[0] for name in names} <= allowed, path.name
