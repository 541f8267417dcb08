"""Linear classifiers of features, and what is said of a classification."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hf_geossl.evaluation.bootstrap import interval
from hf_geossl.evaluation.cached_samples import THUMBNAILS
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.metrics import accuracy
from hf_geossl.evaluation.options import EvaluationOptions, TaskResult
from hf_geossl.evaluation.samples import Samples


def hold_out(images: int, share: float, seed: int) -> np.ndarray:
    """Chooses training images on which a setting is decided.

    Args:
        images (`int`): How many there are, at least 2.
        share (`float`): Of them, in (0, 1); at least one is held out and one is not.
        seed (`int`): Of the choice.

    Returns:
        `numpy.ndarray` of shape `(images,)`, bool.

    Raises:
        ValueError: If a number is out of range.
    """
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

    Args:
        features (`numpy.ndarray` of shape `(rows, width)`): Of the training images.
        labels (`numpy.ndarray` of shape `(rows,)`): Their classes, 0 to `num_classes` - 1.
        held_out (`numpy.ndarray` of shape `(rows,)`, bool): On which rows the regularisation is chosen, by accuracy; the
            classifier is then fitted to all rows.
        c_values (`Sequence[float]`): Inverse regularisations to choose from; the first of equally good ones is taken.
        num_classes (`int`): How many classes there are, seen in training or not.
        max_iterations (`int`): Of L-BFGS.

    Attributes:
        c (`float`): The chosen one.
        converged (`bool`): Whether the last fit has come to its end within the iterations.

    Raises:
        ValueError: If there are fewer than two classes among the rows that are not held out.
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
        kept = ~held_out
        if len(np.unique(labels[kept])) < 2:
            raise ValueError("the training images must show at least two classes; use more of them")
        right = [0.0]
        if len(c_values) > 1:
            right = []
            for c in c_values:
                self._fit(features[kept], labels[kept], c)
                right.append(float((self.scores(features[held_out]).argmax(axis=1) == labels[held_out]).mean()))
        self.c = float(c_values[int(np.argmax(right))])
        self.converged = self._fit(features, labels, self.c)

    def _fit(self, features: np.ndarray, labels: np.ndarray, c: float) -> bool:
        self._scaler = StandardScaler().fit(features)
        self._model = LogisticRegression(C=c, max_iter=self.max_iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is told by `converged`
            self._model.fit(self._scaler.transform(features), labels)
        return bool(self._model.n_iter_.max() < self.max_iterations)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of shape `(rows, num_classes)`; a class that was not seen in training is the last choice everywhere."""
        found = self._model.decision_function(self._scaler.transform(np.asarray(features, dtype=np.float64)))
        if found.ndim == 1:  # of two classes, scikit-learn scores the second
            found = np.stack([-found, found], axis=1)
        scores = np.full((len(found), self.num_classes), found.min() - 1.0)
        scores[:, self._model.classes_] = found
        return scores


def count_classes(samples: Samples, *labels: np.ndarray, column: str = "label") -> tuple[int, tuple[str, ...] | None]:
    """How many classes there are, and their names.

    Args:
        samples (`Samples`): May name them.
        labels (`numpy.ndarray` of integers): Of the training images, then of other splits.
        column (`str`): Whose names they are.

    Returns:
        `(int, tuple[str, ...] or None)`: At least 2; the names are None where the dataset does not tell them.

    Raises:
        ValueError: If a label is negative (as in test splits without truth) or has no name, or all training images are of one
            class.
    """
    smallest, largest = min(int(values.min()) for values in labels), max(int(values.max()) for values in labels)
    names = samples.names.get(column)
    if smallest < 0 or (names and largest >= len(names)):
        raise ValueError(
            f"{column} must be classes from 0{f' to {len(names) - 1}' if names else ''}, got {smallest} to {largest}; "
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
    """Accuracy, its intervals and the confusion matrix.

    Args:
        scores (`numpy.ndarray` of shape `(repeats * images, num_classes)`): Of all images, then of all images again.
        labels (`numpy.ndarray` of shape `(repeats * images,)`): True classes.
        num_classes (`int`): How many.
        names (`Sequence[str]`, *optional*): Of the classes.
        options (`EvaluationOptions`): For the bootstrap, which draws images with all of their repeats.
        title (`str`): Of the picture.
        repeats (`int`): How many rows an image has.

    Returns:
        `TaskResult`: `accuracy`, `mean_per_class_accuracy` and with more than 5 classes `accuracy_top5`.
    """
    rows = accuracy.sums_of(scores, labels, num_classes=num_classes)
    sums = rows.reshape(repeats, -1, rows.shape[1]).sum(axis=0, dtype=np.int64)
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (labels, scores.argmax(axis=1)), 1)

    def draw() -> Any:
        from hf_geossl.evaluation.pictures import confusion_matrix

        return confusion_matrix(counts, names, title)

    return TaskResult(
        metrics=accuracy.summarize(sums.sum(axis=0)),
        intervals=interval(accuracy.summarize, sums, repeats=options.bootstrap, seed=options.seed)
        if options.bootstrap
        else {},
        details={"test_images": len(sums), "confusion_matrix": counts.tolist()},
        pictures={"confusion_matrix": draw},
    )


def accuracy_of(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose highest score is the label's."""
    return float((scores.argmax(axis=1) == labels).mean())


def majority_accuracy(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """What naming the class that is most frequent in training reaches."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())


def floors(encoder: Encoder, column: str, seed: int) -> list[tuple[str, Encoder, str]]:
    """Features that know nothing of what the model was trained for.

    Args:
        encoder (`Encoder`): The model.
        column (`str`): The feature of it that the protocol looks at.
        seed (`int`): Of the random weights.

    Returns:
        `list[(str, Encoder, str)]`: Name, encoder and column of `floor_features`: the same architecture with random
        weights, and the colours of a 12 x 12 thumbnail.
    """
    return [("random weights", encoder.random_twin(seed), column), ("RGB thumbnail", encoder, "thumbnail")]


def labelled_features(
    encoder: Encoder, samples: Samples, column: str, label: str, options: EvaluationOptions
) -> tuple[np.ndarray, np.ndarray]:
    """A feature and a target of each image.

    Args:
        encoder, samples, options: As in `compute_features`.
        column (`str`): A feature of `compute_features`, or `"thumbnail"`.
        label (`str`): A target of the samples.

    Returns:
        `(numpy.ndarray, numpy.ndarray)`: `(images, width)` and `(images, ...)`.
    """
    transform = THUMBNAILS if column == "thumbnail" else None
    found = compute_features(encoder, samples, [column, label], options, transform=transform)
    return found[column], found[label]
