"""Label propagation: by a slow loop, on moving objects, on folders and scenes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.metrics.j_and_f import JAndF
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import propagation
from hf_geossl.evaluation.protocols.propagation import PropagationSettings, measure_propagation, propagate_labels
from tests.helpers.pixel_encoder import pixel_encoder
from tests.helpers.tiny_data import davis_folder

OPTIONS = EvaluationOptions(batch_size=16, bootstrap=50, cache_dir=None, progress=False)


def slow_labels(
    features: torch.Tensor, labels: torch.Tensor, context_frames: int, top_k: int, radius: int, temperature: float
) -> torch.Tensor:
    """One patch after the other, as the protocol says it in words."""
    frames, rows, columns, _ = features.shape
    shares = [labels]
    for frame in range(1, frames):
        result = torch.zeros_like(labels)
        context = [0] + [index for index in range(frame - context_frames, frame) if index > 0]
        for row in range(rows):
            for column in range(columns):
                found = []
                for index in context:
                    for r in range(rows):
                        for c in range(columns):
                            if abs(r - row) <= radius and abs(c - column) <= radius:
                                a, b = features[frame, row, column], features[index, r, c]
                                found.append((float(a @ b / a.norm() / b.norm()), shares[index][r, c]))
                found = sorted(found, key=lambda pair: -pair[0])[:top_k]
                weights = [np.exp(similarity / temperature) for similarity, _ in found]
                for weight, (_, label) in zip(weights, found, strict=True):
                    result[row, column] += weight / sum(weights) * label
        shares.append(result)
    return torch.stack(shares)


@pytest.mark.parametrize(("context_frames", "top_k", "radius"), [(2, 5, 1), (7, 3, 9), (1, 40, 2), (3, 1, 0)])
@pytest.mark.parametrize("block", [1, 2**24])
def test_propagation_is_what_a_loop_over_patches_gives(
    context_frames: int, top_k: int, radius: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagation, "_BLOCK", block)  # row by row, and all at once
    generator = torch.Generator().manual_seed(radius)
    features = torch.randn(5, 4, 5, 6, generator=generator)
    labels = torch.rand(4, 5, 3, generator=generator)
    given = {"context_frames": context_frames, "top_k": top_k, "radius": radius, "temperature": 0.1}
    torch.testing.assert_close(
        propagate_labels(features, labels, **given), slow_labels(features, labels, **given), atol=1e-5, rtol=1e-4
    )


def test_objects_that_move_by_a_patch_a_frame_are_followed_without_error() -> None:
    generator = torch.Generator().manual_seed(0)
    frames, rows, columns = 6, 8, 12
    objects = torch.zeros(frames, rows, columns, dtype=torch.long)
    features = torch.zeros(frames, rows, columns, 64)
    features[..., 0] = 1  # the background is everywhere the same
    first, second = torch.randn(2, 3, 3, 64, generator=generator)
    for frame in range(frames):
        for number, top, left, look in ((1, 0, 1 + frame, first), (2, 5, 8 - frame, second)):
            features[frame, top : top + 3, left : left + 3] = look
            objects[frame, top : top + 3, left : left + 3] = number
    shares = propagate_labels(features, torch.nn.functional.one_hot(objects[0], 3), radius=2)
    measured = JAndF().compute(predictions=[shares.argmax(-1)], references=[objects])
    assert measured["j_mean"] == 1
    still = propagate_labels(features, torch.nn.functional.one_hot(objects[0], 3), radius=0)
    assert JAndF().compute(predictions=[still.argmax(-1)], references=[objects])["j_mean"] < 0.7


def test_a_folder_in_the_layout_of_davis_is_measured(tmp_path: Path) -> None:
    root = davis_folder(tmp_path)
    data = EvaluationData(dataset=str(root), test_split="val")
    settings = PropagationSettings(side=64, top_k=1)
    result = measure_propagation(pixel_encoder(4), data, OPTIONS, settings)
    # the corners are rounded when shares are enlarged: exactly as those of the true masks are
    assert result.metrics == result.details["ceiling"]
    assert result.metrics["j_mean"] > 0.95
    # 4, 8 and 12 of 16 columns off: intersection over union 12/20, 8/24 and 4/28
    assert result.details["floors"]["first_mask"]["j_mean"] == pytest.approx((12 / 20 + 8 / 24 + 4 / 28) / 3)
    assert result.details["clips"] == result.details["objects"] == 1
    assert result.pictures["strip"]().width > 100

    semantic = measure_propagation(
        pixel_encoder(4), data, OPTIONS, PropagationSettings(side=64, top_k=1, semantic=True)
    )
    assert semantic.metrics["mean_iou"] > 0.97 > semantic.details["floors"]["first_mask"]["mean_iou"]

    with pytest.raises(ValueError, match="has no split 'test' but val"):
        measure_propagation(pixel_encoder(4), EvaluationData(dataset=str(root)), OPTIONS, settings)
    (root / "Annotations/480p/swimmer/00002.png").unlink()
    with pytest.raises(ValueError, match=r"swimmer of .* has no mask 00002.png"):
        measure_propagation(pixel_encoder(4), data, OPTIONS, settings)


def test_the_radius_is_the_published_one_on_the_disk_and_a_fifth_of_the_grid_on_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    propagate = propagation.propagate_labels

    def watch(*given: Any, radius: int, **others: Any) -> torch.Tensor:
        asked.append(radius)
        return propagate(*given, radius=radius, **others)

    monkeypatch.setattr(propagation, "propagate_labels", watch)
    on_disk = EvaluationData(dataset=str(davis_folder(tmp_path, frames=3)), test_split="val")
    scenes = EvaluationData(size=80, limit=1)
    # the grids have 16, 8 and 20 rows
    for data, patch, settings, expected in (
        (on_disk, 4, PropagationSettings(side=64), 12),
        (on_disk, 8, PropagationSettings(side=64), 12),
        (on_disk, 8, PropagationSettings(side=64, radius=3), 3),
        (scenes, 8, PropagationSettings(frames=3), 4),
    ):
        asked.clear()
        result = measure_propagation(pixel_encoder(patch), data, OPTIONS, settings)
        assert set(asked) == {expected}
        assert result.details["radius"] == expected


def test_clips_of_scenes_tell_features_from_none_and_give_the_same_twice() -> None:
    data = EvaluationData(size=64, limit=6)
    settings = PropagationSettings(frames=5, seconds=0.5)
    encoder = pixel_encoder(8)
    result = measure_propagation(encoder, data, OPTIONS, settings)
    # all tokens of the twin are alike: its labels are averages of those near
    assert result.metrics["j_mean"] > result.details["floors"]["random_weights"]["j_mean"] + 0.1
    assert result.details["clips"] == 6
    low, high = result.intervals["j_mean"]
    assert low < result.metrics["j_mean"] < high
    again = measure_propagation(encoder, data, OPTIONS, settings)
    assert (again.metrics, again.intervals, again.details) == (result.metrics, result.intervals, result.details)
    with pytest.raises(ValueError, match="multiples of pixels's patch size 7"):
        measure_propagation(pixel_encoder(7), data, OPTIONS, settings)


def test_a_timm_model_runs_through_propagation() -> None:
    encoder = load_encoder(
        timm.create_model(
            "vit_tiny_patch16_224", img_size=64, patch_size=8, depth=2, num_classes=0, dynamic_img_size=True
        )
    )
    result = measure_propagation(encoder, EvaluationData(size=64, limit=2), OPTIONS, PropagationSettings(frames=3))
    assert 0 < result.metrics["j_and_f_mean"] < 1


QUIET = EvaluationOptions(cache_dir=None, progress=False, bootstrap=50)


@pytest.mark.slow
def test_supervised_tokens_carry_masks_farther_than_random_ones(supervised: Encoder) -> None:
    data = EvaluationData(size=64, limit=12)
    result = measure_propagation(supervised, data, QUIET, PropagationSettings(frames=5))
    floors = result.details["floors"]
    # .61, .53 and .55 when written
    assert result.metrics["j_and_f_mean"] > floors["random_weights"]["j_and_f_mean"] + 0.04
    assert result.metrics["j_and_f_mean"] > floors["first_mask"]["j_and_f_mean"] + 0.02
