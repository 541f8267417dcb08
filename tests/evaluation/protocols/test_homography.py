"""Homography estimation: where tokens contain the place, repeatable, and its floor."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import homography
from hf_geossl.evaluation.protocols.homography import HomographySettings, measure_homography
from tests.helpers.pixel_encoder import pixel_encoder
from tests.helpers.supervised import (
    RenderedData,
    measure_quietly,
)

OPTIONS = EvaluationOptions(batch_size=16, bootstrap=50, cache_dir=None, progress=False)


def test_corners_are_found_where_tokens_tell_the_place(tmp_path: Path) -> None:
    line = np.arange(64) - 31.5
    bowl = (line[:, None] ** 2 + line**2) / 8  # its slope is the position
    for split in ("train", "test"):
        for name in "abcdefgh":
            (tmp_path / split / name).mkdir(parents=True)
            picture = Image.fromarray(np.repeat(bowl[..., None], 3, axis=2).astype(np.uint8))
            picture.save(tmp_path / split / name / "0.png")
    encoder = pixel_encoder(8)
    step = torch.arange(8) - 3.5
    slopes = torch.stack([step.expand(3, 8, 8), step[:, None].expand(3, 8, 8)]).flatten(1) / 20
    encoder.module.matrix.data = torch.nn.functional.pad(slopes.T, (0, encoder.width - 2))
    data = EvaluationData(dataset=str(tmp_path), size=64)
    settings = HomographySettings(steps=120, batch_size=32, learning_rate=2e-3, channels=16)
    result = measure_homography(encoder, data, OPTIONS, settings)
    floors = result.details["floors"]
    assert result.metrics["mean_corner_error"] < 0.6 * floors["no_displacement"]["mean_corner_error"]
    assert result.metrics["mean_corner_error"] < 0.6 * floors["random_weights"]["mean_corner_error"]


def test_homography_on_scenes_is_repeatable_and_knows_its_floor() -> None:
    encoder = pixel_encoder(8)
    data = EvaluationData(size=64, limit=64)
    settings = HomographySettings(steps=3, batch_size=4, channels=8, tuned=True)
    state = torch.get_rng_state()
    result = measure_homography(encoder, data, OPTIONS, settings)
    assert torch.equal(state, torch.get_rng_state())
    again = measure_homography(encoder, data, OPTIONS, settings)
    assert (again.metrics, again.intervals, again.details) == (result.metrics, result.intervals, result.details)
    # the mean distance of a point in a square of side 2 from its middle, .7652, times the reach of 8 pixels
    floor = result.details["floors"]["no_displacement"]["mean_corner_error"]
    assert floor == pytest.approx(0.7652 * 8, rel=0.1)
    assert torch.equal(encoder.module.matrix, torch.eye(encoder.width))  # a copy was tuned
    assert result.pictures["corners"]().width > 100


def test_homography_of_a_folder_reads_images_as_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a dataset, which may be of any size, is written."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 3)):
        (tmp_path / split).mkdir()
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / split / f"{index}.png")
    monkeypatch.setattr(homography, "compute_features", lambda *_, **__: pytest.fail("images were kept"))
    data = EvaluationData(dataset=str(tmp_path), size=32)
    settings = HomographySettings(steps=3, batch_size=8, channels=8)
    result = measure_homography(pixel_encoder(4), data, OPTIONS, settings)
    assert (result.details["train_images"], result.details["test_images"]) == (5, 3)
    again = measure_homography(pixel_encoder(4), data, replace(OPTIONS, batch_size=2), settings)
    assert again.metrics == pytest.approx(result.metrics, abs=1e-4)  # a pair of each image, whatever the batch size


@pytest.mark.slow
def test_corners_are_found_by_who_learned_to_match(matching: Encoder) -> None:
    settings: dict[str, Any] = {"steps": 100, "batch_size": 32, "learning_rate": 2e-3}
    result = measure_quietly("homography", matching, RenderedData(limit=150), **settings)
    floors = {name: values["mean_corner_error"] for name, values in result.details["floors"].items()}
    assert 0.88 * floors["no_displacement"] < floors["random_weights"] < 1.02 * floors["no_displacement"]
    assert result.metrics["mean_corner_error"] < floors["random_weights"] - 0.25  # 5.18, 5.26 under 5.69; 6.05
