"""Logistic regressions fitted at once are scikit-learn's, each of them, where that is made to converge."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hf_geossl.evaluation.fitting.classifiers import LogisticClassifier
from hf_geossl.evaluation.fitting.logistic import DeviceLogisticClassifier, fit_logistic

C_VALUES = (1e-3, 1e-1, 1.0)


def draw(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(90, 12))
    return x, (x[:, :classes] + generator.normal(size=(90, classes))).argmax(axis=1)


@pytest.mark.parametrize("classes", [2, 5])
def test_each_penalty_has_the_minimum_that_scikit_learn_finds(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_geossl.evaluation.fitting.logistic.TOLERANCE", 1e-9)
    monkeypatch.setattr("hf_geossl.evaluation.fitting.logistic.BLOCK", 40 * classes)  # several blocks of rows
    x, labels = draw(classes)
    given = torch.from_numpy(x), torch.from_numpy(labels), torch.tensor(C_VALUES, dtype=torch.float64)
    weights, converged = fit_logistic(*given, classes, 1000)
    assert converged.all()
    for one, c in zip(weights.numpy(), C_VALUES, strict=True):
        peer = LogisticRegression(C=c, max_iter=10_000, tol=1e-10).fit(x, labels)
        np.testing.assert_allclose(one[:-1].T, peer.coef_, atol=2e-6)
        np.testing.assert_allclose(one[-1] - one[-1].mean() * (classes > 2), peer.intercept_, atol=2e-6)


def test_problems_may_have_labels_of_their_own() -> None:
    x, first = draw(2)
    second = draw(2, seed=1)[1]
    both = torch.from_numpy(np.stack([first, second], axis=1))
    weights, _ = fit_logistic(torch.from_numpy(x), both, torch.ones(2).double(), 2, 1000)
    for place, labels in enumerate((first, second)):
        peer = LogisticRegression(max_iter=10_000, tol=1e-10).fit(x, labels)
        np.testing.assert_allclose(weights[place, :-1, 0], peer.coef_[0], atol=1e-3)


def test_few_iterations_are_reported_as_not_converged() -> None:
    x, labels = draw(3)
    given = torch.from_numpy(x), torch.from_numpy(labels), torch.tensor([1.0]).double(), 3
    assert [bool(fit_logistic(*given, iterations)[1]) for iterations in (3, 100)] == [False, True]


@pytest.mark.parametrize("classes", [2, 4])
def test_the_classifier_of_a_gpu_is_that_of_the_cpu(classes: int) -> None:
    x, labels = draw(classes)
    x[:, 3] = 7.0  # constant
    held_out = np.arange(90) % 5 == 0
    given = x, labels, held_out, C_VALUES, classes + 1, 1000  # a class that nobody has seen
    device, cpu = DeviceLogisticClassifier(*given, torch.device("cpu")), LogisticClassifier(*given)
    assert device.c == cpu.c
    assert device.converged
    assert cpu.converged
    expected = cpu.scores(x)
    np.testing.assert_allclose(device.scores(x), expected, atol=2e-3 * np.abs(expected).max())
