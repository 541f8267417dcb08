"""Protocols that match images with each other: label propagation in clips, and homographies."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from hf_geossl.data import sample_scene
from hf_geossl.data.scenes import render
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.metrics import j_and_f
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import homography, propagation
from hf_geossl.evaluation.protocols.homography import (
    HomographySettings,
    cut_patches,
    make_pairs,
    map_points,
    measure_homography,
    patch_side,
    solve_homography,
)
from hf_geossl.evaluation.protocols.propagation import PropagationSettings, measure_propagation, propagate_labels
from tests.helpers.pixel_encoder import pixel_encoder

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
    measured = j_and_f.summarize(j_and_f.sums_of([shares.argmax(-1)], [objects])[0])
    assert measured["j_mean"] == 1
    still = propagate_labels(features, torch.nn.functional.one_hot(objects[0], 3), radius=0)
    assert j_and_f.summarize(j_and_f.sums_of([still.argmax(-1)], [objects])[0])["j_mean"] < 0.7


def davis_folder(root: Path, side: int = 64, frames: int = 5) -> Path:
    """Two clips of a speckled square that moves by 4 pixels a frame over a plain ground; masks with a palette."""
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for clip in ("runner", "swimmer"):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / clip).mkdir(parents=True)
        for frame in range(frames):
            image = np.full((side, side, 3), 90, np.uint8)
            mask = np.zeros((side, side), np.uint8)
            place = slice(16, 32), slice(8 + 4 * frame, 24 + 4 * frame)
            image[place], mask[place] = noise, 1
            Image.fromarray(image).save(root / f"JPEGImages/480p/{clip}/{frame:05}.png")
            palette = Image.fromarray(mask, mode="P")
            palette.putpalette([0, 0, 0, 128, 0, 0])
            palette.save(root / f"Annotations/480p/{clip}/{frame:05}.png")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("swimmer\n")
    return root


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


def test_masks_are_compared_at_their_own_size(tmp_path: Path) -> None:
    data = EvaluationData(dataset=str(davis_folder(tmp_path)), test_split="val")
    result = measure_propagation(pixel_encoder(4), data, OPTIONS, PropagationSettings(side=128, top_k=1))
    assert result.details["floors"]["first_mask"]["j_mean"] == pytest.approx((12 / 20 + 8 / 24 + 4 / 28) / 3)
    assert result.metrics["j_mean"] > 0.9


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


@pytest.mark.parametrize("mode", [None, "topdown", "object"])
def test_clips_show_scenes_of_the_datas_mode(mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    clips: list[propagation.Clip] = []
    propagate = propagation.propagate_masks

    def watch(encoder: Any, clip: propagation.Clip, *given: Any, **others: Any) -> Any:
        clips.append(clip)
        return propagate(encoder, clip, *given, **others)

    monkeypatch.setattr(propagation, "propagate_masks", watch)
    data = EvaluationData(size=32, limit=3, config_name=mode)
    result = measure_propagation(pixel_encoder(8), data, OPTIONS, PropagationSettings(frames=3, smallest_object=0))
    assert result.details["clips"] == 3
    for index, clip in enumerate(clips[::2]):  # each is given to the model and to its random twin
        scene = sample_scene("test", index, mode=mode or "scene")
        for frame, mask, t in zip(clip.frames, clip.masks, (0, 0.5, 1), strict=True):
            expected = render(scene, 64, t)
            np.testing.assert_array_equal(frame, expected.image)
            known = np.isin(expected.instance, clip.masks[0])
            np.testing.assert_array_equal(mask, np.where(known, expected.instance, 0))


def test_a_timm_model_runs_through_propagation() -> None:
    encoder = load_encoder(
        timm.create_model(
            "vit_tiny_patch16_224", img_size=64, patch_size=8, depth=2, num_classes=0, dynamic_img_size=True
        )
    )
    result = measure_propagation(encoder, EvaluationData(size=64, limit=2), OPTIONS, PropagationSettings(frames=3))
    assert 0 < result.metrics["j_and_f_mean"] < 1


# ---- homography ----


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
