"""k nearest neighbours and ridge regression, compared with formulas, with lightly and with fits that leave a row out."""

import numpy as np
import pytest
import torch
from lightly.utils.benchmarking import knn_predict
from sklearn.linear_model import Ridge as SklearnRidge
from torch.nn import functional as F

from hf_geossl.training.monitors import classifiers
from hf_geossl.training.monitors.classifiers import PENALTIES, Ridge, accuracy
from tests.helpers.tiny_data import clusters


def test_votes_equal_the_formula_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(1, 100, 5)
    queries, _ = clusters(2, 37, 5)
    monkeypatch.setattr(classifiers, "QUERIES", 16)
    monkeypatch.setattr(classifiers, "NEIGHBOURS", 32)
    votes = classifiers.vote(queries, features, labels, (1, 10, 70), 5, 0.07)
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
    votes = classifiers.vote(queries, features, labels, (20,), 5, 0.07)[20]
    np.testing.assert_array_equal(votes.argmax(axis=1), order[:, 0].numpy())


def _by_refitting(features: np.ndarray, labels: np.ndarray, penalty: float) -> np.ndarray:
    """Scores of each row by scikit-learn's fit to the others, with the classes' shares of all rows."""
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    targets = np.eye(int(labels.max()) + 1)[labels]
    alpha = penalty * np.mean(np.linalg.svd(features, compute_uv=False) ** 2)
    scores = []
    for row in range(len(features)):
        others = np.arange(len(features)) != row
        fit = SklearnRidge(alpha=alpha).fit(features[others], targets[others])
        score = fit.predict(features[row : row + 1])[0]
        scores.append(score - targets[others].mean(axis=0) + targets.mean(axis=0))
    return np.array(scores)


@pytest.mark.parametrize("channels", [6, 40])
def test_rows_left_out_are_scored_as_by_refitting(channels: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 24)
    features = generator.normal(size=(24, channels)) + 0.7 * labels[:, None]
    targets = np.eye(3)[labels]
    every = [_by_refitting(features, labels, penalty) for penalty in PENALTIES]
    best = int(np.argmin([np.mean((targets - scores) ** 2) for scores in every]))
    ridge = Ridge(torch.from_numpy(features), torch.from_numpy(labels), 3)
    np.testing.assert_allclose(ridge.left_out.numpy(), every[best], atol=1e-9)


def test_other_rows_are_scored_as_by_scikit_learn() -> None:
    features, labels = clusters(1, 60, 4)
    ridge = Ridge(torch.from_numpy(features), torch.from_numpy(labels), 4)
    queries, truth = clusters(2, 30, 4)
    scaled, mean, scale = features.astype(float), features.mean(axis=0, dtype=float), features.std(axis=0, dtype=float)
    scaled = (scaled - mean) / scale
    targets = np.eye(4)[labels]
    alphas = np.array(PENALTIES) * np.mean(np.linalg.svd(scaled, compute_uv=False) ** 2)
    fits = [SklearnRidge(alpha=alpha).fit(scaled, targets).predict((queries - mean) / scale) for alpha in alphas]
    scores = ridge.scores(torch.from_numpy(queries)).numpy()
    assert min(np.abs(scores - fit).max() for fit in fits) < 1e-6
    assert accuracy(torch.from_numpy(scores), torch.from_numpy(truth)) > 0.7


@pytest.mark.parametrize(("rows", "channels"), [(400, 30), (64, 432)])
def test_noise_is_classified_at_chance_level(rows: int, channels: int) -> None:
    """Also where there are more channels than rows, whose mean would give the row away that is left out."""
    labels, found = torch.arange(rows) % 4, []
    for seed in range(4):
        noise = torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))
        found.append(accuracy(Ridge(noise, labels, 4).left_out, labels))
    assert sum(found) / 4 == pytest.approx(0.25, abs=0.06)
