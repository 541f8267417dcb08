"""EquiCoherent views: crops, flips and colours of each host, the path, masks, and equal draws across arms."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from hf_geossl.views.crops import draw_crop, make_random
from hf_geossl.views.equicoherent import EquiCoherentColor, EquiCoherentViews
from hf_geossl.views.masks import draw_block_masks
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hf_geossl.views.transformation_path import TRANSFORMATIONS
from tests.helpers.image_settings import CHANNELS, IMAGE_SETTINGS
from tests.helpers.photographs import photographs

SMALL = {"global_size": 64, "local_size": 32, "patch_size": 16}
PLAIN = {
    "color_jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "blur_probability": (0.0, 0.0, 0.0),
    "solarize_probability": 0.0,
}
LEVEL = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # normalised values are grey levels
# from the spec of the hosts: local views, global and local scale, jitter, blur of the three kinds, solarisation
HOST_NUMBERS = {
    "ibot": (10, (0.25, 1.0), (0.05, 0.25), (0.4, 0.4, 0.2, 0.1), (1.0, 0.1, 0.5), 0.2),
    "dinov2": (8, (0.32, 1.0), (0.05, 0.32), (0.4, 0.4, 0.2, 0.1), (1.0, 0.1, 0.5), 0.2),
    "dino": (8, (0.4, 1.0), (0.05, 0.4), (0.4, 0.4, 0.2, 0.1), (1.0, 0.1, 0.5), 0.2),
    "vicreg": (0, (0.08, 1.0), None, (0.4, 0.4, 0.2, 0.1), (1.0, 0.1, 0.5), 0.2),
    "simclr": (0, (0.08, 1.0), None, (0.8, 0.8, 0.8, 0.2), (0.5, 0.5, 0.5), 0.0),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photo():
    return photographs()[2].resize((320, 240))


def make_batch(photo, views, count=4):
    return views.collate([views(photo, seed) for seed in range(count)])


# ----------------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("host", HOST_NUMBERS)
def test_every_host_has_its_own_views(photo, host):
    num_local, global_scale, local_scale, jitter, blur, solarize = HOST_NUMBERS[host]
    views = EquiCoherentViews(host)
    sample = views(photo, 0)
    assert {key: (tuple(value.shape), value.dtype) for key, value in sample.items()} == {
        "global_crops": ((2, 3, 224, 224), torch.uint8),
        "local_crops": ((num_local, 3, 96, 96), torch.uint8),
        "crop_boxes": ((2 + num_local, 4), torch.float32),
        "flips": ((2 + num_local,), torch.bool),
        "quarter_turns": ((2 + num_local,), torch.int64),
    }
    assert not sample["quarter_turns"].any()
    rng = make_random(0)
    scales = [global_scale] * 2 + [local_scale] * num_local
    expected = [draw_crop(rng, 320, 240, scale, (3 / 4, 4 / 3)) for scale in scales]
    assert sample["crop_boxes"].tolist() == [list(map(float, box)) for box in expected]
    for recipe, blurred, solarized in zip(views.color.recipes(), blur, (0.0, solarize, 0.0), strict=True):
        assert (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue) == jitter
        assert (recipe.color_jitter_probability, recipe.grayscale_probability) == (0.8, 0.2)
        assert (recipe.blur_probability, recipe.blur_sigma) == (blurred, (0.1, 2.0))
        assert recipe.solarize_probability == solarized


def coordinates(width=250, height=200):
    """An image whose red, green and blue are a pixel's x, y and x."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([x, y, x], axis=-1)


@pytest.mark.parametrize("exact", [False, True])
def test_every_pixel_shows_the_place_that_box_and_flip_say(exact):
    views = EquiCoherentViews(**SMALL, num_local=3, global_scale=(0.3, 1.0), exact_resize=exact, **LEVEL)
    batch = views.collate([views(coordinates(), seed) for seed in range(12)])
    out = views.normalize(batch)
    assert 0.2 < batch["flips"].float().mean() < 0.8
    images = [*out["global_pixel_values"].unbind(1), *out["local_pixel_values"].unbind(1)]
    for v, crops in enumerate(images):
        centre = (torch.arange(crops.shape[-1]) + 0.5) / crops.shape[-1]
        x1, y1, x2, y2 = batch["crop_boxes"][:, v, :, None].unbind(1)  # (B, 1)
        x = x1 + torch.where(batch["flips"][:, v, None], 1 - centre, centre) * (x2 - x1) - 0.5
        y = y1 + centre * (y2 - y1) - 0.5
        # the antialiased filter is cut at the borders of the crop, where it averages to one side
        inner = slice(2, -2)
        assert (crops[:, 0] - x[:, None, :])[:, :, inner].abs().max() < 1.01
        assert (crops[:, 1] - y[:, :, None])[:, inner].abs().max() < 1.01


def test_views_are_mirrored_half_of_the_time():
    image = np.zeros((8, 8, 3), np.uint8)
    small = {**SMALL, "num_local": 2}
    flips = torch.stack([EquiCoherentViews(**small)(image, seed)["flips"] for seed in range(600)])
    assert (flips.float().mean(0) - 0.5).abs().max() < 0.07
    assert (torch.corrcoef(flips.T.float()) - torch.eye(4)).abs().max() < 0.17  # a coin each
    assert not EquiCoherentViews(**small, flip_probability=0.0)(image, 0)["flips"].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 200), (1, 3000), (13, 11)])
def test_images_of_any_size_give_crops_inside_them(size):
    width, height = size
    views = EquiCoherentViews(**SMALL)
    for seed in range(3):
        boxes = views(np.zeros((height, width, 3), np.uint8), seed)["crop_boxes"]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()


def test_image_and_seed_alone_decide(photo):
    views = EquiCoherentViews(**SMALL)
    first = views(photo, 5)
    torch.manual_seed(1)
    second = EquiCoherentViews(**SMALL, transformation="color").views(photo.copy(), 5)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["crop_boxes"], views(photo, 6)["crop_boxes"])


def test_main_crops_are_the_first_global_crops(photo):
    views = EquiCoherentViews(**SMALL)
    batch = make_batch(photo, views)
    assert torch.equal(views.main_crops(batch), batch["global_crops"][:, 0])


# --------------------------------------------------------------------------------------------------------- augment


def arms():
    return [None, *TRANSFORMATIONS]


@pytest.mark.parametrize("host", HOST_NUMBERS)
def test_views_and_masks_are_equal_bit_for_bit_whatever_the_transformation(photo, host):
    batch = make_batch(photo, EquiCoherentViews(host, **SMALL), 5)
    found = {}
    for arm in arms():
        for num_intermediate in (0, 2):
            views = EquiCoherentViews(host, arm, num_intermediate, **SMALL)
            found[arm, num_intermediate] = views.render_path(batch, generator(2))
    base = found[None, 2]
    assert torch.equal(base["global_pixel_values"][:, 1], base["source_pixel_values"])
    for (arm, num_intermediate), out in found.items():
        assert torch.equal(out["global_pixel_values"][:, 0], base["global_pixel_values"][:, 0])
        assert torch.equal(out["source_pixel_values"], base["source_pixel_values"])
        for key in ("local_pixel_values", "bool_masked_pos"):
            assert out[key] is base[key] or torch.equal(out[key], base[key])
        assert torch.equal(out["global_pixel_values"][:, 1], found[arm, 0]["global_pixel_values"][:, 1])
        if arm is not None:
            changed = (out["global_pixel_values"][:, 1] - base["source_pixel_values"]).flatten(1).abs().amax(1)
            assert (changed > 0.02).sum() >= 3  # a blur or a change of colour may be slight
        assert (out["intermediate_pixel_values"] is None) == (arm is None or num_intermediate == 0)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflection"])
def test_the_second_view_and_the_points_are_torchvisions_affine_of_the_source(photo, padding_mode):
    views = EquiCoherentViews("simclr", "se2", 2, **SMALL, padding_mode=padding_mode)
    batch = make_batch(photo, views, 6)
    out = views.render_path(batch, generator(7))
    # everything before the path: 12 numbers for each of the two global views, none for masks
    source = generator(7)
    torch.rand(6, 12, generator=source)
    torch.rand(6, 12, generator=source)
    parameters = views.path.draw(6, source)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    points = [*out["intermediate_pixel_values"].unbind(1), out["global_pixel_values"][:, 1]]
    for k, point in enumerate(points, start=1):
        for row in range(6):
            image = out["source_pixel_values"][row] * std + mean
            margin = 0
            if padding_mode == "reflection":
                margin = 64
                image = torch.cat([image.flip(1), image, image.flip(1)], dim=1)
                image = torch.cat([image.flip(2), image, image.flip(2)], dim=2)
            expected = tv.affine(
                image,
                angle=(parameters.angles[row] * k / 3).rad2deg().item(),
                translate=(parameters.translations[row] * 64 * k / 3).tolist(),
                scale=1.0,
                shear=[0.0, 0.0],
                interpolation=InterpolationMode.BILINEAR,
            )[:, margin : margin + 64, margin : margin + 64]
            torch.testing.assert_close(point[row] * std + mean, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("host", ["ibot", "dinov2"])
def test_masks_are_the_hosts_over_both_global_views(photo, host):
    views = EquiCoherentViews(host, **{**SMALL, "patch_size": 8}, num_local=0)
    batch = make_batch(photo, views, 9)
    masks = views.augment(batch, generator(1))["bool_masked_pos"]
    source = generator(1)
    torch.rand(9, 12, generator=source)
    torch.rand(9, 12, generator=source)
    torch.rand(9, generator=source)  # solarisation of the second view
    assert torch.equal(masks, draw_block_masks(host, 18, 8, 8, source).view(9, 2, 64))
    if host == "dinov2":
        assert masks.any(2).sum() == 9
    assert masks.any()
    assert not masks.all(2).any()


@pytest.mark.parametrize("host", HOST_NUMBERS)
def test_augment_gives_what_forward_takes_and_depends_on_the_generator_alone(photo, host):
    views = EquiCoherentViews(host, **SMALL)
    batch = make_batch(photo, views)
    before = {key: value.clone() for key, value in batch.items()}
    out = views.augment(batch, generator(2))
    num_local, masked = HOST_NUMBERS[host][0], host in ("ibot", "dinov2")
    assert {key: value if value is None else (tuple(value.shape), value.dtype) for key, value in out.items()} == {
        "global_pixel_values": ((4, 2, 3, 64, 64), torch.float32),
        "local_pixel_values": ((4, num_local, 3, 32, 32), torch.float32) if num_local else None,
        "intermediate_pixel_values": ((4, 2, 3, 64, 64), torch.float32),
        "bool_masked_pos": ((4, 2, 16), torch.bool) if masked else None,
        "masked_patches": (tuple(out["masked_patches"].shape), torch.int64) if masked else None,
    }
    if masked:
        assert torch.equal(out["masked_patches"], out["bool_masked_pos"].flatten().nonzero().flatten())
    assert all(torch.equal(batch[key], before[key]) for key in before)
    torch.manual_seed(99)
    with torch.autocast("cpu", torch.bfloat16):
        again = views.augment(batch, generator(2))
    other = views.augment(batch, generator(3))
    for key, value in out.items():
        if value is not None:
            assert torch.equal(value, again[key])
            assert not torch.equal(value, other[key])


def test_augment_works_on_the_device_of_the_batch(photo, monkeypatch):
    # Tensors on "meta" refuse to meet those of a CPU, and to tell their values: no host waits for them.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    for arm in arms():
        views = EquiCoherentViews(transformation=arm, **SMALL, padding_mode="zeros")
        batch = {key: value.to("meta") for key, value in make_batch(photo, views, 2).items()}
        for out in (views.augment(batch, generator()), views.normalize(batch)):
            assert {value.device.type for value in out.values() if value is not None} == {"meta"}
            assert out["global_pixel_values"].shape == (2, 2, 3, 64, 64)


def test_normalize_shows_the_crops_and_masks_nothing(photo):
    for host in HOST_NUMBERS:
        views = EquiCoherentViews(host, **SMALL)
        batch = make_batch(photo, views, 2)
        out = views.normalize(batch)
        assert out.keys() == views.augment(batch).keys()
        expected = tv.normalize(batch["global_crops"].float().flatten(0, 1) / 255, IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(out["global_pixel_values"].flatten(0, 1), expected, atol=1e-5, rtol=0)
        assert out["intermediate_pixel_values"] is None
        if host in ("ibot", "dinov2"):
            assert out["bool_masked_pos"].shape == (2, 2, 16)
            assert not out["bool_masked_pos"].any()
        else:
            assert out["bool_masked_pos"] is None
        if views.num_local:
            expected = tv.normalize(batch["local_crops"].float().flatten(0, 1) / 255, IMAGENET_MEAN, IMAGENET_STD)
            torch.testing.assert_close(out["local_pixel_values"].flatten(0, 1), expected, atol=1e-5, rtol=0)


def test_augment_without_colour_and_transformation_is_normalize(photo):
    views = EquiCoherentViews(**SMALL, **PLAIN, transformation=None)
    batch = make_batch(photo, views)
    augmented, normalized = views.augment(batch), views.normalize(batch)
    for key in ("global_pixel_values", "local_pixel_values"):
        torch.testing.assert_close(augmented[key], normalized[key], atol=1e-5, rtol=0)


def changed(augmented, normalized):
    """Which views differ, `(views,)`."""
    return ((augmented - normalized).abs() > 1e-4).flatten(-3).any(-1).flatten()


def test_each_kind_of_view_is_blurred_and_solarised_as_often_as_its_host_says(photo):
    common = {**SMALL, "num_local": 2, "transformation": None, "blur_sigma": (1.0, 2.0)}
    blurs = EquiCoherentViews(**common, **{**PLAIN, "blur_probability": None})
    solarizes = EquiCoherentViews(**common, **{**PLAIN, "solarize_probability": None}, mean=(0,) * 3, std=(1,) * 3)
    batch = make_batch(photo, blurs, 150)
    for views, shares in ((blurs, (1.0, 0.1, 0.5)), (solarizes, (0.0, 0.2, 0.0))):
        out, plain = views.augment(batch, generator()), views.normalize(batch)
        kinds = [(*(o["global_pixel_values"][:, i] for o in (out, plain)),) for i in range(2)]
        kinds.append((out["local_pixel_values"], plain["local_pixel_values"]))
        for (ours, before), share in zip(kinds, shares, strict=True):
            found = changed(ours, before).float().mean().item()
            assert found == pytest.approx(share, abs=0.0 if share in (0.0, 1.0) else 0.09)
    chosen = changed(*kinds[1])
    expected = torch.where(kinds[1][1] >= 0.5, 1 - kinds[1][1], kinds[1][1])
    torch.testing.assert_close(kinds[1][0][chosen], expected[chosen], atol=1e-5, rtol=0)


# -------------------------------------------------------------------------------------------------------- settings

FLAT = {
    "host": ("ibot", "dinov2"),
    "transformation": ("se2", "rotation"),
    "num_intermediate": (2, 3),
    "padding_mode": ("reflection", "zeros"),
    "max_rotation": (45.0, 30.0),
    "max_translation": (10 / 224, 0.05),
    "path_brightness": (0.4, 0.5),
    "path_contrast": (0.4, 0.5),
    "path_saturation": (0.1, 0.4),
    "path_hue": (0.1, 0.2),
    "path_blur_sigma": ((0.1, 2.0), (0.1, 3.0)),
    "transformation_probability": (1.0, 0.995),
    "patch_size": (16, 8),
    "global_size": (224, 192),
    "local_size": (96, 64),
    "num_local": (None, 9),
    "global_scale": (None, (0.255, 1.0)),
    "local_scale": (None, (0.05, 0.255)),
    "aspect_ratio": ((3 / 4, 4 / 3), (0.75, 1.34)),
    "flip_probability": (0.5, 0.505),
    "exact_resize": (False, True),
    "brightness": (None, 0.41),
    "contrast": (None, 0.41),
    "saturation": (None, 0.21),
    "hue": (None, 0.11),
    "color_jitter_probability": (0.8, 0.81),
    "grayscale_probability": (0.2, 0.21),
    "blur_sigma": ((0.1, 2.0), (0.2, 2.0)),
    "blur_probability": (None, (1.0, 0.1, 0.4)),
    "solarize_probability": (None, 0.21),
    "mean": ((0.485, 0.456, 0.406), (0.5, 0.456, 0.406)),
    "std": ((0.229, 0.224, 0.225), (0.25, 0.224, 0.225)),
    **IMAGE_SETTINGS,
}
COLORS = ("path_brightness", "path_contrast", "path_saturation", "path_hue")


def test_every_setting_has_its_default_and_makes_other_views():
    flat = EquiCoherentViews.flat_settings()
    assert {name: entry.default for name, entry in flat.items()} == {name: first for name, (first, _) in FLAT.items()}
    assert flat["num_local"].type == int | None
    dictionaries = [dataclasses.asdict(EquiCoherentViews(**{name: other})) for name, (_, other) in FLAT.items()]
    for position, dictionary in enumerate([dataclasses.asdict(EquiCoherentViews()), *dictionaries]):
        assert dictionary not in dictionaries[position:]
    views = EquiCoherentViews(**{name: other for name, (_, other) in FLAT.items()})
    assert all(getattr(views, name) == other for name, (_, other) in FLAT.items())


def test_settings_that_are_none_are_the_hosts_and_given_ones_stay():
    own = EquiCoherentViews("simclr")
    nothing = {name: None for name, (first, _) in FLAT.items() if first is None}
    assert EquiCoherentViews("simclr", **nothing) == own
    assert EquiCoherentViews("simclr", hue=0.3).color == dataclasses.replace(own.color, hue=0.3)
    # a group that is given as a whole is taken as it is
    assert EquiCoherentViews("simclr", crops=own.crops, color=EquiCoherentColor()).color == EquiCoherentColor()
    assert dataclasses.replace(own, transformation=None).color == own.color


def test_a_card_can_say_what_the_views_were():
    lines = [EquiCoherentViews(transformation=arm).describe() for arm in arms()]
    unsaid = {"transformation", "path_blur_sigma", *COLORS, *CHANNELS}  # of other transformations and channels
    lines += [EquiCoherentViews(**{name: other}).describe() for name, (_, other) in FLAT.items() if name not in unsaid]
    lines += [EquiCoherentViews(transformation="color", **{name: FLAT[name][1]}).describe() for name in COLORS]
    lines += [EquiCoherentViews(transformation="blur", path_blur_sigma=(0.1, 3.0)).describe()]
    assert len(set(lines)) == len(lines)
    assert "\n" not in "".join(lines)
    line = EquiCoherentViews().describe()
    assert "views of ibot: 2 global of 224 x 224 pixels from 25% to 100% of the image, 10 local of 96 x 96" in line
    assert "turned by up to 45 degrees and shifted by up to 4.46429% of the side (mirrored outside) in 100%" in line
    assert "local" not in EquiCoherentViews("simclr").describe()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"host": "byol"}, "host must be one of 'ibot', 'dinov2', 'dino', 'vicreg', 'simclr', got 'byol'"),
        ({"transformation": "scale"}, "transformation must be one of"),
        ({"transformation": None, "max_rotation": 200}, "max_rotation must lie in"),
        ({"num_intermediate": -1}, "num_intermediate must be 0 or more"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"global_size": 100}, "global_size must be a multiple of patch_size = 16 pixels, got 100"),
        ({"local_size": 90}, "local_size must be a multiple"),
        ({"num_local": -1}, "num_local must be 0 or more"),
        ({"host": "vicreg", "num_local": 2}, "num_local must be 0 for the host 'vicreg'"),
        ({"global_scale": (0.5, 1.2)}, "global_scale must be"),
        ({"local_scale": (0.0, 0.3)}, "local_scale must be"),
        ({"aspect_ratio": (2.0, 1.0)}, "aspect_ratio must be"),
        ({"flip_probability": 1.5}, "flip_probability must lie in"),
        ({"blur_probability": (0.5, 0.5)}, "blur_probability must hold 3 numbers"),
        ({"blur_probability": (0.5, 0.5, 2.0)}, "blur_probability must lie in"),
        ({"hue": 0.7}, "hue must lie in"),
        ({"path_hue": 0.7}, "path_hue must lie in"),
        ({"std": (0.2, 0.0, 0.2)}, "mean and std must hold 3 numbers"),
    ],
)
def test_wrong_settings_name_the_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        EquiCoherentViews(**wrong)


def test_sizes_of_views_that_are_not_made_do_not_matter():
    assert EquiCoherentViews("vicreg", patch_size=14, local_size=96).num_local == 0
