"""Detection end to end: a few images by heart, the same twice, with and without masks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.metrics.coco_average_precision import COCOAveragePrecision
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS
from hf_geossl.evaluation.protocols.detection import DetectionSettings, measure_detection
from hf_geossl.evaluation.results import floors_by_metric
from tests.helpers.pixel_encoder import pixel_encoder
from tests.helpers.supervised import (
    SingleThings,
    measure_quietly,
    naming_encoder,
    small_model,
)
from tests.helpers.tiny_data import coco_folder
from tests.helpers.tiny_models import timm_encoder

OPTIONS = EvaluationOptions(batch_size=16, bootstrap=20, cache_dir=None, progress=False)


BY_HEART = DetectionSettings(
    steps=150, warmup_steps=10, batch_size=2, learning_rate=2e-3, layer_decay=1.0, channels=32, head_width=64
)


@pytest.mark.slow
def test_a_handful_of_images_is_learned_by_heart() -> None:
    data = EvaluationData(size=64, limit=2, test_split="train")
    encoder = load_encoder(small_model())
    before = encoder.fingerprint
    result = measure_detection(encoder, data, OPTIONS, BY_HEART)
    assert result.metrics["box_ap50"] > 0.5
    assert result.metrics["mask_ap50"] > 0.4
    assert result.details["test_images"] == 2
    assert encoder.fingerprint == before
    assert result.pictures["detections"]().width > 100


def test_detection_gives_the_same_twice_and_leaves_the_callers_numbers_alone() -> None:
    data = EvaluationData(size=64, limit=4)
    settings = DetectionSettings(steps=2, batch_size=2, channels=8, head_width=8)
    state = torch.get_rng_state()
    first, second = (measure_detection(load_encoder(small_model()), data, OPTIONS, settings) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first.metrics == second.metrics
    assert first.details == second.details


def test_boxes_without_masks_are_measured_with_a_timm_model(tmp_path: Path) -> None:
    data = EvaluationData(dataset=str(coco_folder(tmp_path)), size=64, limit=2, test_split="train")
    settings = replace(BY_HEART, num_categories=2)
    result = measure_detection(timm_encoder(8, 32), data, OPTIONS, settings)
    assert set(result.metrics) == {"box_ap", "box_ap50", "box_ap75"}
    assert result.metrics["box_ap50"] > 0.5
    with pytest.raises(ValueError, match="say how many by num_categories"):
        measure_detection(timm_encoder(8, 32), data, OPTIONS, DetectionSettings())
    with pytest.raises(ValueError, match="patch size 7, got 64"):
        measure_detection(pixel_encoder(7), data, OPTIONS, settings)


def test_intervals_of_average_precision_are_those_of_metrics_over_drawn_images() -> None:
    draw = np.random.default_rng(0)
    images = []
    for _ in range(6):
        corners = draw.uniform(0, 30, (4, 2))
        boxes = np.concatenate([corners, corners + draw.uniform(5, 30, (4, 2))], axis=1)
        labels = draw.integers(1, 3, 4)
        found = {"boxes": boxes + draw.normal(0, 1.5, (4, 4)), "labels": labels, "scores": draw.random(4)}
        images.append((found, {"boxes": boxes, "labels": labels}))
    metric = COCOAveragePrecision()
    rows = metric.rows_of([pair[0] for pair in images], [pair[1] for pair in images])
    intervals = metric_intervals(metric, rows, repeats=15, seed=3)
    generator, values = np.random.default_rng(3), []
    for _ in range(15):
        drawn = [images[index] for index in generator.integers(6, size=6)]
        other = COCOAveragePrecision()
        values.append(
            other.compute(predictions=[pair[0] for pair in drawn], references=[pair[1] for pair in drawn])["box_ap"]
        )
    np.testing.assert_allclose(intervals["box_ap"], np.quantile(values, [0.025, 0.975]))


@pytest.mark.slow
def test_things_are_detected_sooner_by_who_learned_their_names() -> None:
    """Of one large thing an image, since small ones take longer than a test may."""
    settings: dict[str, Any] = {
        "steps": 160,
        "warmup_steps": 8,
        "learning_rate": 1e-3,
        "layer_decay": 0.5,
        "masks": False,
    }
    smaller = {"channels": 32, "head_width": 64, "regions": 16, "proposals": 50}
    data = SingleThings(size=32, limit=96)
    result = measure_quietly("detection", naming_encoder(), data, random_floor=True, **settings, **smaller)
    random = floors_by_metric(list(result.metrics), result.details["floors"])["box_ap"][RANDOM_WEIGHTS]
    assert random < 0.16
    assert result.metrics["box_ap"] > random + 0.12  # .31 over .09
