"""Depths: the floor of their geometric mean, and data without any."""

import pytest
import torch
from transformers import PreTrainedConfig

from hf_geossl import GTSAConfig, GTSAForDepthEstimation
from hf_geossl.tasks.finetuning.kinds.depth import DepthEstimation
from hf_geossl.tasks.finetuning.settings import HeadSettings
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


def test_a_cap_below_every_depth_is_refused_and_one_below_some_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    split = made([{"depth": torch.tensor([[0.0, 4.0, 9.0, 10.0]])}])
    with pytest.raises(ValueError, match=r"all depths of made \(train\) are from 4 metres on"):
        TASK.check((split, split), HeadSettings(max_depth=4.0))
    TASK.check((split,), HeadSettings(max_depth=9.0))
    assert "2 of 3 known depths (67 %) are from 9 metres on" in caplog.text


@pytest.mark.parametrize("decoder", ["dpt", "linear"])
def test_predictions_start_at_the_geometric_mean(decoder: str) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = GTSAForDepthEstimation(GTSAConfig(**shape, decoder_type=decoder, decoder_channels=8)).eval()
    TASK.prepare_head(model, made([{"depth": torch.tensor([[1.0, 4.0, 0.0, 90.0]])}]))
    with torch.no_grad():
        depth = model(torch.zeros(1, 3, 32, 32)).predicted_depth
    assert float(depth.log().mean().exp()) == pytest.approx(2.0, rel=0.15)
