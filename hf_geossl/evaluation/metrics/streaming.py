"""What every metric here does: takes batches in as they come, and answers with plain Python numbers."""

from abc import ABC, abstractmethod
from typing import Any

import datasets
import evaluate

Number = datasets.Value("float64")
Integer = datasets.Value("int64")
Boolean = datasets.Value("bool")


def nested(value: Any, axes: int) -> Any:
    """Args:
        value (`datasets.Value`): What the innermost list holds.
        axes (`int`): How many axes one image's array has.

    Returns:
        The `datasets` feature of that array.
    """
    for _ in range(axes):
        value = datasets.List(value)
    return value


def describe(description: str | None, inputs: str, features: dict[str, Any], source: str = "") -> evaluate.MetricInfo:
    """Args:
        description (`str`): The metric file's docstring.
        inputs (`str`): Docstring sections about arguments and what comes back.
        features (`dict`): The `datasets` feature of one image, for each input.
        source (`str`): Where the metric was published.

    Returns:
        `evaluate.MetricInfo`.
    """
    return evaluate.MetricInfo(
        description=description or "",
        citation=source,
        inputs_description=inputs,
        features=datasets.Features(features),
    )


class StreamingMetric(evaluate.Metric, ABC):
    """An `evaluate.Metric` that takes each batch into its state at once. `evaluate`'s own class keeps every batch in an
    Arrow table until the end, which segmentation maps would fill with gigabytes.

    A subclass gives `_info`, `update`, `result` and `reset`; used are `add`, `add_batch` and `compute`, as ever.

    Of several processes, let one compute: gather predictions first. (`num_process` of `evaluate` does not apply; where
    `torch.distributed` runs, torchmetrics gathers the states of accuracy and mean_iou by itself, if all processes compute.)

    Args:
        kwargs: Of `evaluate.Metric`, such as `experiment_id`.

    Raises:
        ValueError: If `num_process` is not 1.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.num_process != 1:
            raise ValueError(f"num_process must be 1, got {self.num_process}; batches are not exchanged through files")
        self._module_info.module_name = type(self).__module__.rpartition(".")[2]  # `MeanIoU` would be "mean_io_u"
        self._batches = 0

    @abstractmethod
    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        """Checks a batch and takes it into the state."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """The metric's numbers for all that came since the last reset."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets all batches."""

    def add_batch(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> None:
        """Takes a batch into the state; it is not kept.

        Args:
            predictions (`list/array/tensor`): One entry an image.
            references (`list/array/tensor`): One entry an image.
            inputs: Others that the metric names, one entry an image.

        Raises:
            ValueError: If an input is missing, unknown or not of the shape and range described here:
        """
        unknown = sorted(set(inputs) - set(self._feature_names()))
        if unknown:
            raise ValueError(f"{self.name} knows no input {unknown[0]!r}; it takes {', '.join(self._feature_names())}")
        missing = [name for name, value in (("predictions", predictions), ("references", references)) if value is None]
        if missing:
            raise ValueError(f"{self.name} needs predictions and references, {missing[0]} did not come")
        self.update(predictions, references, **{name: value for name, value in inputs.items() if value is not None})
        self._batches += 1

    def add(self, *, prediction: Any = None, reference: Any = None, **inputs: Any) -> None:
        """Takes one image into the state.

        Args:
            prediction (`list/array/tensor`): Of one image.
            reference (`list/array/tensor`): Of one image.
            inputs: Others that the metric names, of one image.

        Raises:
            ValueError: See `add_batch`.
        """
        self.add_batch(
            predictions=None if prediction is None else [prediction],
            references=None if reference is None else [reference],
            **{name: None if value is None else [value] for name, value in inputs.items()},
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> dict[str, Any]:
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
        if self._batches == 0:
            raise ValueError(f"{self.name} has nothing to compute; give predictions and references, or add_batch first")
        result = self.result()
        self.reset()
        self._batches = 0
        return result

    def __len__(self) -> int:
        return self._batches
