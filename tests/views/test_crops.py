"""Crops: boxes against the authors' statistics, pixels against Pillow and the authors' numbers."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_geossl.data.images import BrokenImageError
from hf_geossl.views.crops import (
    cut_crops,
    cut_crops_without_antialias,
    draw_crop,
    draw_distorted_crop,
    intersect,
    make_random,
    quarter_turn,
    read_pixels,
    shared_area,
    slide_onto,
)
from tests.helpers.golden import golden_folder, golden_json
from tests.helpers.photographs import photographs


@pytest.fixture(scope="module")
def photo():
    return photographs()[2].resize((320, 240))


# ----------------------------------------------------------------------------------------------------------- boxes


def test_boxes_share_what_is_counted_pixel_by_pixel():
    rng = random.Random(0)
    for _ in range(200):
        x, y = (sorted(rng.sample(range(12), 2)) for _ in range(2))
        v, w = (sorted(rng.sample(range(12), 2)) for _ in range(2))
        first, second = (x[0], y[0], x[1], y[1]), (v[0], w[0], v[1], w[1])
        board = np.zeros((2, 12, 12), bool)
        for board_of, box in zip(board, (first, second), strict=True):
            board_of[box[1] : box[3], box[0] : box[2]] = True
        both = board.all(0)
        assert shared_area(first, second) == both.sum()
        if both.any():
            rows, columns = np.nonzero(both)
            assert intersect(first, second) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_box_slides_the_shortest_way_and_keeps_its_size():
    assert slide_onto((0, 0, 10, 10), (30, 4, 32, 40)) == (22, 4, 32, 14)
    assert slide_onto((50, 50, 90, 60), (30, 4, 60, 40)) == (30, 30, 70, 40)


def test_seeds_are_taken_modulo_two_to_the_64th_and_drawn_from_torch_if_absent():
    assert make_random(5).random() == make_random(5 + 2**64).random() == random.Random(5).random()
    torch.manual_seed(3)
    first = make_random(None).random()
    assert make_random(None).random() != first
    torch.manual_seed(3)
    assert make_random(None).random() == first


def test_crops_equal_pillows_to_one_grey_level(photo):
    pixels, rng = torch.from_numpy(np.array(photo)), make_random(0)
    boxes = [draw_crop(rng, 320, 240, (0.001, 1.0), (0.2, 5.0)) for _ in range(60)] + [(5, 5, 6, 6), (0, 0, 320, 1)]
    for size in (24, 64):
        fast, exact = cut_crops(pixels, boxes, size), cut_crops(pixels, boxes, size, exact=True)
        for box, crop in zip(boxes, exact, strict=True):
            pillow = photo.crop(box).resize((size, size), Image.Resampling.BILINEAR)
            assert torch.equal(crop.permute(1, 2, 0), torch.from_numpy(np.array(pillow)))
        difference = (fast.int() - exact.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.04


def test_quarter_turns_are_pillows_counter_clockwise_rotations(photo):
    image = photo.crop((0, 0, 64, 64))
    images = torch.from_numpy(np.array(image)).permute(2, 0, 1).expand(6, 3, 64, 64)
    turns = torch.tensor([0, 1, 2, 3, 1, 0])
    for turn, out in zip(turns.tolist(), quarter_turn(images, turns), strict=True):
        assert torch.equal(out.permute(1, 2, 0), torch.from_numpy(np.array(image.rotate(90 * turn))))
    with pytest.raises(ValueError, match="square"):
        quarter_turn(torch.zeros(1, 3, 4, 5), torch.tensor([1]))


def test_crops_lie_everywhere_up_to_the_last_row_and_column():
    rng = make_random(0)
    boxes = torch.tensor([draw_crop(rng, 9, 7, (0.25, 0.25), (1.0, 1.0)) for _ in range(4000)])
    assert (boxes[:, 2:] - boxes[:, :2] == 4).all()  # round(sqrt(63 / 4))
    for start, last in ((boxes[:, 0], 5), (boxes[:, 1], 3)):
        shares = start.bincount(minlength=last + 1) / len(boxes)
        assert len(shares) == last + 1
        assert (shares - 1 / (last + 1)).abs().max() < 0.03


def test_the_aspect_ratio_of_thin_images_falls_back_to_a_centred_crop():
    # torchvision: 10 misfits, then the largest centred crop of an allowed ratio
    assert draw_crop(make_random(0), 3, 200, (0.3, 1.0), (3 / 4, 4 / 3)) == (0, 98, 3, 102)
    assert draw_crop(make_random(0), 200, 3, (0.3, 1.0), (3 / 4, 4 / 3)) == (98, 0, 102, 3)


@pytest.mark.parametrize("name", ["crop_a", "crop_b", "crop_c"])
def test_crops_equal_the_authors(name):
    golden = load_file(golden_folder("photometric.safetensors", "loca") / "photometric.safetensors")
    place, source = golden_json("photometric.json", "loca")[name], golden["crop_source_uint8"]
    box = (place["x"], place["y"], place["x"] + place["w"], place["y"] + place["h"])
    expected = golden[f"{name}_resized"].permute(2, 0, 1)
    both = {"boxes": [box, box], "size": place["out"], "flips": [False, True]}
    exact = cut_crops_without_antialias(source, **both, unrounded=True)
    torch.testing.assert_close(exact, torch.stack([expected, expected.flip(-1)]), atol=1e-4, rtol=0)
    rounded = cut_crops_without_antialias(source, **both)
    assert rounded.dtype == torch.uint8
    difference = (rounded.float() - torch.stack([expected, expected.flip(-1)]).round()).abs()
    assert difference.max() <= 1
    assert difference.mean() < 0.25


@pytest.mark.parametrize("kind", ["reference_or_query0", "focal", "reference_or_query0_square"])
def test_crops_have_the_statistics_of_the_authors_sampler(kind):
    golden = golden_json("geometry.json", "loca")["sampler_statistics"][kind]
    height, width = golden["image_hw"]
    rng, scale = make_random(0), tuple(golden["area_range"])
    boxes = [draw_distorted_crop(rng, width, height, scale, (0.75, 1.33)) for _ in range(golden["n"])]
    boxes = torch.tensor(boxes).double()
    sides = boxes[:, 2:] - boxes[:, :2]
    ours = {
        "area": (sides.prod(-1) / (width * height), "area_quantiles_0_10_25_50_75_90_100"),
        "aspect": (sides[:, 0] / sides[:, 1], "aspect_w_over_h_quantiles"),
        "y": (boxes[:, 1] / (height - sides[:, 1]).clamp_min(1), "y_over_slack_quantiles"),
    }
    for name, (values, key) in ours.items():
        for level, quantile in zip((0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0), golden[key], strict=True):
            # "at or below" and "below" the quantile: crops have whole pixels
            at_most, below = (values <= quantile + 1e-9).double().mean(), (values < quantile - 1e-9).double().mean()
            assert below - 0.02 <= level <= at_most + 0.02, (name, level)
    assert abs(ours["area"][0].mean() - golden["area_mean"]) < 0.01
    assert abs(ours["aspect"][0].mean() - golden["aspect_mean"]) < 0.01
    assert (sides == torch.tensor([width, height])).all(-1).double().mean() == golden["fraction_whole_image"]


def test_heights_are_equally_frequent_and_the_last_offset_is_never_drawn():
    rng = make_random(0)
    boxes = torch.tensor([draw_distorted_crop(rng, 12, 12, (0.25, 1.0), (1.0, 1.0)) for _ in range(14000)])
    heights = boxes[:, 3] - boxes[:, 1]
    shares = heights.bincount(minlength=13) / len(boxes)
    assert shares[:6].sum() == 0  # sqrt(144 / 4)
    assert (shares[6:] - 1 / 7).abs().max() < 0.01
    for start in (boxes[:, 0], boxes[:, 1]):
        offsets = start[heights == 8].bincount(minlength=4) / (heights == 8).sum()
        assert len(offsets) == 4  # 0..3, never 12 - 8
        assert (offsets - 0.25).abs().max() < 0.03


def test_areas_at_the_bounds_are_mended_by_a_pixel():
    # By hand: sqrt(0.5 * 100 / 1.3) = 6.2, so 6 x round(7.8) = 48 < 50, mended to 7 x round(9.1) = 63 <= 64.
    box = draw_distorted_crop(make_random(0), 10, 10, (0.5, 0.64), (1.3, 1.3))
    heights = {
        draw_distorted_crop(make_random(seed), 10, 10, (0.5, 0.64), (1.3, 1.3))[3]
        - draw_distorted_crop(make_random(seed), 10, 10, (0.5, 0.64), (1.3, 1.3))[1]
        for seed in range(40)
    }
    assert (box[2] - box[0]) * (box[3] - box[1]) == 63
    assert heights == {7}


def test_other_modes_are_read_as_rgb(photo):
    gray = np.array(photo.convert("L"))
    expected = torch.from_numpy(np.repeat(gray[:, :, None], 3, axis=2))
    for image in (
        Image.fromarray(gray),
        Image.fromarray(gray.astype(np.uint16) * 257),
        gray,
        torch.from_numpy(gray)[:, :, None].expand(-1, -1, 3),
    ):
        assert torch.equal(read_pixels(image), expected)
    cmyk = read_pixels(photo.convert("CMYK")).int()
    assert (cmyk - read_pixels(photo).int()).abs().max() <= 2
    one_pixel = cut_crops(read_pixels(Image.new("RGB", (1, 1), (10, 20, 30))), [(0, 0, 1, 1)], 16)
    assert torch.equal(one_pixel[0, :, 3, 3], torch.tensor([10, 20, 30], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("photo.jpg.txt", BrokenImageError),
        (np.full((4, 4, 3), 300, np.float32), BrokenImageError),
        (torch.zeros(0, 4, 3, dtype=torch.uint8), BrokenImageError),
        (12, TypeError),
    ],
)
def test_what_is_no_image_is_refused(image, error):
    with pytest.raises(error):
        read_pixels(image)
