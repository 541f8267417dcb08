"""Classes of two splits: their names, and which of them are not trained on or measured."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from hf_geossl.tasks.finetuning.kinds import find_task, task_of
from hf_geossl.tasks.finetuning.kinds.base import name_classes

TRAIN: Any = SimpleNamespace(name="made (train)", samples=SimpleNamespace(name="made (train)"))
TEST: Any = SimpleNamespace(name="made (test)", samples=SimpleNamespace(name="made (test)"))


def test_missing_classes_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_geossl"):
        names = name_classes([{0: 3, 2: 1}, {0: 1, 1: 2}], (TRAIN, TEST), ["cat", "dog", "cow"], None)
    assert names == ("cat", "dog", "cow")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "made (train): 1 class of 3 are in no image, and so are not trained on (dog)",
        "made (test): 1 class of 3 are in no image, and so are not measured (cow)",
    ]


def test_names_are_numbers_where_nobody_gives_them() -> None:
    assert name_classes([{0: 1, 2: 1}, {1: 1}], (TRAIN, TEST), None, None) == ("0", "1", "2")
    assert name_classes([{0: 1, 1: 1}, {1: 1}], (TRAIN, TEST), ["a", "b"], ["c", "d"]) == ("c", "d")


def test_classes_without_a_name_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match=r"made \(train\) names 2 classes, and the truth has the class 2"):
        name_classes([{0: 1, 2: 1}, {}], (TRAIN, TEST), ["a", "b"], None)
    for given in (["b", "a"], ["c", "d", "e"]):  # by which the model would be measured as another one
        with pytest.raises(ValueError, match=f"names its 2 classes a, b, and --class_names are {', '.join(given)}:"):
            name_classes([{0: 1, 1: 1}, {1: 1}], (TRAIN, TEST), ["a", "b"], given)
    with pytest.raises(ValueError, match="two classes are named 'a'"):
        name_classes([{0: 1}, {}], (TRAIN, TEST), ["a", "a"], None)


def test_tasks_are_found_by_name_and_by_class() -> None:
    assert find_task("depth").suffix == "ForDepthEstimation"
    assert task_of("LOCAForObjectDetection").name == "detection"
    with pytest.raises(ValueError, match="must be one of classification, segmentation, depth, detection, got 'boxes'"):
        find_task("boxes")
    with pytest.raises(ValueError, match="got GTSAModel"):
        task_of("GTSAModel")
