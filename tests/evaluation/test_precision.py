"""What stays in float32 on a GPU: coordinates, heatmaps and scores. Checked by autocast on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn import functional

from hf_geossl.evaluation.encoders import Encoder, Tokens
from hf_geossl.evaluation.fitting import fit
from hf_geossl.evaluation.heads import detection as detection_head
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import detection, homography, keypoints
from hf_geossl.evaluation.protocols import position_loca as position
from tests.helpers.pixel_encoder import pixel_encoder
from tests.helpers.tiny_models import tiny_loca

OPTIONS = EvaluationOptions(batch_size=8, bootstrap=0, cache_dir=None, progress=False)
DETECTION = detection.DetectionSettings(steps=3, batch_size=2, channels=8, head_width=8)
KEYPOINTS = keypoints.KeypointsSettings(steps=3, images_per_step=2, channels=8)
HOMOGRAPHY = homography.HomographySettings(steps=3, batch_size=4, channels=8)


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def use_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (detection, detection_head, fit, homography, keypoints, position):
        if hasattr(module, "mixed_precision"):
            monkeypatch.setattr(module, "mixed_precision", mixed_precision)


@pytest.mark.parametrize(
    ("measure", "settings", "metric"),
    [
        (detection.measure_detection, DETECTION, detection.COCOAveragePrecision),
        (keypoints.measure_keypoints, KEYPOINTS, keypoints.KeypointAveragePrecision),
        (homography.measure_homography, HOMOGRAPHY, None),
    ],
    ids=["detection", "keypoints", "homography"],
)
def test_on_given_tokens_mixed_precision_changes_nothing(
    measure: Any, settings: Any, metric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    autocast: list[bool] = []
    found: list[torch.Tensor] = []

    def tokens(encoder: Encoder, pixel_values: torch.Tensor) -> Tokens:
        """The pixels of patches in bfloat16, as a trunk gives them under autocast."""
        autocast.append(torch.is_autocast_enabled("cpu"))
        patches = (
            functional.unfold(pixel_values, 8, stride=8).transpose(1, 2).unflatten(1, (pixel_values.shape[-2] // 8, -1))
        )
        return Tokens(patches.bfloat16(), None, patches.mean(dim=(1, 2)))

    monkeypatch.setattr(Encoder, "tokens", tokens)
    if metric is not None:
        rows_of = metric.rows_of

        def watch(self: Any, predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> Any:
            found.extend(torch.as_tensor(value) for prediction in predictions for value in prediction.values())
            return rows_of(self, predictions, references)

        monkeypatch.setattr(metric, "rows_of", watch)
    encoder, data = pixel_encoder(8), EvaluationData(size=64, limit=8)
    plain = measure(encoder, data, OPTIONS, settings).metrics
    places = found.copy()
    assert not any(autocast)
    autocast.clear()
    found.clear()
    use_bfloat16(monkeypatch)
    mixed = measure(encoder, data, OPTIONS, settings).metrics
    assert all(autocast)  # the trunk alone
    assert str(mixed) == str(plain)
    assert metric is None or len(places) > 8
    for one, other in zip(found, places, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_positions_are_scored_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = load_encoder(tiny_loca()), EvaluationData(size=40, limit=8)
    kinds: list[torch.dtype] = []
    score = position.score_positions

    def watch(logits: torch.Tensor, positions: torch.Tensor, columns: int) -> torch.Tensor:
        kinds.append(logits.dtype)
        return score(logits, positions, columns)

    monkeypatch.setattr(position, "score_positions", watch)
    use_bfloat16(monkeypatch)
    position.measure_position(encoder, data, OPTIONS, position.PositionSettings(focal_queries=1))
    assert set(kinds) == {torch.float32}
