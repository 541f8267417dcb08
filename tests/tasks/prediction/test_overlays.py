"""Pictures show classes in their colours, depths from bright to dark, boxes where they are; legends name what occurs."""

import numpy as np
from PIL import Image

from hf_geossl.tasks.prediction.map_files import class_colors
from hf_geossl.tasks.prediction.overlays import (
    boxes_legend,
    boxes_overlay,
    depth_legend,
    depth_overlay,
    label_legend,
    mask_legend,
    mask_overlay,
    with_legend,
)
from hf_geossl.tasks.prediction.predictors import Objects

GREY = Image.new("RGB", (500, 400), (100, 100, 100))
NAMES = ("road", "house", "tree")


def test_classes_have_the_colours_of_the_legend_and_opaque_borders() -> None:
    classes = np.zeros((400, 500), np.uint8)
    classes[:, 200:] = 2
    classes[300:] = 255
    painted = np.asarray(mask_overlay(GREY, classes, 3, 255)).astype(int)
    colors = class_colors(3).astype(int)
    np.testing.assert_allclose(painted[10, 10], (colors[0] + 100) / 2, atol=1)
    np.testing.assert_allclose(painted[10, 400], (colors[2] + 100) / 2, atol=1)
    np.testing.assert_array_equal(painted[10, 200], colors[2])
    np.testing.assert_allclose(painted[350, 10], (140 + 100) / 2, atol=1)
    assert [text for text, _ in mask_legend([0.25, 0.75], ["0", "11"])] == ["class 11 75.0 %", "class 0 25.0 %"]
    assert mask_legend([0.25, 0, 0.75], NAMES) == [
        ("tree 75.0 %", tuple(colors[2])),
        ("road 25.0 %", tuple(colors[0])),
    ]
    assert mask_overlay(GREY.resize((50, 40)), classes[::10, ::10], 3, 255).size == (450, 360)  # enlarged


def test_depths_are_bright_near_and_dark_far() -> None:
    depth = np.tile(np.linspace(2, 10, 500, dtype=np.float32), (400, 1))
    depth[:100] = np.nan
    both, (near, far) = depth_overlay(GREY, depth)
    assert both.size == (1008, 400)
    assert abs(near - 2.08) < 0.02
    assert abs(far - 9.92) < 0.02
    brightness = np.asarray(both.convert("L")).astype(int)[200, 508:]
    assert brightness[0] > 180
    assert brightness[-1] < 60
    assert (np.diff(brightness) <= 1).all()
    assert (np.asarray(both)[50, 700] == 140).all()
    texts = [text for text, _ in depth_legend((2, 10))]
    assert texts == ["2", "4", "6", "8", "10"]
    nothing, ends = depth_overlay(GREY, np.full((400, 500), np.nan, np.float32))
    assert nothing.size == both.size
    assert ends == (0, 1)


def test_boxes_lie_where_they_are_in_the_image() -> None:
    objects = Objects(
        np.array([[1000, 400, 1600, 1200], [40, 80, 400, 600]], np.float32),
        np.array([1, 0]),
        np.array([0.9, 0.4], np.float32),
    )
    drawn = np.asarray(boxes_overlay(GREY, objects, NAMES, (2000, 1600)))  # the picture is a quarter of the image
    assert (drawn[150, 250] == class_colors(3)[1]).all()
    assert (drawn[250, 399] == class_colors(3)[1]).all()
    assert (drawn[100, 10] == class_colors(3)[0]).all()
    assert (drawn[200, 300] == 100).all()
    assert [text for text, _ in boxes_legend(objects, NAMES)] == ["road: 1", "house: 1"]
    none = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert boxes_legend(none, NAMES) == [("nothing found", None)]


def test_a_legend_has_room_for_all_classes_below_the_picture() -> None:
    entries = [(f"class number {number}", (10, 20, number)) for number in range(60)]
    sheet = with_legend(GREY, entries)
    assert sheet.width == 500
    found = {tuple(color) for color in np.asarray(sheet)[400:].reshape(-1, 3).tolist()}
    assert {color for _, color in entries[:40]} <= found
    assert entries[41][1] not in found
    np.testing.assert_array_equal(np.asarray(sheet)[:400], np.asarray(GREY))
    wide = with_legend(GREY.resize((1680, 400)), entries[:1])  # looked at in half its size: twice as large marks
    assert {entries[0][1]} == {tuple(color) for color in np.asarray(wide)[420:444, 20:44].reshape(-1, 3).tolist()}
    legend = label_legend(np.array([0.1, 0.8995, 0.0005]), NAMES, most=3)
    assert [text for text, _ in legend] == ["house 90.0 %", "road 10.0 %", "tree < 0.1 %"]
