"""Scores of depths: the published crops, and only their pixels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.depth_scores import crop_mask
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.protocols.depth import DPTSettings, LinearDepthSettings
from tests.helpers.supervised import small_model

QUIET = EvaluationOptions(cache_dir=None, progress=False, bootstrap=50)


SMALL: dict[str, Any] = {"neck_hidden_sizes": (8, 8, 16, 16), "fusion_hidden_size": 16}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


def test_crops_are_the_published_ones() -> None:
    for eval_crop, (height, width), (top, bottom, left, right) in (
        ("eigen", (480, 640), (45, 471, 41, 601)),
        ("garg", (375, 1242), (153, 371, 44, 1197)),
        ("eigen", (240, 320), (22, 235, 20, 300)),
        ("garg", (64, 64), (26, 63, 2, 61)),
        (None, (5, 7), (0, 5, 0, 7)),
    ):
        expected = np.zeros((height, width), dtype=bool)
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(crop_mask(eval_crop, height, width), expected)


def test_only_pixels_of_the_crop_are_measured(encoder: Encoder) -> None:
    data = EvaluationData(size=64, limit=12)
    settings = LinearDepthSettings(steps=5, random_floor=False, eval_crop="garg")
    result = load_protocol("depth").measure(encoder, data, QUIET, settings)
    whole = load_protocol("depth").measure(encoder, data, QUIET, replace(settings, eval_crop=None))
    logs = [sample["depth"][sample["depth"] < 80].double().log() for sample in data.train]
    constant, found = float(torch.cat(logs).mean().exp()), []
    for sample in data.test:
        truth = sample["depth"][26:63, 2:61]
        truth = truth[truth < 80]
        found.append(float(((truth - constant).abs() / truth).mean()))
    assert result.details["floors"]["constant"] == pytest.approx(np.mean(found), rel=1e-4)
    assert whole.details["floors"]["constant"] != pytest.approx(np.mean(found), rel=1e-3)
    assert result.metrics["abs_rel"] != whole.metrics["abs_rel"]
    small = DPTSettings(**SMALL, steps=1, batch_size=4)
    numbers = [
        load_protocol("depth_dpt").measure(encoder, data, QUIET, replace(small, eval_crop=crop))
        for crop in (None, "eigen")
    ]
    assert numbers[0].metrics != numbers[1].metrics
