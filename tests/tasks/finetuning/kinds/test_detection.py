"""Boxes: from pixels to what models learn and back."""

from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedConfig

from hf_geossl.tasks.finetuning.kinds.detection import ObjectDetection
from tests.tasks.finetuning.kinds.made import made

TASK = ObjectDetection()
SAMPLE = {
    "image": torch.zeros(3, 40, 40),
    "boxes": torch.tensor([[4.0, 8.0, 12.0, 28.0], [20.0, 20.0, 30.0, 30.0]]),
    "categories": torch.tensor([1, 0]),
}


def test_boxes_that_are_found_exactly_have_full_precision() -> None:
    labels = TASK.labels([SAMPLE])[0]
    torch.testing.assert_close(labels["boxes"][0], torch.tensor([0.2, 0.45, 0.2, 0.5]))
    scores = torch.full((1, 2, 3), -20.0)
    scores[0, 0, 1], scores[0, 1, 0] = 3.0, 2.0
    outputs = SimpleNamespace(logits=scores, pred_boxes=labels["boxes"][None])
    metric = TASK.make_metric(PreTrainedConfig(num_labels=2))
    rows = TASK.rows_of(metric, TASK.predictions(outputs), [SAMPLE])
    assert metric.numbers_of(rows)["box_ap"] == pytest.approx(1.0)
    swapped = SimpleNamespace(logits=scores.flip(1), pred_boxes=labels["boxes"][None])
    assert metric.numbers_of(TASK.rows_of(metric, TASK.predictions(swapped), [SAMPLE]))["box_ap"] == 0.0


def test_data_without_objects_are_refused() -> None:
    nothing = made([{"categories": torch.zeros(0, dtype=torch.int64)}], "made (test)")
    with pytest.raises(ValueError, match=r"no image of made \(test\) has an object"):
        TASK.class_names(made([SAMPLE]), nothing, None)
