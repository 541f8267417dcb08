"""Protocols about single objects: detection, keypoints, orientation."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from hf_geossl.data import SEMANTIC_CLASSES, THING_CLASSES, load_scenes, sample_scene
from hf_geossl.data.scenes import render
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.metrics.coco_average_precision import COCOAveragePrecision
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import keypoints
from hf_geossl.evaluation.protocols.detection import (
    DetectionSettings,
    PatchAnchors,
    average_precision_intervals,
    build_detector,
    measure_detection,
)
from hf_geossl.evaluation.protocols.keypoints import (
    FACING,
    KeypointsSettings,
    cut_crops,
    decode_heatmaps,
    draw_heatmaps,
    measure_keypoints,
    scene_keypoints,
)
from hf_geossl.evaluation.protocols.orientation import OrientationSettings, angular_errors, measure_orientation
from hf_geossl.evaluation.samples import load_samples
from tests.helpers.pixel_encoder import Pixels, pixel_encoder
from tests.helpers.supervised import small_model

OPTIONS = EvaluationOptions(batch_size=16, bootstrap=20, cache_dir=None, progress=False)


def timm_encoder(patch_size: int, size: int) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_encoder(
            timm.create_model(
                "vit_tiny_patch16_224",
                img_size=size,
                patch_size=patch_size,
                depth=2,
                num_classes=0,
                dynamic_img_size=True,
            )
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of 80 x 60 with a red or blue rectangle each, in COCO's fields, with three keypoints; some have none."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        rows = []
        (tmp_path / split).mkdir()
        for index in range(12):
            image = np.full((60, 80, 3), 128, np.uint8)
            objects: dict[str, Any] = {"bbox": [], "category": [], "keypoints": []}
            if index != 5:
                x, y, category = int(draw.integers(12, 40)), int(draw.integers(5, 30)), int(draw.integers(2))
                image[y : y + 24, x : x + 20] = (220, 30, 30) if category else (30, 30, 220)
                objects["bbox"].append([x, y, 20, 24])
                objects["category"].append(category)
                objects["keypoints"].append([x, y, 2, x + 20, y, 1, 5, 5, 0])
            Image.fromarray(image).save(tmp_path / split / f"{index}.png")
            rows.append(json.dumps({"file_name": f"{index}.png", "objects": objects}))
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(rows))
    return tmp_path


# ---- detection ----


def test_anchors_and_pools_lie_where_patches_of_14_pixels_do() -> None:
    encoder = timm_encoder(14, 98)
    detector = build_detector(encoder, 98, 3, DetectionSettings(channels=8, head_width=8), masks=True).eval()
    images = torch.zeros(1, 3, 98, 98)
    maps = detector.backbone(images)
    anchors = PatchAnchors(14, 98)(ImageList(images, [(98, 98)]), list(maps.values()))[0]
    middles, sizes = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    assert len(anchors) == 3 * (28**2 + 14**2 + 7**2 + 4**2 + 2**2)
    # the finest map has four positions a patch, of 3.5 pixels
    torch.testing.assert_close(middles[: 3 * 28 : 3, 0], torch.arange(28) * 3.5 + 1.75)
    torch.testing.assert_close(middles[3 * 28 * 27 :: 3 * 28, 1][:1], torch.tensor([27 * 3.5 + 1.75]))
    torch.testing.assert_close(sizes[:3].prod(dim=1), torch.full((3,), (98 / 32) ** 2))
    torch.testing.assert_close(sizes[:3, 1] / sizes[:3, 0], torch.tensor([0.5, 1.0, 2.0]))
    # a region is pooled from the place that it covers: maps that hold their own x
    coordinates = {
        str(level): ((torch.arange(side) + 0.5) * 98 / side).expand(1, 1, side, side)
        for level, side in enumerate((28, 14, 7))
    }
    coordinates["3"] = ((torch.arange(4) + 0.5) * 28).expand(1, 1, 4, 4)
    for box in ([60.0, 20.0, 74.0, 34.0], [20.0, 20.0, 76.0, 76.0]):
        pooled = detector.roi_heads.box_roi_pool(coordinates, [torch.tensor([box])], [(98, 98)])
        width = box[2] - box[0]
        expected = box[0] + (torch.arange(7) + 0.5) / 7 * width
        torch.testing.assert_close(pooled[0, 0, 3], expected, atol=2.0, rtol=0)
        assert pooled[0, 0, 3].diff().min() > 0


BY_HEART = DetectionSettings(
    steps=90, warmup_steps=10, batch_size=2, learning_rate=2e-3, layer_decay=1.0, channels=32, head_width=64
)


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


def test_boxes_without_masks_are_measured_with_a_timm_model(folder: Path) -> None:
    data = EvaluationData(dataset=str(folder), size=64, limit=2, test_split="train")
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
    metric.add_batch(predictions=[pair[0] for pair in images], references=[pair[1] for pair in images])
    intervals = average_precision_intervals(metric, EvaluationOptions(bootstrap=15, seed=3))
    generator, values = np.random.default_rng(3), []
    for _ in range(15):
        drawn = [images[index] for index in generator.integers(6, size=6)]
        other = COCOAveragePrecision()
        values.append(
            other.compute(predictions=[pair[0] for pair in drawn], references=[pair[1] for pair in drawn])["box_ap"]
        )
    np.testing.assert_allclose(intervals["box_ap"], np.quantile(values, [0.025, 0.975]))
    assert len(metric.found) == 24  # as it was


# ---- keypoints ----


@pytest.mark.parametrize("mode", ["scene", "topdown", "object"])
def test_points_of_scenes_are_those_of_the_turned_and_mirrored_thing(mode: str) -> None:
    facing = turned = 0
    for index in range(40):
        scene = sample_scene("test", index, mode=mode)
        rendered = render(scene, 128)
        points = scene_keypoints("test", index, [item["id"] for item in rendered.objects], 128, mode)
        for item, (center, top, bottom, front, back) in zip(rendered.objects, points, strict=True):
            name = THING_CLASSES[item["category"]]
            if center[2]:
                np.testing.assert_allclose(center[:2], item["center"], atol=1e-3)
            if top[2] and bottom[2]:
                up = (top - bottom)[:2]
                turn = math.atan2(-up[0], -up[1]) - item["angle"]  # counter-clockwise from up; y points down
                assert abs((turn + math.pi) % (2 * math.pi) - math.pi) < 1e-3
                turned += 1
            assert name in FACING or not (front[2] or back[2])
            if front[2] and back[2]:
                facing += 1
                if mode == "topdown":  # the nose is up in a thing's own frame
                    assert torch.equal(torch.stack([front, back]), torch.stack([top, bottom]))
                else:
                    assert (front[0] < back[0]) == item["mirror"]
                torch.testing.assert_close((front + back)[:2] / 2, center[:2], atol=1e-3, rtol=0)
    assert turned > 10
    assert facing > 10 or mode == "object"  # which are cut off at the frame more often than not


@pytest.mark.parametrize("mode", ["scene", "topdown", "object"])
def test_crops_have_the_points_of_the_datas_mode(mode: str) -> None:
    data, settings, seen = EvaluationData(size=64, limit=20, config_name=mode), KeypointsSettings(), 0
    for batch in data.test.batches(5):
        [crops] = keypoints._crops(iter([batch]), data, "test", 64, settings, torch.device("cpu"))
        for source, (center, *_) in zip(crops.sources.tolist(), crops.points, strict=True):
            if center[2]:
                assert (batch["centers"][source] - center[:2]).norm(dim=1).min() < 1e-3
                seen += 1
    assert seen >= 15


def test_points_of_an_uncovered_upright_thing_lie_on_the_edges_of_its_mask() -> None:
    checked = 0
    for index in range(60):
        scene = sample_scene("train", index)
        for thing in scene.things:
            if THING_CLASSES[thing.category] not in ("car", "house"):  # upright
                continue
            alone = render(replace(scene, things=(thing,)), 128).objects
            x1, y1, x2, y2 = alone[0]["bbox"] if alone else (0, 0, 0, 0)
            if not alone or min(x1, y1) < 2 or max(x2, y2) > 126:
                continue
            points = scene_keypoints("train", index, [thing.id], 128)[0]
            assert abs(points[1, 1] - y1) < 1.5
            assert abs(points[2, 1] - y2) < 1.5
            if THING_CLASSES[thing.category] == "car":
                ends = sorted(points[3:, 0].tolist())
                assert abs(ends[0] - x1) < 1.5
                assert abs(ends[1] - x2) < 1.5
                checked += 1
    assert checked > 5


def test_crops_show_the_frame_that_they_are_cut_from() -> None:
    line = (torch.arange(64) * 3).to(torch.uint8)
    images = torch.stack([line.expand(64, 64), line[:, None].expand(64, 64), line.expand(64, 64)])[None].repeat(
        2, 1, 1, 1
    )
    frames = torch.tensor([[10.0, 20.0, 24.0], [4.5, 6.25, 50.0]])
    crops = cut_crops(images, torch.tensor([1, 0]), frames, 16)
    for crop, (left, top, side) in zip(crops, frames, strict=True):
        middles = (torch.arange(16) + 0.5) / 16 * side
        torch.testing.assert_close(crop[0, 5] * 255, (left + middles - 0.5) * 3, atol=1e-2, rtol=0)
        torch.testing.assert_close(crop[1, :, 5] * 255, (top + middles - 0.5) * 3, atol=1e-2, rtol=0)


def test_points_survive_being_drawn_as_heatmaps_to_a_part_of_a_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.tensor([[10.0, -4.0, 48.0], [30.0, 12.0, 24.0], [0.0, 0.0, 96.0]])
    places = 0.15 + 0.7 * torch.rand(3, 5, 2, generator=generator)
    points = torch.cat([frames[:, None, :2] + places * frames[:, None, 2:], torch.full((3, 5, 1), 2.0)], dim=-1)
    points[0, 0, 2] = 0
    points[0, 1, 0] = -3
    heatmaps, weights = draw_heatmaps(points, frames, 24, 2.0)
    assert weights[0].tolist() == [0, 0, 1, 1, 1]
    assert weights[1:].min() == 1
    decoded, scores = decode_heatmaps(heatmaps.numpy(), frames.numpy(), 2.0)
    seen = weights.bool().numpy()
    pixel = (frames[:, 2] / 24).numpy()[:, None]
    errors = np.linalg.norm(decoded - points[..., :2].numpy(), axis=-1) / pixel
    assert errors[seen].max() < 0.1  # a whole pixel's rounding alone would be up to .7
    assert (scores[seen] > 0.8).all()


def test_keypoints_of_a_dataset_follow_the_cut(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "test/metadata.jsonl").read_text().splitlines()]
    for sample, row in zip(load_samples(str(folder), "test", size=56), rows, strict=True):
        points = sample["keypoints"]
        assert points.shape[0] == len(row["objects"]["bbox"])
        if not len(points):
            continue
        # 60 pixels become 64 (8 / 7 of 56), of which the middle 56 are kept; so of 80 become 85
        x, y, *_ = row["objects"]["bbox"][0]
        assert points[0, 2].tolist() == [0, 0, 0]
        expected = torch.tensor([x * 85 / 80 - 14, y * 64 / 60 - 4])
        if (expected >= 0).all():
            torch.testing.assert_close(points[0, 0, :2], expected)
            torch.testing.assert_close(sample["boxes"][0, :2], expected)
            assert points[0, 0, 2] == 2
        else:
            assert points[0, 0].tolist() == [0, 0, 0]


def test_points_of_a_handful_of_scenes_are_learned_by_heart() -> None:
    data = EvaluationData(size=64, limit=2, test_split="train")
    encoder = load_encoder(small_model())
    settings = KeypointsSettings(steps=100, images_per_step=2, learning_rate=2e-3, layer_decay=1.0, channels=32)
    result = measure_keypoints(encoder, data, OPTIONS, settings)
    floor = result.details["floors"]["mean_places"]
    assert result.metrics["pck"] > 0.9 > floor["pck"]
    assert result.metrics["keypoint_ap"] > 0.8 > floor["keypoint_ap"]
    assert result.pictures["points"]().width > 100


def test_keypoints_of_a_dataset_are_measured_and_the_same_twice(folder: Path) -> None:
    data = EvaluationData(dataset=str(folder), size=56)
    settings = KeypointsSettings(steps=2, images_per_step=2, channels=8)
    first, second = (measure_keypoints(load_encoder(small_model()), data, OPTIONS, settings) for _ in range(2))
    assert all(np.isclose(first.metrics[name], second.metrics[name], equal_nan=True) for name in first.metrics)
    assert math.isnan(first.metrics["pck_point_2"])  # labelled nowhere
    # corners of the box are always in the same place of it
    assert first.details["floors"]["mean_places"]["pck"] == 1
    with pytest.raises(ValueError, match="must be a multiple of .* patch size 8, got 60"):
        measure_keypoints(load_encoder(small_model()), data, OPTIONS, replace(settings, crop_size=60))
    assert len(keypoints.COCO_POINTS) == 17


# ---- orientation ----


def test_angular_errors_go_the_short_way_round() -> None:
    angles = np.radians([10.0, -170.0, 90.0, 0.0])
    guesses = np.radians([350.0, 170.0, 90.0, 180.0])
    predictions = 3 * np.stack([np.cos(guesses), np.sin(guesses)], axis=1)
    np.testing.assert_allclose(angular_errors(predictions, angles), [20, 20, 0, 180], atol=1e-9)


class Compass(Pixels):
    """Tokens that say which way the kite in their place points; found by the image, as a very good model would."""

    def __init__(self, patch_size: int, images: torch.Tensor, tokens: torch.Tensor) -> None:
        super().__init__(patch_size)
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("tokens", tokens)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.tokens[torch.cdist(images.flatten(1), self.images).argmin(dim=1)] @ self.matrix


def test_angles_are_those_of_the_datas_mode_unless_the_settings_name_one() -> None:
    encoder, options = pixel_encoder(8), replace(OPTIONS, bootstrap=0)

    def measure(config_name: str | None, mode: str | None) -> dict[str, Any]:
        data = EvaluationData(size=64, limit=120, config_name=config_name)
        found = measure_orientation(encoder, data, options, OrientationSettings(mode=mode))
        assert found.details["mode"] == (mode or config_name or "scene")
        return {**found.metrics, **{name: found.details[name] for name in ("train_objects", "test_objects")}}

    own = {mode: measure(mode, None) for mode in ("scene", "topdown", "object")}
    assert len({entry["angular_error"] for entry in own.values()}) == 3
    assert measure(None, None) == own["scene"]
    assert measure("object", "topdown") == measure(None, "topdown") == own["topdown"]


def test_angles_that_are_in_the_tokens_are_read_and_others_are_not() -> None:
    size, side, kite = 64, 8, THING_CLASSES.index("kite")
    encoder = pixel_encoder(side)
    pixels, tokens = [], torch.zeros(300, 8, 8, encoder.width)
    rows = [row for split in ("train", "test") for row in load_scenes(split, size, 150)]
    for row, maps in zip(rows, tokens, strict=True):
        pixels.append(encoder.normalize(torch.from_numpy(np.array(row["image"])).permute(2, 0, 1)[None])[0])
        for item in row["objects"]:
            if item["category"] == kite:
                x1, y1, x2, y2 = (round(edge / side) for edge in item["bbox"])
                direction = torch.tensor([math.cos(item["angle"]), math.sin(item["angle"])])
                maps[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1), :2] = direction
    compass = Encoder(Compass(side, torch.stack(pixels), tokens.flatten(1, 2)), "compass", (0.5,) * 3, (0.5,) * 3, size)
    data = EvaluationData(size=size, limit=150)
    blind = measure_orientation(encoder, data, OPTIONS, OrientationSettings())
    result = measure_orientation(compass, data, OPTIONS, OrientationSettings())
    # not 0: some kites cover each other
    assert result.metrics["angular_error"] < 20 < 60 < blind.metrics["angular_error"]
    assert result.details["floors"]["mean_direction"]["angular_error"] == pytest.approx(90, abs=20)
    assert blind.details["floors"] == result.details["floors"]
    assert result.details["test_objects"] >= 20
    assert result.pictures["errors"]().width > 100
    with pytest.raises(ValueError, match="at least 8 objects"):
        measure_orientation(encoder, replace(data, limit=2), OPTIONS, OrientationSettings())
    with pytest.raises(
        ValueError, match=r"got . and . of kite \(mode object\): take more images, or further categories"
    ):
        measure_orientation(
            encoder, EvaluationData(size=32, limit=20, config_name="object"), OPTIONS, OrientationSettings()
        )
    with pytest.raises(
        ValueError, match="mode must be one of scene, topdown, object, or None for the data's, got 'side'"
    ):
        OrientationSettings(mode="side")
    with pytest.raises(ValueError, match="needs the angles of objects"):
        measure_orientation(encoder, EvaluationData(dataset="somewhere"), OPTIONS, OrientationSettings())
    assert SEMANTIC_CLASSES[-1] == "kite"
