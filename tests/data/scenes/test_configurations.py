"""Names of configurations, single images, and ranges of shards."""

from __future__ import annotations

import numpy as np
import pytest

from hf_geossl.data import parse_config_name, sample_scene, scene_image
from hf_geossl.data.scenes import render, stream_scenes
from hf_geossl.data.scenes.configurations import shard_ranges


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
