"""Depths: the floor of their geometric mean, and data without any."""

import pytest
import torch
from transformers import PreTrainedConfig

from hf_geossl.tasks.finetuning.kinds.depth import DepthEstimation
from tests.tasks.finetuning.kinds.made import made

TASK = DepthEstimation()


def test_the_floor_is_the_geometric_mean_of_training() -> None:
    train, test = (
        made([{"depth": torch.tensor([[1.0, 4.0, 0.0, 90.0]])}]),
        made([{"depth": torch.tensor([[1.0, 4.0]])}]),
    )
    metric = TASK.make_metric(PreTrainedConfig(max_depth=80.0))
    floors = TASK.floors(metric, train, test, None)
    assert floors["abs_rel"]["constant"] == pytest.approx((1.0 + 0.5) / 2)  # 2 metres everywhere
    assert floors["delta1"]["constant"] == 0


def test_data_without_depths_are_refused() -> None:
    known, unknown = made([{"depth": torch.ones(1, 2)}]), made([{"depth": torch.zeros(1, 2)}], "made (test)")
    with pytest.raises(ValueError, match=r"no pixel of made \(test\) has a depth"):
        TASK.class_names(known, unknown, None)
    with pytest.raises(ValueError, match="class_names mean nothing for depth"):
        TASK.class_names(known, known, ["near"])
