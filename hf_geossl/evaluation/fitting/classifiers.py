"""Linear classifiers of features, and the result of a classification."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import THUMBNAILS, compute_features
from hf_geossl.evaluation.fitting.logistic import DeviceLogisticClassifier
from hf_geossl.evaluation.metrics.accuracy import Accuracy
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS, TaskResult
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import ProtocolSettings

_SMALL = 10**8  # multiplications of a product, below which threads wait for each other, on busy cores ten times as long


def hold_out(images: int, share: float, seed: int) -> np.ndarray:
    """Training images on which a setting is chosen, `(images,)`, bool: a share of them, at least one and not all."""
    if not 0 < share < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {share}")
    if images < 2:
        raise ValueError(f"at least 2 training images are needed, one to fit and one to choose by, got {images}")
    count = min(max(1, round(share * images)), images - 1)
    chosen = np.zeros(images, dtype=bool)
    chosen[np.random.default_rng([seed, images]).permutation(images)[:count]] = True
    return chosen


class LogisticClassifier:
    """Multinomial logistic regression on standardised features, by scikit-learn's L-BFGS.

    The inverse regularisation `c` is chosen by accuracy on the rows `held_out` (`(rows,)`, bool), the first of equally good ones;
    the classifier is then fitted to all rows, and `converged` is whether that came to its end within the iterations. Classes may
    be more than training has seen.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        held_out: np.ndarray,
        c_values: Sequence[float],
        num_classes: int,
        max_iterations: int,
    ) -> None:
        self.num_classes, self.max_iterations = num_classes, max_iterations
        features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
        fitted = ~held_out
        right = [0.0]
        if len(c_values) > 1:
            right = []
            for c in c_values:
                self._fit(features[fitted], labels[fitted], c)
                right.append(float((self.scores(features[held_out]).argmax(axis=1) == labels[held_out]).mean()))
        self.c = float(c_values[int(np.argmax(right))])
        self.converged = self._fit(features, labels, self.c)

    def _fit(self, features: np.ndarray, labels: np.ndarray, c: float) -> bool:
        self._scaler = StandardScaler().fit(features)
        self._model = LogisticRegression(C=c, max_iter=self.max_iterations)
        threads = 1 if features.size * self.num_classes < _SMALL else None
        with warnings.catch_warnings(), threadpool_limits(threads, "blas"):
            warnings.simplefilter("ignore", ConvergenceWarning)  # see `converged`
            self._model.fit(self._scaler.transform(features), labels)
        return bool(self._model.n_iter_.max() < self.max_iterations)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of shape `(rows, num_classes)`; a class that was not seen in training is the last choice everywhere."""
        known = self._model.decision_function(self._scaler.transform(np.asarray(features, dtype=np.float64)))
        if known.ndim == 1:  # of two classes, scikit-learn scores the second
            known = np.stack([-known, known], axis=1)
        scores = np.full((len(known), self.num_classes), known.min() - 1.0)
        scores[:, self._model.classes_] = known
        return scores


def fit_classifier(
    features: np.ndarray,
    labels: np.ndarray,
    held_out: np.ndarray,
    c_values: Sequence[float],
    num_classes: int,
    max_iterations: int,
    device: torch.device,
) -> LogisticClassifier | DeviceLogisticClassifier:
    """Fits a `LogisticClassifier`: on a GPU all regularisations at once on the device, on the CPU by scikit-learn."""
    if len(np.unique(np.asarray(labels)[~held_out])) < 2:
        raise ValueError("the training images must show at least two classes; use more of them")
    if device.type != "cpu":
        return DeviceLogisticClassifier(features, labels, held_out, c_values, num_classes, max_iterations, device)
    return LogisticClassifier(features, labels, held_out, c_values, num_classes, max_iterations)


def count_classes(samples: Samples, *labels: np.ndarray) -> tuple[int, tuple[str, ...] | None]:
    """How many classes labels of training images, then of other splits, have, at least 2; and their names, if samples have them.

    Raises:
        ValueError: If a label is negative (as in test splits without truth) or has no name, or all training images are of one
            class.
    """
    smallest, largest = min(int(values.min()) for values in labels), max(int(values.max()) for values in labels)
    names = samples.names.get("label")
    if smallest < 0 or (names and largest >= len(names)):
        raise ValueError(
            f"label must be classes from 0{f' to {len(names) - 1}' if names else ''}, got {smallest} to {largest}; "
            "choose a split with truth"
        )
    if len(np.unique(labels[0])) < 2:
        only = int(labels[0][0])
        raise ValueError(
            f"the training images must show at least two classes, all {len(labels[0])} of them are of "
            f"{names[only] if names else only}: take more of them"
        )
    return (len(names) if names else max(largest + 1, 2)), names


def classification_result(
    scores: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    names: Sequence[str] | None,
    options: EvaluationOptions,
    title: str,
    *,
    repeats: int = 1,
) -> TaskResult:
    """Accuracy, its intervals and the confusion matrix, of which a picture has the title.

    Scores `(repeats * images, num_classes)` and true classes are of all images, then of all images again; the bootstrap draws
    images with all of their repeats.
    """
    metric = Accuracy(num_classes)
    rows = metric.rows_of(scores, labels)
    sums = rows.reshape(repeats, -1, rows.shape[1]).sum(axis=0, dtype=np.int64)
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (labels, scores.argmax(axis=1)), 1)

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures.charts import confusion_matrix

        return confusion_matrix(counts, names, title)

    return TaskResult(
        metrics=metric.numbers_of(sums),
        intervals=metric_intervals(metric, sums, repeats=options.bootstrap, seed=options.seed),
        details={"test_images": len(sums), "confusion_matrix": counts.tolist()},
        pictures={"confusion_matrix": draw},
    )


def accuracy_of(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose highest score is the label's."""
    return float((scores.argmax(axis=1) == labels).mean())


def floors(encoder: Encoder, column: str, seed: int) -> list[tuple[str, Encoder, str]]:
    """Trivial features that a model's have to beat, as name, encoder and column for `labelled_features`.

    They are those of the same architecture with random weights, and the colours of a 12 x 12 thumbnail.
    """
    return [(RANDOM_WEIGHTS, encoder.random_twin(seed), column), ("thumbnail", encoder, "thumbnail")]


def both_splits(data: EvaluationData, mode: str | None = None) -> tuple[Samples, Samples]:
    """The training and the test images."""
    train, test = (data.samples(split, mode=mode or data.mode) for split in (data.train_split, data.test_split))
    return train, test


def labelled_features(
    encoder: Encoder, splits: tuple[Samples, Samples], column: str, label: str, options: EvaluationOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features `(images, width)` and targets of training images, then of test images.

    The column is a feature of `compute_features`, several of them side by side, joined by `+`, or `"thumbnail"`; the label a
    target of the samples.
    """
    names, transform = column.split("+"), THUMBNAILS if column == "thumbnail" else None
    read: list[np.ndarray] = []
    for samples in splits:
        columns = compute_features(encoder, samples, [*names, label], options, transform=transform)
        parts = [columns[name] for name in names]
        read += [parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), columns[label]]
    return read[0], read[1], read[2], read[3]


@dataclass(frozen=True)
class Predicted:
    """Scores of the test images, `(images, classes)`, their classes, and those of the training images.

    Details and metrics are what results hold beside what follows from these.
    """

    scores: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    details: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def measure_classifier(
    encoder: Encoder,
    column: str,
    train: Samples,
    settings: ProtocolSettings,
    options: EvaluationOptions,
    title: str,
    predict: Callable[[Encoder, str], Predicted],
) -> TaskResult:
    """Accuracy of a classifier of features, and its floors: the most frequent class, random weights, a thumbnail.

    `predict` trains on features of a model, by their column (see `labelled_features`); training images may name the classes.
    """
    own = predict(encoder, column)
    num_classes, names = count_classes(train, own.labels, own.truth)
    result = classification_result(own.scores, own.truth, num_classes, names, options, title)
    known = {"most frequent class": float((own.truth == np.bincount(own.labels).argmax()).mean())}
    for name, model, feature in floors(encoder, column, options.seed):
        known[name] = accuracy_of(predict(model, feature).scores, own.truth)
    details = {
        **result.details,
        "settings": asdict(settings),
        "train_images": len(own.labels),
        **own.details,
        "floors": {"accuracy": known},
    }
    return replace(result, metrics={**result.metrics, **own.metrics}, details=details)
