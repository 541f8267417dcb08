"""k nearest neighbours: votes by the formula and by lightly."""

import numpy as np
import pytest
import torch
from lightly.utils.benchmarking import knn_predict
from torch.nn import functional as F

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.protocols import knn
from tests.helpers.supervised import RenderedData, small_model
from tests.helpers.tiny_data import clusters

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


def test_votes_equal_the_formula_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(1, 100, 5)
    queries, _ = clusters(2, 37, 5)
    monkeypatch.setattr(knn, "QUERIES", 16)
    monkeypatch.setattr(knn, "NEIGHBOURS", 32)
    votes = knn.vote(queries, features, labels, (1, 10, 70), 5, 0.07)
    for row, query in enumerate(queries.astype(np.float64)):
        cosines = features @ query / np.linalg.norm(features, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosines)
        for k, found in votes.items():
            expected = np.zeros(5)
            for image in nearest[:k]:
                expected[labels[image]] += np.exp(cosines[image] / 0.07) / np.exp(1 / 0.07)
            np.testing.assert_allclose(found[row], expected, rtol=1e-4)


def test_votes_agree_with_lightly() -> None:
    features, labels = clusters(1, 300, 5)
    queries, _ = clusters(2, 80, 5)
    bank = F.normalize(torch.from_numpy(features), dim=1)
    order = knn_predict(
        F.normalize(torch.from_numpy(queries), dim=1), bank.T, torch.from_numpy(labels), 5, knn_k=20, knn_t=0.07
    )
    votes = knn.vote(queries, features, labels, (20,), 5, 0.07)[20]
    np.testing.assert_array_equal(votes.argmax(axis=1), order[:, 0].numpy())


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
