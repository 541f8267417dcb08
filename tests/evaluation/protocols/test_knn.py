"""k nearest neighbours: how many vote, and their settings."""

import pytest

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.protocols import knn
from tests.helpers.supervised import RenderedData, small_model

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


def test_all_images_vote_where_they_are_fewer_than_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    model = load_encoder(small_model())
    few = knn.measure_knn(model, RenderedData(limit=12), QUIET, knn.KNNSettings())
    assert "12 images, fewer than the 20 that vote: all vote (--set knn.main_neighbours=5" in caplog.text
    asked = knn.KNNSettings(neighbours=(10, 12), main_neighbours=12)
    all_vote = knn.measure_knn(model, RenderedData(limit=12), QUIET, asked)
    assert few.metrics == all_vote.metrics
    assert few.details["voting"] == 12
    assert "voting" not in all_vote.details


def test_the_main_number_of_neighbours_is_one_of_them() -> None:
    with pytest.raises(ValueError, match="main_neighbours = 5"):
        knn.KNNSettings(main_neighbours=5)
