"""Predictions of images and tiles: those of transformers for each, blended; boxes of tiles that are one object are joined."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    DPTImageProcessor,
)

from hf_geossl.tasks.prediction import predictors
from hf_geossl.tasks.prediction.opened_images import DecodedImage
from hf_geossl.tasks.prediction.predictors import predict_map, predict_objects, resized_rows
from hf_geossl.tasks.prediction.task_models import open_task_model
from hf_geossl.tasks.prediction.tiling import Tiling
from tests.helpers.task_folders import local_model, picture

FolderOf = Callable[[str], Path]


def joined(parts: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.full(shape, np.nan, np.float32)
    for (top, left, height, width), part in parts:
        values[:, top : top + height, left : left + width] = part
    assert np.isfinite(values).all()
    return values


@pytest.mark.parametrize("size", [(100, 130), (60, 41), (20, 90)])
def test_tiles_give_what_the_whole_gives_where_a_model_sees_no_farther_than_a_quarter_of_their_overlap(
    size: tuple[int, int],
) -> None:
    model, pixels = local_model(), picture(*size)
    whole = joined(predict_map(model, DecodedImage(pixels, None), None, 4), (3, *size))
    tiling = Tiling.of(size, (32, 32), 8)
    tiled = joined(predict_map(model, DecodedImage(pixels, None), tiling, 4), (3, *size))
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    assert max(shape[0] for shape in model.module.seen) <= 4  # a batch


@pytest.mark.parametrize("name", ["linear", "upernet", "depth", "dpt", "segformer"])
def test_away_from_the_seams_a_tile_has_what_transformers_gives_for_it_as_an_image(
    name: str, folder_of: FolderOf
) -> None:
    pixels, size = picture(90, 120), (90, 120)
    model = open_task_model(folder_of(name), device="cpu")
    task = AutoModelForDepthEstimation if model.kind == "depth" else AutoModelForSemanticSegmentation
    theirs = task.from_pretrained(folder_of(name)).eval()
    processor = AutoImageProcessor.from_pretrained(folder_of(name))
    if name != "segformer":  # trunks of 32 x 32 pixels: their positions are resampled
        model.processor.size = processor.size = {"height": 48, "width": 56}
    tiling = Tiling.of(size, (40, 40), 8)
    tiled = joined(predict_map(model, DecodedImage(pixels, None), tiling, 3), (max(1, len(model.names)), *size))
    compared = 0
    for row, top in enumerate(tiling.rows.starts):
        for column, left in enumerate(tiling.columns.starts):
            tile = Image.fromarray(pixels[top : top + 40, left : left + 40])
            with torch.no_grad():
                outputs = theirs(**processor(tile, return_tensors="pt"))
            if model.kind == "depth":
                made = DPTImageProcessor().post_process_depth_estimation(outputs, [(40, 40)])[0]["predicted_depth"][
                    None
                ]
            else:
                made = torch.nn.functional.interpolate(outputs.logits, (40, 40), mode="bilinear")[0].softmax(0)
            expected = made.numpy()
            alone = np.outer(tiling.rows.shares(row), tiling.columns.shares(column)) == 1
            found = tiled[:, top : top + 40, left : left + 40]
            assert np.abs(found - expected)[:, alone].max() <= 1e-4 * max(1, np.abs(expected).max())
            compared += alone.sum()
    assert compared > 0.5 * pixels.shape[0] * pixels.shape[1]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_rows_of_a_resized_map_are_those_of_torch(mode: str) -> None:
    draw = torch.Generator().manual_seed(0)
    for height, width in ((7, 9), (50, 31), (3, 2), (200, 90)):
        values = torch.randn(1, 2, 11, 13, generator=draw)
        expected = torch.nn.functional.interpolate(values, (height, width), mode=mode, align_corners=False)
        rows = [resized_rows(values, height, width, top, min(4, height - top), mode) for top in range(0, height, 4)]
        torch.testing.assert_close(torch.cat(rows, dim=2), expected, atol=1e-5, rtol=0)


def test_objects_of_a_whole_image_are_those_of_transformers(folder_of: FolderOf) -> None:
    pixels = picture(60, 90)
    model = open_task_model(folder_of("yolos"), device="cpu")
    found = predict_objects(model, DecodedImage(pixels, None), None, 1, score_threshold=0.3, iou_threshold=0.5)
    theirs = AutoModelForObjectDetection.from_pretrained(folder_of("yolos")).eval()
    processor = AutoImageProcessor.from_pretrained(folder_of("yolos"))
    with torch.no_grad():
        outputs = theirs(**processor(Image.fromarray(pixels), return_tensors="pt"))
    expected = processor.post_process_object_detection(outputs, 0.3, [(60, 90)])[0]
    assert len(found.scores) == len(expected["scores"]) > 0
    order = expected["scores"].argsort(descending=True)
    np.testing.assert_allclose(found.scores, expected["scores"][order], atol=1e-5)
    boxes = expected["boxes"][order].clamp(min=0).minimum(torch.tensor([90.0, 60, 90, 60]))
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)


class Squares:
    """Finds the bright squares of a picture exactly, cut where the picture ends."""

    def __init__(self) -> None:
        self.kind, self.names, self.image_format = "detection", ("square", "other"), None
        self.processor = SimpleNamespace()

    def prepare(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.from_numpy(pixels.copy())[None]}

    def predict(self, inputs: Any) -> SimpleNamespace:
        logits, boxes = [], []
        for one in inputs:
            image = one["pixel_values"][0].numpy()
            height, width = image.shape[:2]
            own, sure = [], []
            for value in range(50, 250, 50):
                y, x = np.nonzero(image[..., 0] == value)
                if len(y) > 8:
                    x1, y1, x2, y2 = x.min(), y.min(), x.max() + 1, y.max() + 1
                    own.append([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height])
                    sure.append([9.0 + len(y) % 3, 0, 0])
            logits.append(torch.tensor((sure + [[0, 0, 20.0]] * 9)[:9]))
            boxes.append(torch.tensor((own + [[0, 0, 0, 0]] * 9)[:9], dtype=torch.float32))
        return SimpleNamespace(logits=torch.stack(logits), pred_boxes=torch.stack(boxes))


def test_objects_at_the_seams_of_tiles_are_found_once_and_whole() -> None:
    pixels = np.zeros((150, 200, 3), np.uint8)
    squares = {50: (10, 20, 14), 100: (40, 60, 15), 150: (90, 118, 16), 200: (100, 30, 12)}  # value: top, left, side
    for value, (top, left, side) in squares.items():
        pixels[top : top + side, left : left + side] = value
    model: Any = Squares()
    tiling = Tiling.of((150, 200), (64, 64), 20)
    found = predict_objects(model, DecodedImage(pixels, None), tiling, 3, score_threshold=0.5, iou_threshold=0.5)
    expected = sorted([left, top, left + side, top + side] for top, left, side in squares.values())
    np.testing.assert_allclose(sorted(found.boxes.tolist()), expected, atol=1e-3)
    assert (np.diff(found.scores) <= 0).all()
    joined = predictors._whole_ones
    assert joined(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.bool)).shape == (0,)
