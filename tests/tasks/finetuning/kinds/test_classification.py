"""The class of an image: floors, and labels that are no task."""

import pytest
import torch
from transformers import PreTrainedConfig

from hf_geossl.tasks.finetuning.kinds.classification import ImageClassification
from tests.tasks.finetuning.kinds.made import made

TASK = ImageClassification()


def test_the_floor_is_the_most_frequent_class_of_training() -> None:
    train, test = (
        made([{"label": label} for label in (0, 1, 1, 2)]),
        made([{"label": label} for label in (1, 0, 1, 1, 2)]),
    )
    metric = TASK.make_metric(PreTrainedConfig(num_labels=3))
    assert TASK.floors(metric, train, test, None) == {"accuracy": {"constant": 3 / 5}}
    rows = TASK.rows_of(metric, torch.eye(3)[[1, 0, 2, 1, 2]], list(test))
    assert metric.numbers_of(rows)["accuracy"] == 4 / 5


def test_a_single_class_is_refused() -> None:
    train, test = made([{"label": 1}] * 3, label=("cat", "dog")), made([{"label": 0}], label=("cat", "dog"))
    with pytest.raises(ValueError, match=r"at least two classes, all 3 of made \(train\) are of 'dog'"):
        TASK.class_names(train, test, None)
