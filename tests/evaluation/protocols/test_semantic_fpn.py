"""Semantic FPN end to end: its settings reach the head, and its numbers are those of the segmenter that it trains."""

from dataclasses import asdict
from typing import Any

import pytest

from hf_geossl.evaluation.fitting.segmenters import score_segmenter, train_segmenter
from hf_geossl.evaluation.heads.semantic_fpn import SemanticFPNHead
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import semantic_fpn
from hf_geossl.evaluation.protocols.semantic_fpn import SemanticFPNSettings, measure_semantic_fpn
from tests.helpers.supervised import small_model

OPTIONS = EvaluationOptions(cache_dir=None, progress=False, bootstrap=20, batch_size=4, seed=5)
SIZES: dict[str, Any] = {"pyramid_channels": 8, "head_channels": 4, "dropout": 0.3}


def test_settings_reach_the_head_and_numbers_are_the_segmenters(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def watch(encoder: Any, num_classes: int, **sizes: Any) -> SemanticFPNHead:
        made.append({"num_classes": num_classes, **sizes})
        return SemanticFPNHead(encoder, num_classes, **sizes)

    monkeypatch.setattr(semantic_fpn, "SemanticFPNHead", watch)
    encoder, data = load_encoder(small_model()), EvaluationData(size=64, limit=6)
    settings = SemanticFPNSettings(steps=3, batch_size=2, warmup_steps=1, **SIZES)
    result = measure_semantic_fpn(encoder, data, OPTIONS, settings)
    assert made == [{"num_classes": 17, **SIZES}]
    assert result.details["settings"] == asdict(settings)
    assert (result.details["training_images"], result.details["images"]) == (6, 6)
    predict = train_segmenter(
        encoder,
        lambda count: SemanticFPNHead(encoder, count, **SIZES),
        data.train,
        17,
        settings,
        OPTIONS,
        seed=OPTIONS.seed,
        description="",
    )
    names = data.train.names["semantic"]
    assert score_segmenter(predict, data.test, names, OPTIONS).numbers == pytest.approx(result.metrics, rel=1e-6)
    low, high = result.intervals["mean_iou"]
    assert low <= result.metrics["mean_iou"] <= high
