"""What several protocols are tested with: their results on a model that was trained with labels."""

from dataclasses import replace

import pytest

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.protocol import TaskResult
from hf_geossl.evaluation.protocols import knn, linear, linear_sgd
from tests.helpers.supervised import (
    RenderedData,
    comparing_encoder,
    locating_encoder,
    matching_encoder,
    turned_encoder,
)

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


FEW = linear.LogisticSettings(c_values=(1e-3, 1e-2))


@pytest.fixture(scope="session")
def measured(supervised: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskResult]:
    """All protocols on a model trained with labels; the details hold what random weights reach."""
    data = RenderedData()
    options = replace(QUIET, cache_dir=tmp_path_factory.mktemp("features"))
    sgd = linear_sgd.LinearSGDSettings(epochs=60, batch_size=32, learning_rates=(0.1, 0.5))
    turns = linear.RotationSettings(c_values=(1e-3, 1e-2))
    return {
        "knn": knn.measure_knn(supervised, data, options, knn.KNNSettings()),
        "linear": linear.measure_linear(supervised, data, options, FEW),
        "multilabel": linear.measure_multilabel(supervised, data, options, FEW),
        "linear_sgd": linear_sgd.measure_linear_sgd(supervised, data, options, sgd),
        "rotation": linear.measure_rotation(supervised, data, options, turns),
    }


@pytest.fixture(scope="session")
def turned() -> Encoder:
    return turned_encoder()


@pytest.fixture(scope="session")
def comparing() -> Encoder:
    return comparing_encoder()


@pytest.fixture(scope="session")
def locating() -> Encoder:
    return locating_encoder()


@pytest.fixture(scope="session")
def matching(supervised: Encoder) -> Encoder:
    return matching_encoder(supervised)
