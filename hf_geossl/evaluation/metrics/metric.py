"""The `evaluate.Metric` that all metrics here are: rows of images come in, plain Python numbers come out.

A metric states once what an image contributes and how contributions become numbers; `add_batch` and `compute` are made of
that here, and `hf_geossl.evaluation.bootstrap` resamples the same contributions.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, cast

import datasets
import evaluate
import numpy as np
import torch

Rows = TypeVar("Rows")  # of images: an array, or a list with an entry an image
Number = datasets.Value("float64")
Integer = datasets.Value("int64")
Boolean = datasets.Value("bool")
Feature: TypeAlias = datasets.Value | datasets.List
Features = dict[str, Any]  # by input; nested for inputs that are dictionaries


def nested(value: Feature, axes: int) -> Feature:
    """The `datasets` feature of an image's array with so many axes."""
    for _ in range(axes):
        value = datasets.List(value)
    return value


class Metric(evaluate.Metric, ABC, Generic[Rows]):
    """A metric that takes each batch in at once.

    (`evaluate`'s own class writes every batch to an Arrow table until the end, which segmentation maps would fill with
    gigabytes.) Of several processes, let one compute: gather predictions first (`num_process` of `evaluate` does not apply).

    Args:
        kwargs: Of `evaluate.Metric`, such as `experiment_id`.

    Attributes:
        image_features (`dict`): The `datasets` feature of one image, for each input.
        inputs (`str`): Docstring sections about arguments and results.
        state: The contributions of all batches since the last `compute`; None before the first.
        source (`str`): Where the metric was published.

    Raises:
        ValueError: If `num_process` is not 1.
    """

    image_features: ClassVar[Features]
    inputs: ClassVar[str]
    source: ClassVar[str] = ""
    state: Rows | None

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if self.num_process != 1:
            raise ValueError(f"num_process must be 1, got {self.num_process}; batches are not exchanged through files")
        self.reset()

    @property
    def name(self) -> str:
        """The name of the metric's file (`evaluate` would call `MeanIoU` "mean_io_u")."""
        return type(self).__module__.rpartition(".")[2]

    def _build_data_dir(self) -> str:
        """Makes no folder for batches, which are not written: `evaluate`'s own fails where the cache is read-only."""
        return str(self._data_dir_root)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=sys.modules[type(self).__module__].__doc__ or "",
            citation=self.source,
            inputs_description=self.inputs,
            features=datasets.Features(self.image_features),
        )

    @abstractmethod
    def rows_of(self, *args: Any, **inputs: Any) -> Rows:
        """What each image of a batch contributes, an array or list with an entry an image; a function of the arguments alone.

        They are predictions, references and the metric's other inputs; a `ValueError` says what is wrong with one.
        """

    @abstractmethod
    def summarize(self, total: Rows) -> dict[str, float]:
        """The metric's numbers of contributions taken together, see `total`."""

    def details(self, total: Rows) -> dict[str, Any]:
        """Further results that are no single numbers, such as lists of numbers by class."""
        return {}

    def total(self, rows: Rows) -> Rows:
        """The contributions of images taken together: here all of them."""
        return rows

    def resampler(self, rows: Rows) -> Callable[[np.ndarray | None], dict[str, float]]:
        """The numbers of as many images as there are rows, by their indices, some perhaps repeated; of all by None.

        Metrics that are not sums override it with one that computes once what does not depend on the choice.
        """
        listed = cast(Sequence[object], rows)
        return lambda images: self.summarize(
            rows if images is None else cast(Rows, [listed[index] for index in images])
        )

    def join(self, parts: Sequence[Rows]) -> Rows:
        """The rows of several batches as those of one."""
        return cast(Rows, list(chain.from_iterable(cast(Sequence[list[object]], parts))))

    def numbers_of(self, rows: Rows) -> dict[str, float]:
        """The metric's numbers of rows."""
        return self.summarize(self.total(rows))

    def absorb(self, rows: Rows) -> None:
        """Adds the rows of a batch to the state."""
        self.state = rows if self.state is None else self.join([self.state, rows])

    def reset(self) -> None:
        """Forgets all batches."""
        self.state = None
        self.batches = 0

    def add_batch(self, *, predictions: object = None, references: object = None, **inputs: object) -> None:
        """Takes a batch in.

        Args:
            predictions (`list/array/tensor`): One entry an image.
            references (`list/array/tensor`): One entry an image.
            inputs: Others that the metric names, one entry an image.

        Raises:
            ValueError: If an input is missing, unknown or not of the shape and range described here:
        """
        unknown = sorted(set(inputs) - set(self.image_features))
        if unknown:
            raise ValueError(f"{self.name} has no input {unknown[0]!r}; it takes {', '.join(self.image_features)}")
        missing = [name for name, value in (("predictions", predictions), ("references", references)) if value is None]
        if missing:
            raise ValueError(f"{self.name} needs predictions and references, {missing[0]} did not come")
        given = {name: value for name, value in inputs.items() if value is not None}
        self.absorb(self.rows_of(predictions, references, **given))
        self.batches += 1

    def add(self, *, prediction: object = None, reference: object = None, **inputs: object) -> None:
        """Takes one image in: an entry of what `add_batch` takes."""
        self.add_batch(
            predictions=None if prediction is None else [prediction],
            references=None if reference is None else [reference],
            **{name: None if value is None else [value] for name, value in inputs.items()},
        )

    def compute(self, *, predictions: object = None, references: object = None, **inputs: object) -> dict[str, Any]:
        """The numbers for all batches since the last `compute`, and these.

        Args:
            predictions (`list/array/tensor`, *optional*): A last batch, or the only one.
            references (`list/array/tensor`, *optional*): A last batch, or the only one.
            inputs: Others that the metric names.

        Returns:
            `dict[str, float]`, with lists of floats for numbers a class or joint.

        Raises:
            ValueError: If nothing came, or see `add_batch`.
        """
        if predictions is not None or references is not None or inputs:
            self.add_batch(predictions=predictions, references=references, **inputs)
        if self.state is None:
            raise ValueError(f"{self.name} has nothing to compute; give predictions and references, or add_batch first")
        result = {**self.summarize(self.state), **self.details(self.state)}
        self.reset()
        return result

    def __len__(self) -> int:
        return self.batches


class SummedMetric(Metric[np.ndarray]):
    """A metric whose contributions add up: `rows_of` returns an array of shape `(images, k)`, whose sum alone is stored.

    Attributes:
        same_columns (`str`): The message where batches have other numbers of columns.
    """

    same_columns: ClassVar[str] = "batches must be alike"

    def total(self, rows: np.ndarray) -> np.ndarray:
        """The sum over images."""
        return rows.sum(axis=0)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """See `Metric`."""
        return np.concatenate(parts)

    def absorb(self, rows: np.ndarray) -> None:
        """See `Metric`."""
        total = self.total(rows)
        if self.state is not None and total.shape != self.state.shape:
            raise ValueError(self.same_columns)
        self.state = total if self.state is None else self.state + total


def mean_of_known(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN where nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Shares of numbers `(k,)`, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


# ---- What a metric is given, as checked arrays


def to_array(name: str, value: object) -> np.ndarray:
    """A tensor on any device (bfloat16 becomes float32), an array, a number or a list of these as an array of numbers.

    `name` stands in the errors' messages, here and below.

    Raises:
        ValueError: If the value is None, ragged or not made of numbers.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    elif isinstance(value, (list, tuple)) and any(isinstance(part, torch.Tensor) for part in value):
        parts = [to_array(name, part) for part in value]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"{name} must be equal in shape, got {sorted({part.shape for part in parts})}")
        array = np.stack(parts)
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:  # NumPy's word for a ragged list
            raise ValueError(f"{name} must be equal in shape: {error}") from None
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must be numbers, got {type(value).__name__} of {array.dtype}")
    return array


def to_floats(name: str, value: object, shape: tuple[int | None, ...]) -> np.ndarray:
    """A value as float64, or a `ValueError` unless it has the shape, in which None fits every size, and is finite."""
    array = to_array(name, value).astype(np.float64)
    check_shape(name, array, shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} NaN or infinite numbers")
    return array


def to_integers(
    name: str, value: object, shape: tuple[int | None, ...], stop: int, besides: int | None = None
) -> np.ndarray:
    """A value as int64, or a `ValueError` unless it has the shape and integers in 0..stop-1, or the one `besides`."""
    array = to_array(name, value)
    check_shape(name, array, shape)
    if array.dtype.kind not in "bui" and array.size:
        raise ValueError(f"{name} must be integers, got {array.dtype}; take the argmax of scores first")
    array = array.astype(np.int64)
    outside = (array < 0) | (array >= stop)
    if besides is not None:
        outside &= array != besides
    if outside.any():
        also = "" if besides is None else f" or {besides}"
        raise ValueError(f"{name} must lie in 0..{stop - 1}{also}, got {int(array[outside][0])}")
    return array


def check_shape(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """Raises a `ValueError` unless an array has the shape, in which None fits every size."""
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {array.shape}")


def pairs(predictions: object, references: object) -> list[tuple[object, object]]:
    """A prediction and a reference an image, from arrays or lists of one length; entries of a list may differ in shape."""
    entries = []
    for name, value in (("predictions", predictions), ("references", references)):
        if not isinstance(value, (Sequence, np.ndarray, torch.Tensor)) or isinstance(value, str):
            raise ValueError(f"{name} must be one entry an image, got {type(value).__name__}")
        entries.append(value)
    if len(entries[0]) != len(entries[1]):
        raise ValueError(
            f"predictions and references must be of the same images, got {len(entries[0])} and {len(entries[1])}"
        )
    return list(zip(*entries, strict=True))
