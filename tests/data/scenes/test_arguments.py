"""Checks of the arguments that choose scenes."""

from __future__ import annotations

import math

import pytest

from hf_geossl.data import (
    DEFAULT_COUNTS,
    SCENE_CLASSES,
    THING_CLASSES,
    label_names,
    load_scenes,
    render,
    sample_scene,
    scene_image,
)
from hf_geossl.data.scenes import stream_scenes
from hf_geossl.data.scenes.arguments import check_count, check_size, shard_ranges


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


def test_counts_and_sizes_are_whole_numbers_within_their_ranges() -> None:
    assert DEFAULT_COUNTS == {"train": 40_000, "validation": 4_000, "test": 4_000}
    assert [check_count(split, None) for split in DEFAULT_COUNTS] == [40_000, 4_000, 4_000]
    assert check_count("train", 2**31 - 1) == 2**31 - 1
    assert [check_size(size) for size in (8, 4096)] == [8, 4096]
    for call in (lambda: check_size(96.0), lambda: check_count("train", 2.5)):
        with pytest.raises(TypeError):
            call()


def test_labels_are_scene_classes_but_of_single_objects() -> None:
    assert label_names("scene") == label_names("topdown") == SCENE_CLASSES
    assert label_names("object") == THING_CLASSES


@pytest.mark.parametrize(
    "name", ["", "x", "scene-", "-96", "scene-96-1", "96-scene", "0", "7", "4097", "+96", "9_6", "٩٦", 96]
)
def test_a_wrong_configuration_is_named_with_examples(name: str) -> None:
    for call in (lambda: scene_image("train", 0, name), lambda: stream_scenes("train", config_name=name)):
        with pytest.raises(ValueError, match=r'config_name must be .*"scene-96", "topdown", "128".*, got ') as caught:
            call()
        assert repr(name) in str(caught.value)


def test_shards_divide_the_indices_evenly() -> None:
    assert shard_ranges("train", 3, 10) == [(0, 3), (3, 6), (6, 10)]
    assert shard_ranges("test", 5, 2) == [(0, 1), (1, 2)]  # at most one for each index
    assert shard_ranges("validation", 1, None) == [(0, 4000)]
