"""Logistic regression against scikit-learn, and the result of a classification."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from hf_geossl.evaluation.fitting.classifiers import LogisticClassifier, classification_result, hold_out
from hf_geossl.evaluation.options import EvaluationOptions
from tests.helpers.tiny_data import clusters

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


def test_logistic_classifier_chooses_its_penalty_on_held_out_rows_and_fits_all() -> None:
    features, labels = clusters(3, 200, 4)
    queries, _ = clusters(4, 50, 4)
    held = hold_out(200, 0.25, seed=1)
    assert held.sum() == 50
    probe = LogisticClassifier(features, labels, held, (1e-5, 1e-1), 4, 500)
    right = {}
    for c in (1e-5, 1e-1):
        scaler = StandardScaler().fit(features[~held])
        model = LogisticRegression(C=c, max_iter=500).fit(scaler.transform(features[~held]), labels[~held])
        right[c] = model.score(scaler.transform(features[held]), labels[held])
    assert right[1e-1] > right[1e-5]
    assert probe.c == 1e-1
    assert probe.converged
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=1e-1, max_iter=500).fit(scaler.transform(features), labels)
    expected = model.decision_function(scaler.transform(queries))
    np.testing.assert_allclose(probe.scores(queries), expected, atol=1e-3)


def test_a_class_that_training_does_not_show_is_never_named() -> None:
    features, labels = clusters(3, 60, 2)
    probe = LogisticClassifier(features, 2 * labels, hold_out(60, 0.2, 0), (1.0,), 4, 200)
    scores = probe.scores(features)
    assert set(scores.argmax(axis=1)) == {0, 2}
    assert (scores[:, [1, 3]].max(axis=1) < scores[:, [0, 2]].min(axis=1)).all()


def test_result_tells_accuracy_and_confusion_and_draws_images_with_their_repeats() -> None:
    generator = np.random.default_rng(0)
    labels = np.tile(generator.integers(3, size=60), 4)
    scores = np.tile(generator.normal(size=(60, 3)), (4, 1)) + 0.8 * np.eye(3)[labels]
    options = replace(QUIET, bootstrap=400)
    once = classification_result(scores[:60], labels[:60], 3, None, options, "")
    repeated = classification_result(scores, labels, 3, None, options, "", repeats=4)
    expected = confusion_matrix(labels, scores.argmax(axis=1), labels=range(3))
    np.testing.assert_array_equal(repeated.details["confusion_matrix"], expected)
    balanced = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert repeated.metrics["mean_per_class_accuracy"] == pytest.approx(balanced)
    # four copies of an image know no more than one
    assert repeated.intervals["accuracy"] == pytest.approx(once.intervals["accuracy"])
    assert repeated.pictures["confusion_matrix"]().size[0] > 100


def test_small_fits_take_one_thread_of_the_matrix_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """On busy cores two took eight times as long as one: they wait for each other at each of many short products."""
    threads, fit = list[int](), LogisticRegression.fit

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        threads.extend(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(LogisticRegression, "fit", counted)
    features, labels = np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 2
    with threadpool_limits(2, "blas"):
        LogisticClassifier(features, labels, np.arange(40) < 8, [1.0], 2, 50)
    assert threads
    assert set(threads) == {1}
