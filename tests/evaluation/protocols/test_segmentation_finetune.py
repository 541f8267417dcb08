"""Fine-tuned segmentation on few images: mean and spread over nested subsets."""

import numpy as np
import pytest
from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.protocols.segmentation_finetune import FewShotSettings
from hf_geossl.evaluation.registry import TASKS
from hf_geossl.evaluation.samples import load_samples
from tests.helpers.supervised import small_model

QUIET = EvaluationOptions(cache_dir=None, progress=False, bootstrap=50)


ALL_TASKS = {
    name: load_protocol(name)
    for name in TASKS
    if name.startswith("segmentation") or name in ("semantic_fpn", "upernet")
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


def test_few_shot_reports_mean_and_spread_over_nested_subsets(encoder: Encoder) -> None:
    train = load_samples("scenes", "train", size=64, limit=64)
    for seed in range(3):
        eighth, half = ({int(sample["index"]) for sample in train.subset(share, seed)} for share in (1 / 8, 1 / 2))
        assert eighth < half
        assert (len(eighth), len(half)) == (8, 32)
    data = EvaluationData(size=64, limit=16)
    settings = FewShotSettings(shares=(1 / 8, 1.0), steps=4, batch_size=4)
    result = ALL_TASKS["segmentation_few_shot"].measure(encoder, data, QUIET, settings)
    for share, size in (("1/8", 2), ("1", 16)):
        runs = result.details["subsets"][share]
        values = [run["mean_iou"] for run in runs]
        assert [run["training_images"] for run in runs] == [size] * 3
        assert len(set(values)) == 3
        assert result.metrics[f"mean_iou_{share}"] == pytest.approx(sum(values) / 3)
        assert result.metrics[f"mean_iou_{share}_std"] == pytest.approx(np.std(values, ddof=1))
        low, high = result.intervals[f"mean_iou_{share}"]
        assert low <= result.metrics[f"mean_iou_{share}"] <= high
    assert isinstance(result.pictures["samples_1_8"](), Image.Image)
