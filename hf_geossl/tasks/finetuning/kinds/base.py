"""What differs between the tasks that a model is fine-tuned for, behind one interface."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel

from hf_geossl.data.wording import counted
from hf_geossl.evaluation.metrics.metric import Metric
from hf_geossl.evaluation.reading.sample_reader import Sample
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import Split

logger = logging.getLogger(__name__)

NAMED = 5  # classes in a message at most
Floors = dict[str, dict[str, float]]  # of each metric, what trivial predictions reach


class FineTuningTask(ABC):
    """A task.

    Attributes:
        name (`str`): What the command line calls it.
        suffix (`str`): How the names of its models end.
        target (`str`): The truth that it takes, a key of `Samples`.
        metrics (`dict[str, bool]`): The numbers that a checkpoint can be chosen by, and whether a greater one is better; the
            first says how good a model is.
        min_crop (`float`): See `AdaptationSettings`.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    target: ClassVar[str]
    metrics: ClassVar[Mapping[str, bool]]
    min_crop: ClassVar[float]

    @property
    def metric(self) -> str:
        """The number that says how good a model is."""
        return next(iter(self.metrics))

    @abstractmethod
    def class_names(self, train: Split, test: Split, given: Sequence[str] | None) -> tuple[str, ...]:
        """Names of the classes by number; none of a task without classes.

        Raises:
            ValueError: If the truth is no task: a single class, a class without a name.
        """

    @abstractmethod
    def labels(self, samples: Sequence[Sample]) -> Any:
        """What the model's forward takes as `labels`."""

    @abstractmethod
    def make_metric(self, config: PreTrainedConfig) -> Metric[Any]:
        """The metric of the models of a configuration."""

    @abstractmethod
    def predictions(self, outputs: Any) -> Sequence[Any] | torch.Tensor:
        """What a model's outputs predict of each image, on the CPU."""

    @abstractmethod
    def rows_of(self, metric: Metric[Any], predictions: Any, samples: Sequence[Sample]) -> Any:
        """What images contribute to the metric."""

    @abstractmethod
    def floors(self, metric: Metric[Any], train: Split, test: Split, rows: Any) -> Floors:
        """What the best prediction that does not look at the image reaches, as far as it is known."""

    @abstractmethod
    def draw(
        self, samples: Sequence[Sample], predictions: Sequence[Any], names: Sequence[str], title: str
    ) -> Image.Image:
        """Some images with truth and prediction."""

    def config_fields(self, names: Sequence[str], settings: HeadSettings) -> dict[str, Any]:
        """Fields of the model's configuration."""
        numbered = dict(enumerate(names))
        return {"id2label": numbered, "label2id": {name: number for number, name in numbered.items()}}

    def check(self, splits: Sequence[Split], settings: HeadSettings) -> None:  # noqa: B027
        """Says what of the truth the settings leave out; a `ValueError` where that is all of it. Nothing by default."""

    def prepare_head(self, model: PreTrainedModel, train: Split) -> None:  # noqa: B027
        """Sets what of a fresh head follows from the training images. Nothing by default."""

    def details(self, metric: Metric[Any], rows: Any, names: Sequence[str]) -> dict[str, Any]:
        """Numbers of single classes by their names."""
        return {
            key: dict(zip(names, values, strict=True))
            for key, values in metric.details(metric.total(rows)).items()
            if isinstance(values, list) and len(values) == len(names)
        }


def name_classes(
    present: Sequence[Mapping[int, int]],
    splits: Sequence[Split],
    known: Sequence[str] | None,
    given: Sequence[str] | None,
) -> tuple[str, ...]:
    """Names the classes of two splits, and says which have no training image, or no test image.

    Args:
        present (two `Mapping`): Images (or objects) of each class that training and test have.
        splits (two `Split`): Training and test.
        known (`Sequence[str]`, *optional*): Names that the data have.
        given (`Sequence[str]`, *optional*): Names that the user has given.

    Returns:
        `tuple[str, ...]`: By number; numbers as texts where nobody has named them.

    Raises:
        ValueError: If training has fewer than two classes, a class has no name, or the user names the data's own classes in
            another order, or more or fewer.
    """
    largest = max((number for part in present for number in part), default=-1)
    names = tuple(given or known or map(str, range(largest + 1)))
    if largest >= len(names):
        where = "--class_names" if given else splits[0].samples.name
        raise ValueError(
            f"{where} names {counted(len(names), 'class', 'classes')}, and the truth has the class {largest}"
        )
    if given and known and (len(given) != len(known) or (set(given) == set(known) and tuple(given) != tuple(known))):
        raise ValueError(
            f"{splits[0].samples.name} names its {counted(len(known), 'class', 'classes')} {', '.join(known[:NAMED])}"
            f"{', ...' if len(known) > NAMED else ''}, and --class_names are {', '.join(given[:NAMED])}"
            f"{', ...' if len(given) > NAMED else ''}: give another name for each, in this order, or leave --class_names out"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two classes are named {twice!r}: give each a name of its own (--class_names)")
    for part, other, split, verb in ((0, 1, splits[0], "trained on"), (1, 0, splits[1], "measured")):
        missing = [names[number] for number in range(len(names)) if number not in present[part]]
        if missing and present[other]:
            shown = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
            logger.warning(
                f"{split.name}: {counted(len(missing), 'class', 'classes')} of {len(names)} are in no image, and so are not "
                f"{verb} ({shown})"
            )
    return names
