"""Quarter turns: exact, in the mode of the data, and at chance from above."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import TaskResult
from hf_geossl.evaluation.protocols import rotation
from tests.helpers.supervised import (
    RenderedData,
    measure_quietly,
    small_model,
)

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


@pytest.mark.slow
def test_quarter_turns_show_gravity_from_the_side_and_nothing_from_above(measured: dict[str, TaskResult]) -> None:
    result = measured["rotation"]
    print(result.metrics, result.details["floors"])
    floors = result.details["floors"]
    assert result.metrics["accuracy"] > floors["accuracy"]["random weights"] + 0.05
    assert floors["accuracy"]["random weights"] > 0.35  # the horizon is seen without any training
    assert 0.18 < result.metrics["accuracy_topdown"] < 0.36
    assert 0.18 < floors["accuracy_topdown"]["RGB thumbnail"] < 0.34


def test_quarter_turns_are_measured_in_the_mode_of_the_data() -> None:
    encoder, settings = load_encoder(small_model(size=32)), rotation.RotationSettings(c_values=(1e-2,))
    options = replace(QUIET, bootstrap=0)
    results = {
        mode: rotation.measure_rotation(encoder, EvaluationData(size=32, limit=24, config_name=mode), options, settings)
        for mode in (None, "scene", "object", "topdown")
    }
    floors = {mode: result.details["floors"]["accuracy"]["RGB thumbnail"] for mode, result in results.items()}
    assert set(results["topdown"].metrics) == {"accuracy"}
    for mode in (None, "scene", "object"):
        # another part of the same result: what is measured from above beside the data's own mode
        assert results[mode].metrics["accuracy_topdown"] == results["topdown"].metrics["accuracy"]
        assert results[mode].details["floors"]["accuracy_topdown"]["RGB thumbnail"] == floors["topdown"]
    assert floors[None] == floors["scene"]
    assert len({floors[mode] for mode in ("scene", "object", "topdown")}) == 3


def test_quarter_turns_are_exact() -> None:
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    for turns in range(4):
        found, further = rotation.turned(turns).apply({"image": images})
        np.testing.assert_array_equal(found[1].permute(1, 2, 0), np.rot90(images[1].permute(1, 2, 0).numpy(), turns))
        assert further["thumbnail"].shape == (2, 3 * 144)


@pytest.mark.slow
def test_quarter_turns_are_told_by_who_learned_them(turned: Encoder) -> None:
    result = measure_quietly("rotation", turned, RenderedData(size=32, limit=150), c_values=(1e-3, 1e-2))
    floors = result.details["floors"]
    assert floors["accuracy"]["random weights"] < 0.55  # the sky is bright
    assert result.metrics["accuracy"] > floors["accuracy"]["random weights"] + 0.13  # .76, .75 over .49
    # from above there is nothing to see
    assert floors["accuracy_topdown"]["random weights"] == pytest.approx(0.25, abs=0.08)
    assert result.metrics["accuracy_topdown"] == pytest.approx(0.25, abs=0.08)
