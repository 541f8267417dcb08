"""The object-centric twin."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hf_geossl.data import THING_CLASSES, render, sample_scene


def test_object_mode_fills_35_to_70_percent_of_a_plain_view() -> None:
    labels: Counter[int] = Counter()
    for index in range(150):
        scene = sample_scene("train", index, mode="object")
        assert len(scene.things) == 1
        for size in (48, 160):
            rendered = render(scene, size)
            assert 0.35 <= (rendered.instance > 0).mean() <= 0.70
            assert len(np.unique(rendered.semantic)) == 2
        assert rendered.objects[0]["category"] == rendered.label == scene.label
        labels[rendered.label] += 1
    assert len(labels) == len(THING_CLASSES)
