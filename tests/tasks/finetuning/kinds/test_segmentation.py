"""The class of a pixel: floors, pixels without a class, and masks that are no task."""

import pytest
import torch
from transformers import PreTrainedConfig

from hf_geossl.tasks.finetuning.kinds.segmentation import SemanticSegmentation
from tests.tasks.finetuning.kinds.made import made

TASK = SemanticSegmentation()
MAP = torch.tensor([[0, 0, 0, 1], [1, 255, 0, 0]], dtype=torch.uint8)


def test_pixels_without_a_class_count_nowhere() -> None:
    test = made([{"semantic": MAP}])
    assert TASK.class_names(test, test, None) == ("0", "1")
    metric = TASK.make_metric(PreTrainedConfig(num_labels=2))
    rows = TASK.rows_of(metric, torch.zeros(1, 2, 4, dtype=torch.int64), list(test))
    assert metric.numbers_of(rows)["pixel_accuracy"] == 5 / 7
    # one class everywhere: 5 of 7 pixels of it, nothing of the other
    assert TASK.floors(metric, test, test, rows)["mean_iou"]["constant"] == pytest.approx(5 / 7 / 2)
    assert metric.numbers_of(rows)["mean_iou"] == pytest.approx(5 / 7 / 2)


def test_masks_of_one_class_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"all pixels of made \(train\) are of '0'"):
        TASK.class_names(made([{"semantic": MAP * 0}]), made([{"semantic": MAP}]), None)
    with pytest.raises(ValueError, match=r"no pixel of made \(train\) has a class"):
        TASK.class_names(made([{"semantic": MAP * 0 + 255}]), made([{"semantic": MAP}]), None)


def test_masks_numbered_from_1_get_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    split = made([{"semantic": MAP}])
    TASK.class_names(split, split, None)
    assert "--reduce_labels" not in caplog.text
    split = made([{"semantic": torch.where(MAP == 255, MAP, MAP + 1)}])
    TASK.class_names(split, split, None)
    assert "no mask shows the class 0" in caplog.text
    assert "--reduce_labels" in caplog.text
