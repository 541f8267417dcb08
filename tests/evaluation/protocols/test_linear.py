"""Probes on features that were trained with labels, and on other libraries' models; several labels an image, quarter turns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import TaskResult
from hf_geossl.evaluation.protocols import knn, linear
from tests.helpers.supervised import RenderedData, measure_quietly, small_model
from tests.helpers.tiny_models import foreign_model

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


FEW = linear.LogisticSettings(c_values=(1e-3, 1e-2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "floor", "above"),
    [
        ("knn", "accuracy", "random weights", 0.10),
        ("linear", "accuracy", "random weights", 0.10),
        ("linear_sgd", "accuracy", "random weights", 0.10),
        ("multilabel", "mean_average_precision", "random weights", 0.05),
    ],
)
def test_supervised_features_are_far_above_random_ones(
    measured: dict[str, TaskResult], task: str, metric: str, floor: str, above: float
) -> None:
    result = measured[task]
    floors = result.details["floors"][metric]
    print(task, result.metrics, floors)
    assert result.metrics[metric] > floors[floor] + above
    lower, upper = result.intervals[metric]
    assert lower < result.metrics[metric] < upper
    assert next(iter(result.metrics)) == metric


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_foreign_models_give_the_same_numbers_twice_with_and_without_cache(kind: str, tmp_path: Path) -> None:
    encoder, data = load_encoder(foreign_model(kind)), RenderedData(limit=80)
    turns = linear.RotationSettings(c_values=(1e-2,))
    state = torch.random.get_rng_state()

    def measure(options: EvaluationOptions) -> dict[str, float]:
        results = {
            "knn": knn.measure_knn(encoder, data, options, knn.KNNSettings()),
            "linear": linear.measure_linear(encoder, data, options, FEW),
            "rotation": linear.measure_rotation(encoder, data, options, turns),
        }
        return {f"{task}.{name}": value for task, result in results.items() for name, value in result.metrics.items()}

    options = replace(QUIET, bootstrap=0)
    plain = measure(options)
    cached = replace(options, cache_dir=tmp_path)
    assert plain == measure(cached) == measure(cached)
    others = measure(replace(options, batch_size=7))
    assert others == pytest.approx(plain, abs=0.03)  # two images of 80: the last digits may turn a vote
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(0 <= value <= 1 for value in plain.values())


@pytest.mark.slow
def test_average_precision_is_that_of_each_label_by_itself(measured: dict[str, TaskResult]) -> None:
    result = measured["multilabel"]
    values = [value for value in result.details["average_precision"].values() if not np.isnan(value)]
    assert result.metrics["mean_average_precision"] == pytest.approx(np.mean(values))
    truth = np.stack([sample["multi_label"].numpy() for sample in RenderedData().test])
    equal = [average_precision_score(column, np.zeros(len(column))) for column in truth.T if column.any()]
    assert result.details["floors"]["mean_average_precision"]["equal scores"] == pytest.approx(np.mean(equal))


@pytest.mark.slow
def test_quarter_turns_show_gravity_from_the_side_and_nothing_from_above(measured: dict[str, TaskResult]) -> None:
    result = measured["rotation"]
    print(result.metrics, result.details["floors"])
    floors = result.details["floors"]
    assert result.metrics["accuracy"] > floors["accuracy"]["random weights"] + 0.05
    assert floors["accuracy"]["random weights"] > 0.35  # the horizon is seen without any training
    assert 0.18 < result.metrics["accuracy_topdown"] < 0.36
    assert 0.18 < floors["accuracy_topdown"]["thumbnail"] < 0.34


def test_quarter_turns_are_measured_in_the_mode_of_the_data() -> None:
    encoder, settings = load_encoder(small_model(size=32)), linear.RotationSettings(c_values=(1e-2,))
    options = replace(QUIET, bootstrap=0)
    results = {
        mode: linear.measure_rotation(encoder, EvaluationData(size=32, limit=24, config_name=mode), options, settings)
        for mode in (None, "scene", "object", "topdown")
    }
    floors = {mode: result.details["floors"]["accuracy"]["thumbnail"] for mode, result in results.items()}
    assert set(results["topdown"].metrics) == {"accuracy"}
    for mode in (None, "scene", "object"):
        # another part of the same result: what is measured from above beside the data's own mode
        assert results[mode].metrics["accuracy_topdown"] == results["topdown"].metrics["accuracy"]
        assert results[mode].details["floors"]["accuracy_topdown"]["thumbnail"] == floors["topdown"]
    assert floors[None] == floors["scene"]
    assert len({floors[mode] for mode in ("scene", "object", "topdown")}) == 3


def test_quarter_turns_are_exact() -> None:
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    for turns in range(4):
        found, further = linear.turned(turns).apply({"image": images})
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
