"""LOCA views: crops and statistics against the authors' numbers, positions against what the views show."""

import contextlib
import dataclasses
import inspect

import numpy as np
import pytest
import torch

from hf_geossl import LOCAForPreTraining
from hf_geossl.views.gtsa import GTSAViews
from hf_geossl.views.loca import LOCAViews
from tests.helpers import forked
from tests.helpers.image_settings import CHANNELS, IMAGE_SETTINGS
from tests.helpers.photographs import photographs

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the golden quantiles
SMALL = {"reference_size": 64, "focal_size": 32, "num_focal": 3, "patch_size": 8}
PLAIN = {"color_jitter_probability": 0.0, "grayscale_probability": 0.0, "solarize_probability": 0.0}
LEVEL = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # normalised values are grey levels


@pytest.fixture(scope="module")
def photo():
    return photographs()[2].resize((320, 240))


def make_batch(photo, views, count=4):
    return views.collate([views(photo, seed) for seed in range(count)])


# ----------------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 3), (3, 200), (1, 5000), (7000, 7), (13, 11)])
def test_images_of_any_size_give_crops_inside_them(size):
    width, height = size
    views, image = LOCAViews(**SMALL), np.zeros((height, width, 3), np.uint8)
    for seed in range(5):
        boxes = views(image, seed)["crop_boxes"]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    if max(size) > 100:  # no crop of that aspect ratio has the area: the whole image
        assert boxes[0].tolist() == [0, 0, width, height]


def test_queries_are_mirrored_half_of_the_time_and_references_never():
    image = np.zeros((8, 8, 3), np.uint8)
    flips = torch.stack([LOCAViews(**SMALL)(image, seed)["flips"] for seed in range(800)])
    assert not flips[:, 0].any()
    assert (flips[:, 1:].float().mean(0) - 0.5).abs().max() < 0.06
    correlation = torch.corrcoef(flips[:, 1:].T.float())
    assert (correlation - torch.eye(4)).abs().max() < 0.15  # a coin each
    flips = torch.stack([LOCAViews(**SMALL, reference_flip_probability=0.25)(image, s)["flips"] for s in range(800)])
    assert abs(flips[:, 0].float().mean() - 0.25) < 0.05


# -------------------------------------------------------------------------------------------------------- geometry


def coordinates(width=250, height=200):
    """An image whose red, green and blue are a pixel's x, y and x."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([x, y, x], axis=-1)


@pytest.mark.parametrize("exact", [False, True])
def test_every_pixel_shows_the_place_that_box_and_flip_say(exact):
    views = LOCAViews(**SMALL, reference_flip_probability=0.5, exact_resize=exact, **LEVEL)
    batch = views.collate([views(coordinates(), seed) for seed in range(20)])
    out = views.normalize(batch)
    assert 0 < batch["flips"][:, 0].sum() < 20
    images = [out["reference_pixel_values"], out["random_query_pixel_values"]]
    images += out["focal_query_pixel_values"].unbind(1)
    for v, crops in enumerate(images):
        centre = (torch.arange(crops.shape[-1]) + 0.5) / crops.shape[-1]
        x1, y1, x2, y2 = batch["crop_boxes"][:, v, :, None].unbind(1)  # (B, 1)
        column = torch.where(batch["flips"][:, v, None], 1 - centre, centre)
        # Between the pixels of the crop; its outermost half pixels continue the border.
        x = (x1 + column * (x2 - x1) - 0.5).clamp(x1, x2 - 1)
        y = (y1 + centre * (y2 - y1) - 0.5).clamp(y1, y2 - 1)
        tolerance = 1e-3 if exact else 1.001
        assert (crops[:, 0] - x[:, None, :]).abs().max() < tolerance
        assert (crops[:, 1] - y[:, :, None]).abs().max() < tolerance


@pytest.mark.parametrize("reference_flip_probability", [0.0, 1.0])
def test_a_patch_and_the_patch_at_its_position_show_the_same_place(reference_flip_probability):
    views = LOCAViews(
        **{**SMALL, "reference_scale": (0.1, 0.6)},
        reference_flip_probability=reference_flip_probability,
        exact_resize=True,
        **LEVEL,
    )
    batch = views.collate([views(coordinates(), seed) for seed in range(30)])
    out = views.normalize(batch)
    patches = out["reference_pixel_values"][:, :2].unflatten(2, (8, 8)).unflatten(4, (8, 8))  # (B, 2, 8, 8p, 8, 8p)
    low, high = patches.amin((3, 5)).flatten(2), patches.amax((3, 5)).flatten(2)  # (B, 2, 64)
    sides = batch["crop_boxes"][:, 0, 2:] - batch["crop_boxes"][:, 0, :2]
    # Half a pixel of the reference, whose pixels hold the place of their centres, and a source pixel for the rounding.
    slack = (sides / 64 / 2 + 1.01)[:, :, None]  # (B, 2, 1)
    found = missed = 0
    queries = [(out["random_query_pixel_values"], out["random_query_positions"])]
    queries += zip(out["focal_query_pixel_values"].unbind(1), out["focal_query_positions"].unbind(1), strict=True)
    for (crops, positions), flips in zip(queries, batch["flips"][:, 1:].unbind(1), strict=True):
        grid = crops.shape[-1] // 8
        tiles = crops[:, :2].unflatten(2, (grid, 8)).unflatten(4, (grid, 8))
        # The pixel that decides is right below the middle of its patch, in a mirrored view left below.
        seen = torch.where(flips[:, None, None, None], tiles[:, :, :, 4, :, 3], tiles[:, :, :, 4, :, 4]).flatten(2)
        inside = positions >= 0
        index = positions.clamp_min(0)[:, None].expand(-1, 2, -1)
        fits = (seen >= low.gather(2, index) - slack) & (seen <= high.gather(2, index) + slack)
        assert fits.all(1)[inside].all()
        # Tight enough to tell: the neighbouring patch does not fit as well as a rule.
        beside = (positions + 1).clamp(0, 63)[:, None].expand(-1, 2, -1)
        wrong = (seen >= low.gather(2, beside) - slack) & (seen <= high.gather(2, beside) + slack)
        assert wrong.all(1)[inside].float().mean() < 0.6
        border = torch.stack([low.amin(2), high.amax(2)], dim=2)[:, :, :, None]  # (B, 2, 2, 1)
        outside = ((seen < border[:, :, 0] + slack) | (seen > border[:, :, 1] - slack)).any(1)
        assert outside[~inside].all()
        found, missed = found + int(inside.sum()), missed + int((~inside).sum())
    assert found > 1000
    assert missed > 500


# ----------------------------------------------------------------------------------------------------- determinism


FINGERPRINT = (
    "import hashlib\n"
    "def fingerprint(sample):\n"
    "    return hashlib.sha256(b''.join(value.numpy().tobytes() for value in sample.values())).hexdigest()\n"
)


def test_image_and_seed_alone_decide(photo, tmp_path):
    views = LOCAViews(**SMALL)
    first = views(photo, 5)
    torch.manual_seed(1)
    second = LOCAViews(**SMALL).views(photo.copy(), 5)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["crop_boxes"], views(photo, 6)["crop_boxes"])
    program = (
        f"{FINGERPRINT}"
        "import numpy as np; from hf_geossl.views.loca import LOCAViews\n"
        "image = (np.arange(240 * 320 * 3) ** 2 // 1000 % 256).astype(np.uint8).reshape(240, 320, 3)\n"
        f"print(fingerprint(LOCAViews(**{SMALL})(image, 5)))"
    )
    out = forked.run(program, output=tmp_path / "output.txt")
    names: dict = {}
    exec(FINGERPRINT, names)
    image = (np.arange(240 * 320 * 3) ** 2 // 1000 % 256).astype(np.uint8).reshape(240, 320, 3)
    assert out.strip() == names["fingerprint"](views(image, 5))


def test_without_a_seed_torchs_generator_decides(photo):
    views = LOCAViews(**SMALL)
    torch.manual_seed(7)
    first, other = views(photo), views(photo)
    torch.manual_seed(7)
    assert torch.equal(views(photo)["crop_boxes"], first["crop_boxes"])
    assert not torch.equal(first["crop_boxes"], other["crop_boxes"])


# --------------------------------------------------------------------------------------------------------- augment


def test_views_hold_the_crops_and_the_common_record(photo):
    for exact in (False, True):
        sample = LOCAViews(exact_resize=exact)(photo, 0)
        kind = torch.float32 if exact else torch.uint8
        assert {key: (tuple(value.shape), value.dtype) for key, value in sample.items()} == {
            "reference_crop": ((3, 224, 224), kind),
            "random_query_crop": ((3, 224, 224), kind),
            "focal_query_crops": ((9, 3, 96, 96), kind),
            "crop_boxes": ((11, 4), torch.float32),
            "flips": ((11,), torch.bool),
            "quarter_turns": ((11,), torch.int64),
        }
        assert not sample["quarter_turns"].any()


@pytest.mark.parametrize("settings", [{}, {"exact_resize": True, "blur": "intended"}])
def test_augment_gives_what_forward_takes_and_depends_on_the_generator_alone(photo, settings):
    views = LOCAViews(**SMALL, **settings)
    batch = make_batch(photo, views)
    before = {key: value.clone() for key, value in batch.items()}
    out = views.augment(batch, torch.Generator().manual_seed(2))
    assert {key: (tuple(value.shape), value.dtype) for key, value in out.items()} == {
        "reference_pixel_values": ((4, 3, 64, 64), torch.float32),
        "random_query_pixel_values": ((4, 3, 64, 64), torch.float32),
        "focal_query_pixel_values": ((4, 3, 3, 32, 32), torch.float32),
        "random_query_positions": ((4, 64), torch.int64),
        "focal_query_positions": ((4, 3, 16), torch.int64),
    }
    assert out.keys() <= inspect.signature(LOCAForPreTraining.forward).parameters.keys()
    assert all(torch.equal(batch[key], before[key]) for key in before)
    torch.manual_seed(99)
    with torch.autocast("cpu", torch.bfloat16):
        again = views.augment(batch, torch.Generator().manual_seed(2))
    assert all(torch.equal(out[key], again[key]) for key in out)
    other = views.augment(batch, torch.Generator().manual_seed(3))
    for key in ("reference_pixel_values", "random_query_pixel_values", "focal_query_pixel_values"):
        assert not torch.equal(out[key], other[key])


@pytest.mark.parametrize("settings", [{}, {"blur": "intended", "solarize_probability": 1.0}])
def test_augment_works_on_the_device_of_the_batch(photo, settings, monkeypatch):
    # Tensors on "meta" refuse to meet those of a CPU, and to tell their values: no host waits for them.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    views = LOCAViews(**SMALL, **settings)
    batch = {key: value.to("meta") for key, value in make_batch(photo, views).items()}
    for out in (views.augment(batch, torch.Generator().manual_seed(0)), views.normalize(batch)):
        assert {value.device.type for value in out.values()} == {"meta"}
        assert out["focal_query_pixel_values"].shape == (4, 3, 3, 32, 32)


@pytest.mark.parametrize("exact_resize", [False, True])
def test_augment_without_colour_change_is_normalize(photo, exact_resize):
    views = LOCAViews(**SMALL, **PLAIN, exact_resize=exact_resize)
    batch = make_batch(photo, views)
    augmented, normalized = views.augment(batch), views.normalize(batch)
    for key in normalized:
        torch.testing.assert_close(augmented[key], normalized[key], atol=1e-5, rtol=0)


def test_brightness_adds_and_contrast_keeps_the_mean_of_each_channel():
    rng = np.random.default_rng(0)
    image = rng.integers((100, 115, 130), (115, 130, 145), (90, 120, 3)).astype(np.uint8)  # nothing clips
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, **PLAIN, "color_jitter_probability": 1.0}
    common = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    brighter = LOCAViews(**SMALL, **{**off, "brightness": 0.3}, **common)
    steeper = LOCAViews(**SMALL, **{**off, "contrast": 0.4}, **common)
    batch = make_batch(image, brighter, 30)
    plain, key = brighter.normalize(batch), "reference_pixel_values"
    added = (brighter.augment(batch, torch.Generator().manual_seed(0))[key] - plain[key]).flatten(1)
    assert added.std(1).max() < 1e-5
    assert added[:, 0].min() < -0.2
    assert added[:, 0].max() > 0.2
    spread = steeper.augment(batch, torch.Generator().manual_seed(0))[key].flatten(2)
    torch.testing.assert_close(spread.mean(2), plain[key].flatten(2).mean(2), atol=1e-5, rtol=0)
    factors = spread.std(2) / plain[key].flatten(2).std(2)  # (B, 3)
    assert (factors - factors[:, :1]).abs().max() < 1e-3
    assert factors.min() < 0.7
    assert factors.max() > 1.3


def changed(augmented, normalized):
    """Which views differ, `(views,)`."""
    return ((augmented - normalized).abs() > 1e-4).flatten(-3).any(-1).flatten()


def test_only_random_queries_are_solarised(photo):
    views = LOCAViews(**SMALL, **{**PLAIN, "solarize_probability": 0.5}, mean=(0, 0, 0), std=(1, 1, 1))
    batch = make_batch(photo, views, 40)
    out, plain = views.augment(batch, torch.Generator().manual_seed(0)), views.normalize(batch)
    for key in ("reference_pixel_values", "focal_query_pixel_values"):
        assert not changed(out[key], plain[key]).any()
    key = "random_query_pixel_values"
    chosen = changed(out[key], plain[key])
    assert 10 < chosen.sum() < 30
    expected = torch.where(plain[key] >= 0.5, 1 - plain[key], plain[key])
    torch.testing.assert_close(out[key][chosen], expected[chosen], atol=1e-5, rtol=0)


def test_blur_is_off_as_shipped_and_otherwise_as_it_was_meant(photo):
    off, meant = (LOCAViews(**SMALL, **PLAIN, blur=blur, blur_sigma=(1.0, 2.0)) for blur in ("off", "intended"))
    batch = make_batch(photo, off, 100)
    plain, blurred = off.normalize(batch), meant.augment(batch, torch.Generator().manual_seed(0))
    unblurred = off.augment(batch, torch.Generator().manual_seed(0))
    for key, low, high in (
        ("reference_pixel_values", 1.0, 1.0),
        ("focal_query_pixel_values", 0.4, 0.6),
        ("random_query_pixel_values", 0.02, 0.2),
    ):
        assert not changed(unblurred[key], plain[key]).any()
        assert low <= changed(blurred[key], plain[key]).float().mean() <= high
    assert {recipe.blur_radius for recipe in meant.color.recipes()} == {11}


def test_settings_of_one_kind_leave_the_draws_of_the_others(photo):
    plain, solarized = LOCAViews(**SMALL, solarize_probability=0.0), LOCAViews(**SMALL, solarize_probability=1.0)
    batch = make_batch(photo, plain)
    a, b = (views.augment(batch, torch.Generator().manual_seed(0)) for views in (plain, solarized))
    assert torch.equal(a["reference_pixel_values"], b["reference_pixel_values"])
    assert torch.equal(a["focal_query_pixel_values"], b["focal_query_pixel_values"])
    assert not torch.equal(a["random_query_pixel_values"], b["random_query_pixel_values"])


def test_no_focal_queries_give_none(photo):
    views = LOCAViews(**{**SMALL, "num_focal": 0})
    batch = make_batch(photo, views)
    assert batch["focal_query_crops"].shape == (4, 0, 3, 32, 32)
    for out in (views.augment(batch), views.normalize(batch)):
        assert out["focal_query_pixel_values"] is None
        assert out["focal_query_positions"] is None
        assert out["random_query_positions"].shape == (4, 64)


def test_main_crops_stand_for_the_images(photo):
    rounded, exact = LOCAViews(**SMALL), LOCAViews(**SMALL, exact_resize=True)
    batch = make_batch(photo, rounded)
    assert torch.equal(rounded.main_crops(batch), batch["reference_crop"])
    crops = exact.main_crops(make_batch(photo, exact))
    assert crops.dtype == torch.uint8
    assert (crops.int() - batch["reference_crop"].int()).abs().max() <= 1
    views = GTSAViews(global_size=32, local_size=16)
    batch = make_batch(photo, views)
    assert torch.equal(views.main_crops(batch), batch["global_crops"][:, 0])
    assert rounded.global_size == 64


# -------------------------------------------------------------------------------------------------------- settings

FLAT = {
    "reference_size": (224, 192),
    "focal_size": (96, 64),
    "num_focal": (9, 8),
    "patch_size": (16, 8),
    "reference_scale": ((0.32, 1.0), (0.325, 1.0)),
    "focal_scale": ((0.05, 0.32), (0.05, 0.325)),
    "aspect_ratio": ((0.75, 1.33), (0.75, 1.34)),
    "reference_flip_probability": (0.0, 0.01),
    "query_flip_probability": (0.5, 0.505),
    "exact_resize": (False, True),
    "brightness": (0.4, 0.41),
    "contrast": (0.4, 0.41),
    "saturation": (0.2, 0.21),
    "hue": (0.1, 0.11),
    "color_jitter_probability": (0.8, 0.81),
    "grayscale_probability": (0.2, 0.21),
    "blur_sigma": ((0.1, 2.0), (0.2, 2.0)),
    "solarize_probability": (0.2, 0.21),
    "blur": ("off", "intended"),
    "reconstruction": (None, "se2"),
    "num_intermediate": (2, 3),
    "mean": ((0.485, 0.456, 0.406), (0.5, 0.456, 0.406)),
    "std": ((0.229, 0.224, 0.225), (0.25, 0.224, 0.225)),
    **IMAGE_SETTINGS,
}


def test_every_setting_has_its_default_and_makes_other_views():
    flat = LOCAViews.flat_settings()
    assert {name: entry.default for name, entry in flat.items()} == {name: first for name, (first, _) in FLAT.items()}
    assert list(flat)[:7] == list(FLAT)[:7]  # the order of positional values
    dictionaries = [dataclasses.asdict(LOCAViews(**{name: other})) for name, (_, other) in FLAT.items()]
    for position, dictionary in enumerate([dataclasses.asdict(LOCAViews()), *dictionaries]):
        assert dictionary not in dictionaries[position:]
    views = LOCAViews(**{name: other for name, (_, other) in FLAT.items()})
    assert all(getattr(views, name) == other for name, (_, other) in FLAT.items())


def test_a_card_can_say_what_the_views_were():
    unsaid = {"blur_sigma", "num_intermediate", *CHANNELS}  # nothing is blurred or reconstructed, and colours are
    lines = [LOCAViews().describe()]
    lines += [LOCAViews(**{name: other}).describe() for name, (_, other) in FLAT.items() if name not in unsaid]
    lines.append(LOCAViews(blur="intended", blur_sigma=(0.2, 2.0)).describe())
    lines.append(LOCAViews(reconstruction="se2", num_intermediate=1).describe())
    assert len(set(lines)) == len(lines)
    assert "\n" not in "".join(lines)
    assert "9 focal queries of 96 x 96 pixels from 5% to 32% of the image" in lines[0]
    assert "no blur" in lines[0]
    assert "blur in 100%/10%/50% (reference/random query/focal, sigma 0.2 to 2)" in lines[-2]
    assert "focal" not in LOCAViews(num_focal=0).describe()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reference_size": 100}, "reference_size must be a multiple of patch_size = 16 pixels, got 100"),
        ({"focal_size": 0}, "focal_size must be a multiple"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"num_focal": -1}, "num_focal must be 0 or more"),
        ({"reference_scale": (0.5, 1.2)}, "reference_scale must be"),
        ({"focal_scale": (0.0, 0.3)}, "focal_scale must be"),
        ({"aspect_ratio": (2.0, 1.0)}, "aspect_ratio must be"),
        ({"reference_flip_probability": 1.5}, "reference_flip_probability must lie in"),
        ({"query_flip_probability": -0.5}, "query_flip_probability must lie in"),
        ({"blur": "on"}, "blur must be 'off' or 'intended', got 'on'"),
        ({"blur": True}, "blur must be 'off'"),
        ({"std": (0.2, 0.0, 0.2)}, "mean and std must hold 3 numbers"),
        ({"hue": 0.7}, "hue must lie in"),
        ({"solarize_probability": 2.0}, "solarize_probability must lie in"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma must be"),
        ({"brightness": -0.1}, "brightness must be"),
    ],
)
def test_wrong_settings_name_the_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        LOCAViews(**wrong)


def test_unrounded_channels_are_the_floating_point_of_rounded_ones():
    channels = tuple(range(1, 6))
    kind = {"channels": channels, "mean": (0.4,) * 5, "std": (0.2,) * 5, "reference_size": 32, "focal_size": 16}
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 5), dtype=np.uint8)
    exact, rounded = (LOCAViews(**kind, exact_resize=exact) for exact in (True, False))
    batches = [views.collate([views(image, seed=3)]) for views in (exact, rounded)]
    assert batches[0]["reference_crop"].dtype == torch.float32
    assert (batches[0]["reference_crop"] - batches[1]["reference_crop"]).abs().max() <= 1
    assert exact.main_crops(batches[0]).dtype == torch.uint8
    first, second = (
        views.augment(batch, torch.Generator().manual_seed(0))
        for views, batch in zip((exact, rounded), batches, strict=True)
    )
    for name in ("reference_pixel_values", "random_query_pixel_values", "focal_query_pixel_values"):
        assert first[name].shape == second[name].shape
        assert (first[name] - second[name]).abs().max() < 0.1  # half a grey level is 0.01 deviations, before contrast
    units = LOCAViews(**kind, dtype="uint16", exact_resize=True)
    batch = units.collate([units(image.astype(np.uint16) * 257, seed=3)])
    assert units.main_crops(batch).dtype == torch.float32
    torch.testing.assert_close(
        units.normalize(batch)["reference_pixel_values"], exact.normalize(batches[0])["reference_pixel_values"]
    )
