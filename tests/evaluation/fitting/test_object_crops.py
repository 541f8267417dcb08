"""Objects cut out of images: points of scenes by their geometry, points of datasets by the cut."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_geossl.data import THING_CLASSES, sample_scene
from hf_geossl.data.scenes import render
from hf_geossl.evaluation.fitting.object_crops import FACING, cut_crops, object_crops, scene_keypoints
from hf_geossl.evaluation.options import EvaluationData
from hf_geossl.evaluation.samples import load_samples
from tests.helpers.tiny_data import coco_folder


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
    data, seen = EvaluationData(size=64, limit=20, config_name=mode), 0
    for batch in data.test.batches(5):
        [crops] = object_crops(
            [batch], data, "test", side=64, margin=1.25, smallest_side=1 / 8, device=torch.device("cpu")
        )
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


def test_keypoints_of_a_dataset_follow_the_cut(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path)
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
