"""GTSA views: pixels and statistics against the golden numbers, geometry against formulas."""

import contextlib
import dataclasses
import json

import numpy as np
import PIL
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_geossl.modeling.geometry import overlap_boxes
from hf_geossl.views.crops import cut_crops, make_random
from hf_geossl.views.gtsa import GTSAViews
from tests.helpers import forked
from tests.helpers.golden import ROOT
from tests.helpers.image_settings import IMAGE_SETTINGS

GOLDEN = ROOT / "tests" / "golden" / "gtsa"
LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # of the golden quantiles
SMALL = {"global_size": 32, "local_size": 16}
ONE_LEVEL = 1.001 / 255 / 0.224


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(skimage.data.astronaut()).resize((320, 240))


def overlap(a, b):
    """Area shared by boxes of shape (..., 4)."""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    return sides.clamp_min(0).prod(-1)


# ---------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-6), (False, ONE_LEVEL)])
def test_pixels_equal_the_golden_ones(exact, tolerance):
    cases, golden = json.loads((GOLDEN / "pixels.json").read_text())["cases"], load_file(GOLDEN / "pixels.safetensors")
    for number, case in enumerate(cases):
        size = case["size"]
        views = GTSAViews(global_size=size, num_global=1, num_local=0)
        batch = {
            "global_crops": cut_crops(golden["image_hwc_uint8"], [tuple(case["box_xyxy"])], size, exact=exact)[None],
            "local_crops": torch.empty(1, 0, 3, 96, 96, dtype=torch.uint8),
            "crop_boxes": torch.tensor([[case["box_xyxy"]]]).float(),
            "quarter_turns": torch.tensor([[case["angle"] // 90]]),
        }
        out = views.normalize(batch)["global_pixel_values"][0, 0]
        difference = (out - golden[f"out.{number}"]).abs()
        if int(PIL.__version__.partition(".")[0]) < 13:  # rounds values half-way between two levels the other way
            tolerance = ONE_LEVEL
        assert difference.max() <= tolerance
        assert difference.mean() <= tolerance * 0.3  # 48 to 64 pixels: many values lie half-way between two levels


# -------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("name", ["640x480", "375x500"])
def test_crops_have_the_statistics_of_the_original_sampler(name):
    golden = json.loads((GOLDEN / "sampler_stats.json").read_text())[name]
    width, height = map(int, name.split("x"))
    views = GTSAViews()
    boxes = torch.tensor([views.draw_boxes(make_random(seed), width, height) for seed in range(2500)]).double()
    sides = boxes[..., 2:] - boxes[..., :2]
    area, aspect = sides.prod(-1) / (width * height), sides[..., 0] / sides[..., 1]
    shared = [overlap(boxes[:, q : q + 1], boxes) / (width * height) for q in range(2)]
    ours = {
        "area_fraction": {"global0": area[:, 0], "global1": area[:, 1], "local": area[:, 2:]},
        "aspect_w_over_h": {"global0": aspect[:, 0], "global1": aspect[:, 1], "local": aspect[:, 2:]},
        "overlap_fraction_of_image": {
            "global0_global1": shared[0][:, 1],
            "global0_local": shared[0][:, 2:],
            "global1_local": shared[1][:, 2:],
        },
    }
    for kind, groups in ours.items():
        for group, values in groups.items():
            expected = golden[kind][group]
            for level, quantile in zip(LEVELS, expected["q"], strict=True):
                # "at or below" and "below" the quantile: crops have whole pixels
                at_most, below = (values <= quantile + 1e-6).double().mean(), (values < quantile - 1e-6).double().mean()
                assert below - 0.03 <= level <= at_most + 0.03, (kind, group, level)
            assert abs(values.mean() - expected["mean"]) < 0.012, (kind, group)
            assert abs(values.std() - expected["std"]) < 0.012, (kind, group)


def test_quarter_turns_are_equally_frequent_and_nothing_is_mirrored():
    views, image = GTSAViews(num_global=1, num_local=9, **SMALL), torch.zeros(8, 8, 3, dtype=torch.uint8)
    samples = [views(image, seed) for seed in range(400)]
    turns = torch.stack([sample["quarter_turns"] for sample in samples])
    shares = turns.flatten().bincount(minlength=4) / turns.numel()
    assert (shares - 0.25).abs().max() < 0.03
    assert not any(sample["flips"].any() for sample in samples)


@pytest.mark.parametrize("size", [(640, 480), (97, 211), (40, 1000), (31, 30)])
@pytest.mark.parametrize("counts", [(2, 8), (1, 3), (4, 5)])
def test_views_overlap_strictly_as_much_as_the_method_asks(size, counts):
    width, height = size
    views = GTSAViews(num_global=counts[0], num_local=counts[1])
    hundredth = int(0.01 * width * height)
    for seed in range(60):
        boxes = torch.tensor(views.draw_boxes(make_random(seed), width, height))
        large, small = boxes[: counts[0]], boxes[counts[0] :]
        assert (overlap(large[:, None], large) > 2 * hundredth).all()
        assert (overlap(large[:, None], small) > hundredth).all()


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 2), (3, 3), (5, 4), (3, 200), (200, 3), (1, 5000), (5000, 1), (7, 7000), (13, 11)]
)
@pytest.mark.parametrize("counts", [(2, 8), (4, 3)])
def test_no_image_hangs_and_every_pair_overlaps(size, counts):
    width, height = size
    views = GTSAViews(num_global=counts[0], num_local=counts[1])
    for seed in range(10):
        boxes = torch.tensor(views.draw_boxes(make_random(seed), width, height))
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (overlap(boxes[: counts[0], None], boxes) >= 1).all()


def test_a_crop_that_never_overlaps_is_moved_and_keeps_its_size(monkeypatch):
    monkeypatch.setattr("hf_geossl.views.gtsa.OVERLAP_TRIES", 1)
    views = GTSAViews()
    for seed in range(300):
        boxes = torch.tensor(views.draw_boxes(make_random(seed), 640, 480))
        assert (overlap(boxes[:2, None], boxes) > 3072).all()
        shares = (boxes[2:, 2:] - boxes[2:, :2]).prod(-1) / (640 * 480)
        assert shares.min() > 0.099
        assert shares.max() < 0.302
    # Thin crops meet in thin places, where moving is not enough.
    thin = GTSAViews(global_scale=(0.03, 0.2), local_scale=(0.011, 0.03), aspect_ratio=(0.1, 10.0))
    for seed in range(300):
        boxes = torch.tensor(thin.draw_boxes(make_random(seed), 640, 480))
        assert (overlap(boxes[0], boxes[1]) > 2 * 3072).all()
        assert (overlap(boxes[:2, None], boxes) > 3072).all()


@pytest.mark.parametrize("exact", [False, True])
def test_every_pixel_shows_the_place_that_box_and_turn_say(exact):
    # Red and green of one image hold the low, blue of another the high part of a pixel's own coordinates.
    width, height, size = 250, 200, 48
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    views = GTSAViews(size, size, 2, 6, exact_resize=exact, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    batch = views.collate([views(np.stack([x, y, x], axis=-1), seed) for seed in range(20)])
    out = views.normalize(batch)
    images = torch.cat([out["global_pixel_values"], out["local_pixel_values"]], dim=1)  # (B, V, 3, S, S)
    centre = (torch.arange(size) + 0.5) / size
    i, j = torch.meshgrid(centre, centre, indexing="ij")  # as displayed, rows downwards
    # Where a displayed point was before k quarter turns counter-clockwise: (column, row) of the crop.
    unturned = [(j, i), (1 - i, j), (1 - j, 1 - i), (i, 1 - j)]
    for b in range(20):
        for v in range(8):
            x1, y1, x2, y2 = out["crop_boxes"][b, v]
            column, row = unturned[out["quarter_turns"][b, v]]
            expected_x, expected_y = x1 + column * (x2 - x1) - 0.5, y1 + row * (y2 - y1) - 0.5
            # Antialiasing leans inwards at the edge of the crop, by up to a third of an output pixel.
            tolerance = 0.75 + 0.35 * max(x2 - x1, y2 - y1) / size
            assert (images[b, v, 0] - expected_x).abs().max() < tolerance
            assert (images[b, v, 1] - expected_y).abs().max() < tolerance


def test_overlap_boxes_find_the_same_place_in_both_views():
    width, height, size = 250, 200, 64
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    views = GTSAViews(size, size, 2, 6, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    batch = views.collate([views(np.stack([x, y, x], axis=-1), seed) for seed in range(10)])
    out = views.normalize(batch)
    images = torch.cat([out["global_pixel_values"], out["local_pixel_values"]], dim=1)
    teacher, student = overlap_boxes(out["crop_boxes"], out["quarter_turns"], [size] * 8, 2)

    def centre_of(image, box):
        column, row = (box[0] + box[2]) / 2 - 0.5, (box[1] + box[3]) / 2 - 0.5
        grid = (torch.stack([column, row]) + 0.5) / size * 2 - 1
        return torch.nn.functional.grid_sample(image[None, :2], grid.view(1, 1, 1, 2), align_corners=False).flatten()

    for b in range(10):
        for q in range(2):
            for v in range(8):
                seen = [centre_of(images[b, q], teacher[b, q, v]), centre_of(images[b, v], student[b, v, q])]
                assert (seen[0] - seen[1]).abs().max() < 2.0


# ----------------------------------------------------------------------------------------------------- determinism


def fingerprint(sample):
    return [
        int(value.double().mul(torch.arange(1, value.numel() + 1).view(value.shape)).sum()) for value in sample.values()
    ]


def test_image_and_seed_alone_decide(photo, tmp_path):
    views = GTSAViews(**SMALL)
    first = views(photo, 5)
    torch.manual_seed(1)
    second = GTSAViews(**SMALL).views(photo.copy(), 5)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["crop_boxes"], views(photo, 6)["crop_boxes"])
    program = (
        "import numpy as np; from PIL import Image; from hf_geossl.views.gtsa import GTSAViews;"
        "import skimage.data; from tests.views.test_gtsa import fingerprint;"
        "photo = Image.fromarray(skimage.data.astronaut()).resize((320, 240));"
        "print(fingerprint(GTSAViews(global_size=32, local_size=16)(photo, 5)))"
    )
    out = forked.run(program, output=tmp_path / "output.txt")
    assert json.loads(out) == fingerprint(first)


def test_without_a_seed_torchs_generator_decides(photo):
    views = GTSAViews(**SMALL)
    torch.manual_seed(7)
    first, other = views(photo), views(photo)
    torch.manual_seed(7)
    assert torch.equal(views(photo)["crop_boxes"], first["crop_boxes"])
    assert not torch.equal(first["crop_boxes"], other["crop_boxes"])


# --------------------------------------------------------------------------------------------------------- augment


def make_batch(photo, views, count=4):
    return views.collate([views(photo, seed) for seed in range(count)])


def test_augment_gives_what_forward_takes_and_depends_on_the_generator_alone(photo):
    views = GTSAViews(**SMALL)
    batch = make_batch(photo, views)
    before = {key: value.clone() for key, value in batch.items()}
    out = views.augment(batch, torch.Generator().manual_seed(2))
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "global_pixel_values": (4, 2, 3, 32, 32),
        "local_pixel_values": (4, 8, 3, 16, 16),
        "crop_boxes": (4, 10, 4),
        "quarter_turns": (4, 10),
    }
    assert out["global_pixel_values"].dtype == out["local_pixel_values"].dtype == torch.float32
    assert all(torch.equal(batch[key], before[key]) for key in before)
    torch.manual_seed(99)
    with torch.autocast("cpu", torch.bfloat16):
        again = views.augment(batch, torch.Generator().manual_seed(2))
    assert all(torch.equal(out[key], again[key]) for key in out)
    other = views.augment(batch, torch.Generator().manual_seed(3))
    assert not torch.equal(out["local_pixel_values"], other["local_pixel_values"])


def test_augment_works_on_the_device_of_the_batch(photo, monkeypatch):
    # Tensors on "meta" refuse to meet those of a CPU, and to tell their values: no host waits for them.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    views = GTSAViews(**SMALL, blur_probability=0.5)
    batch = {key: value.to("meta") for key, value in make_batch(photo, views).items()}
    for out in (views.augment(batch, torch.Generator().manual_seed(0)), views.normalize(batch)):
        assert {value.device.type for value in out.values()} == {"meta"}
        assert out["local_pixel_values"].shape == (4, 8, 3, 16, 16)


def test_augment_without_colour_change_is_normalize(photo):
    views = GTSAViews(**SMALL, color_jitter_probability=0, grayscale_probability=0, blur_probability=0)
    batch = make_batch(photo, views)
    augmented, normalized = views.augment(batch), views.normalize(batch)
    for key in normalized:
        torch.testing.assert_close(augmented[key], normalized[key], atol=1e-5, rtol=0)


def test_turns_are_done_per_view_after_batching(photo):
    views = GTSAViews(**SMALL)
    batch = make_batch(photo, views, 3)
    out = views.normalize(batch)["local_pixel_values"]
    straight = views.normalize(batch | {"quarter_turns": torch.zeros_like(batch["quarter_turns"])})[
        "local_pixel_values"
    ]
    for b in range(3):
        for v in range(8):
            turn = int(batch["quarter_turns"][b, 2 + v])
            assert torch.equal(out[b, v], torch.rot90(straight[b, v], turn, dims=(-2, -1)))


def test_no_local_views_give_none(photo):
    views = GTSAViews(**SMALL, num_local=0)
    batch = make_batch(photo, views)
    assert batch["local_crops"].shape == (4, 0, 3, 16, 16)
    out = views.augment(batch)
    assert out["local_pixel_values"] is None
    assert out["crop_boxes"].shape == (4, 2, 4)


# ----------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_global": 0}, "num_global"),
        ({"num_local": -1}, "num_local"),
        ({"local_size": 0}, "local_size"),
        ({"global_scale": (0.5, 1.2)}, "global_scale"),
        ({"local_scale": (0.005, 0.01)}, "local_scale must reach above 0.01"),
        ({"aspect_ratio": (2.0, 1.0)}, "aspect_ratio"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
        ({"hue": 0.7}, "hue"),
    ],
)
def test_wrong_settings_name_the_argument(wrong, named):
    with pytest.raises(ValueError, match=named):
        GTSAViews(**wrong)


FLAT = {
    "global_size": (224, 64),
    "local_size": (96, 48),
    "num_global": (2, 3),
    "num_local": (8, 4),
    "global_scale": ((0.3, 1.0), (0.4, 1.0)),
    "local_scale": ((0.1, 0.3), (0.1, 0.305)),
    "aspect_ratio": ((3 / 4, 4 / 3), (0.75, 1.34)),
    "exact_resize": (False, True),
    "brightness": (0.8, 0.81),
    "contrast": (0.8, 0.81),
    "saturation": (0.8, 0.81),
    "hue": (0.2, 0.21),
    "color_jitter_probability": (0.8, 0.801),
    "grayscale_probability": (0.2, 0.201),
    "blur_probability": (0.2, 0.201),
    "blur_sigma": ((0.1, 2.0), (0.1, 2.001)),
    "reconstruction": (None, "se2"),
    "num_intermediate": (2, 3),
    "mean": ((0.485, 0.456, 0.406), (0.486, 0.456, 0.406)),
    "std": ((0.229, 0.224, 0.225), (0.228, 0.224, 0.225)),
    **IMAGE_SETTINGS,
}


def test_every_setting_has_its_default_and_makes_other_views():
    flat = GTSAViews.flat_settings()
    assert {name: entry.default for name, entry in flat.items()} == {name: first for name, (first, _) in FLAT.items()}
    assert list(flat)[:7] == list(FLAT)[:7]  # the order of positional values
    dictionaries = [dataclasses.asdict(GTSAViews(**{name: other})) for name, (_, other) in FLAT.items()]
    for position, dictionary in enumerate([dataclasses.asdict(GTSAViews()), *dictionaries]):
        assert dictionary not in dictionaries[position:]
    views = GTSAViews(**{name: other for name, (_, other) in FLAT.items()})
    assert all(getattr(views, name) == other for name, (_, other) in FLAT.items())


def test_a_card_can_say_what_the_views_were():
    assert GTSAViews().describe() == (
        "2 global of 224 x 224 pixels from 30% to 100% of the image, 8 local of 96 x 96 pixels from 10% to 30% of the "
        "image, each turned by a random quarter, colour jitter 0.8/0.8/0.8/0.2 in 80%, grey in 20%, blur in 20% "
        "(sigma 0.1 to 2)"
    )
    assert "local" not in GTSAViews(num_local=0).describe()
