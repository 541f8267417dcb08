"""Homography estimation: where tokens contain the place, repeatable, and its floor."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import homography
from hf_geossl.evaluation.protocols.homography import (
    HomographySettings,
    cut_patches,
    make_pairs,
    map_points,
    measure_homography,
    patch_side,
    solve_homography,
)
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


def corner_draws(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    square = torch.tensor([[8, 8], [40, 8], [8, 40], [40, 40]], dtype=torch.float64).expand(batch, 4, 2)
    return square, square + 16 * torch.rand(batch, 4, 2, generator=generator, dtype=torch.float64) - 8


def test_homographies_take_corners_to_corners_as_torchvisions_do() -> None:
    sources, targets = corner_draws(5)
    found = solve_homography(sources, targets)
    torch.testing.assert_close(map_points(found, sources), targets, atol=1e-9, rtol=0)
    # torchvision's coefficients go from the end points to the start points
    for one, source, target in zip(found, sources, targets, strict=True):
        other = TF._geometry._get_perspective_coeffs(target.tolist(), source.tolist())
        torch.testing.assert_close(one.flatten()[:8], torch.tensor(other, dtype=torch.float64), atol=1e-4, rtol=1e-4)


def test_patches_show_the_positions_that_the_homography_says() -> None:
    line = torch.arange(48) + 0.5
    image = torch.stack(torch.meshgrid(line, line, indexing="xy"))[None].expand(5, -1, -1, -1)  # x and y of each pixel
    sources, targets = corner_draws(5)
    inner = sources + (targets - sources) * 0.8  # all corners inside
    homographies = solve_homography(sources, inner)
    patches = cut_patches(image, homographies, sources[:, 0], 32)
    middle = torch.arange(32, dtype=torch.float64) + 8.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    expected = map_points(homographies, torch.stack([x, y], dim=-1).flatten(0, 1).expand(5, -1, -1))
    torch.testing.assert_close(
        patches.flatten(2).transpose(1, 2).double(), expected.clamp(0.5, 47.5), atol=1e-3, rtol=0
    )


def test_pairs_lie_in_the_image_and_the_first_patch_is_cut_out_of_it() -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (64, 3, 60, 60), generator=generator, dtype=torch.uint8)
    pairs = make_pairs(images, 32, torch.rand(64, 5, 2, generator=generator))
    moved = pairs.corners + pairs.shifts
    assert moved.min() >= 0
    assert moved.max() <= 60
    assert pairs.shifts.abs().max() <= 8
    assert pairs.shifts.abs().max() > 7.9
    assert pairs.corners[:, 0].min() == 8
    assert pairs.corners[:, 0].max() == 60 - 32 - 8
    left, top = pairs.corners[5, 0].int().tolist()
    grey = TF.rgb_to_grayscale(images[5].float() / 255)[0]
    torch.testing.assert_close(pairs.first[5, 1], grey[top : top + 32, left : left + 32], atol=1e-3, rtol=0)
    unmoved = make_pairs(images, 32, torch.cat([torch.rand(64, 1, 2), torch.full((64, 4, 2), 0.5)], dim=1))
    torch.testing.assert_close(unmoved.first, unmoved.second, atol=1e-4, rtol=0)
    assert patch_side(240, 16) == 128
    assert patch_side(96, 8) == 48
    with pytest.raises(ValueError, match="do not fit into images of 20"):
        patch_side(20, 16)
