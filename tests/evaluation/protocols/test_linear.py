"""Probes on features that were trained with labels, and on other libraries' models; several labels an image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.protocol import TaskResult
from hf_geossl.evaluation.protocols import knn, linear, rotation
from tests.helpers.supervised import RenderedData
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
    turns = rotation.RotationSettings(c_values=(1e-2,))
    state = torch.random.get_rng_state()

    def measure(options: EvaluationOptions) -> dict[str, float]:
        results = {
            "knn": knn.measure_knn(encoder, data, options, knn.KNNSettings()),
            "linear": linear.measure_linear(encoder, data, options, FEW),
            "rotation": rotation.measure_rotation(encoder, data, options, turns),
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
