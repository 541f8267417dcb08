"""LOCA's colours, blur and solarisation against the authors' numbers and against formulas written out."""

import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_geossl.views import photometric
from hf_geossl.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION, ColorRecipe, draw_color_parameters
from hf_geossl.views.loca import LOCAViews
from hf_geossl.views.photometric import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    affine_color,
    exact_color,
    gaussian_blur,
    normalize_,
    render_color,
)
from tests.helpers.golden import golden_folder
from tests.helpers.photographs import photographs

GOLDEN = load_file(golden_folder("photometric.safetensors", "loca") / "photometric.safetensors")
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
OPERATIONS = {
    "brightness": photometric.add_brightness,
    "contrast": photometric.adjust_channel_contrast,
    "saturation": photometric.adjust_hsv_saturation,
    "hue": photometric.adjust_hue,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def loca_recipe(**changes):
    settings = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "blur_probability": 0.0}
    borders = {"blur_border": "zero", "blur_kernel_radius": 11}
    return ColorRecipe(**{**settings, **borders, "operations": "tensorflow", **changes})


def golden(name):
    """(height, width, 3) as the authors keep it -> (1, 3, height, width)."""
    return GOLDEN[name].permute(2, 0, 1)[None].clone()


# --------------------------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize("name", sorted(name for name in GOLDEN if name.split("_")[0] in OPERATIONS))
def test_each_operation_equals_the_authors(name):
    operation, amount = name.split("_")
    ours = OPERATIONS[operation](golden("x"), torch.tensor([float(amount)]))
    torch.testing.assert_close(ours, golden(name), atol=1e-6, rtol=0)


def test_solarisation_and_normalisation_equal_the_authors():
    torch.testing.assert_close(photometric.solarize(golden("x")), golden("solarize"), atol=1e-6, rtol=0)
    ours = normalize_(golden("standardize_in"), **IMAGENET)
    torch.testing.assert_close(ours, golden("standardize_out"), atol=1e-6, rtol=0)


def test_grey_equals_the_authors():
    levels = torch.arange(256, dtype=torch.uint8)
    images = torch.stack([levels, levels.flip(0), levels.roll(90)]).view(1, 3, 16, 16)
    recipe = loca_recipe(color_jitter_probability=0.0, grayscale_probability=1.0)
    ours = exact_color(images, draw_color_parameters(recipe, 1), **UNIT, operations="tensorflow")
    weights = torch.tensor([0.2989, 0.587, 0.114])
    torch.testing.assert_close((golden("x")[0] * weights[:, None, None]).sum(0), golden("grayscale")[0, 0])
    expected = (images[0] / 255 * weights[:, None, None]).sum(0).expand(1, 3, 16, 16)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", ["0.1", "0.7", "2.0"])
def test_blur_with_a_black_border_equals_the_authors(sigma):
    ours = gaussian_blur(golden("x"), torch.tensor([float(sigma)]), 11, border="zero")
    torch.testing.assert_close(ours, golden(f"blur_k22_sigma{sigma}"), atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------------------------------------- chains


def slow_chain(image, parameters, view):
    """The colour chain of one view (`(height, width, 3)`, in [0, 1], float64), pixel by pixel with Python's colorsys."""
    amounts = {name: float(getattr(parameters, name)[view]) for name in OPERATIONS}
    if parameters.jitter[view]:
        for code in parameters.order[view].tolist():
            if code == BRIGHTNESS:
                image = image + amounts["brightness"]
            elif code == CONTRAST:
                mean = image.mean((0, 1))
                image = mean + amounts["contrast"] * (image - mean)
            else:
                pixels = []
                for red, green, blue in image.reshape(-1, 3):
                    h, s, v = colorsys.rgb_to_hsv(red, green, blue)
                    if code == SATURATION:
                        s = min(1.0, s * amounts["saturation"])
                    if code == HUE:
                        h = (h + amounts["hue"]) % 1.0
                    pixels.append(colorsys.hsv_to_rgb(h, s, v))
                image = np.reshape(pixels, image.shape)
            image = image.clip(0, 1)
    if parameters.grayscale[view]:
        image = np.repeat((image @ [0.2989, 0.587, 0.114])[..., None], 3, axis=-1)
    if parameters.solarize[view]:
        image = np.where(image >= 0.5, 1 - image, image)
    return image


def test_exact_rendering_equals_the_chain_written_out_in_every_order():
    images = torch.randint(0, 256, (120, 3, 5, 6), dtype=torch.uint8, generator=generator())
    images[0] = images[0, :1]  # grey: no hue
    images[1] = 0
    recipe = loca_recipe(solarize_probability=0.3)
    parameters = draw_color_parameters(recipe, 120, generator(1))
    assert len(parameters.order[parameters.jitter].unique(dim=0)) == 24
    ours = render_color(images, parameters, recipe=recipe, exact=True, **IMAGENET)
    for view, image in enumerate(images):
        expected = slow_chain(image.permute(1, 2, 0).numpy() / 255.0, parameters, view)
        expected = torch.from_numpy((expected - IMAGENET_MEAN) / IMAGENET_STD).float().permute(2, 0, 1)
        torch.testing.assert_close(ours[view], expected, atol=2e-5, rtol=0)


def test_affine_chain_is_exact_where_nothing_clips_and_one_channel_is_the_largest():
    gray = torch.randint(110, 140, (96, 1, 24, 24), generator=generator())
    tint = torch.randint(0, 2, (96, 3, 24, 24), generator=generator())
    order = torch.rand(96, 3, generator=generator()).argsort(dim=1)[..., None, None]
    images = (gray + tint + 10 * order).byte()  # hue differs from view to view, not much within one
    assert len(images.float().mean((2, 3)).argmax(dim=1).unique()) == 3
    for hue, tolerance in ((0.0, 1e-5), (0.1, 6e-3)):
        recipe = loca_recipe(brightness=0.2, hue=hue, grayscale_probability=0.3)
        parameters = draw_color_parameters(recipe, 96, generator(1))
        affine = affine_color(images, parameters, **IMAGENET, operations="tensorflow")
        exact = exact_color(images, parameters, **IMAGENET, operations="tensorflow")
        torch.testing.assert_close(affine, exact, atol=tolerance / min(IMAGENET_STD), rtol=0)


def test_affine_colours_of_photographs_have_the_statistics_of_exact_ones():
    settings = {"reference_size": 96, "patch_size": 8, "num_focal": 2, "focal_size": 48}
    views, photos = LOCAViews(**settings), photographs()
    batch = views.collate([views(photos[seed % len(photos)], seed) for seed in range(150)])
    for crops in (batch["reference_crop"], batch["focal_query_crops"].flatten(0, 1)):
        parameters = draw_color_parameters(loca_recipe(), len(crops), generator(1))
        affine = affine_color(crops, parameters, **UNIT, operations="tensorflow")
        exact = exact_color(crops, parameters, **UNIT, operations="tensorflow")
        change = (exact - crops / 255).abs().mean()
        assert change > 0.13
        assert (affine - exact).abs().mean() < 0.08 * change
        assert (affine - exact).abs().mean((1, 2, 3)).max() < 0.07  # no view goes astray
        assert (affine.mean((0, 2, 3)) - exact.mean((0, 2, 3))).abs().max() < 0.007
        assert (affine.std((0, 2, 3)) / exact.std((0, 2, 3)) - 1).abs().max() < 0.03
        assert abs(affine.std((2, 3)).mean() / exact.std((2, 3)).mean() - 1) < 0.03  # contrast within a view
        assert affine.min() >= 0
        assert affine.max() <= 1


@pytest.mark.parametrize("exact", [False, True])
def test_grey_images_and_single_pixels_stay_finite_and_grey(exact):
    images = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    recipe = loca_recipe(color_jitter_probability=1.0)
    out = render_color(images, draw_color_parameters(recipe, 4, generator()), **UNIT, recipe=recipe, exact=exact)
    assert torch.isfinite(out).all()
    assert (out - out.mean(1, keepdim=True)).abs().max() < 1e-3  # grey weights sum to 0.9999


# -------------------------------------------------------------------------------------------- blur and solarisation


@pytest.mark.parametrize("exact", [False, True])
def test_chosen_views_are_blurred_against_black_and_then_solarised(exact):
    photo = torch.from_numpy(np.array(photographs()[2].resize((40, 32)))).permute(2, 0, 1)
    images = photo.expand(16, 3, 32, 40).contiguous()
    recipe = loca_recipe(
        blur_probability=0.5, blur_sigma=(1.0, 2.0), solarize_probability=0.5, color_jitter_probability=0.0
    )
    parameters = draw_color_parameters(recipe, 16, generator(2))
    assert len(torch.stack([parameters.blur, parameters.solarize]).unique(dim=1).T) == 4  # all four combinations
    ours = render_color(images, parameters, recipe=recipe, exact=exact, **IMAGENET)
    for view in range(16):
        expected = photo / 255
        if parameters.grayscale[view]:
            expected = (expected * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0).expand(3, 32, 40)
        if parameters.blur[view]:
            kernel = torch.exp(-0.5 * (torch.arange(-11, 12) / parameters.blur_sigma[view]) ** 2)
            kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
            expected = F.conv2d(expected[:, None], kernel[None, None], padding=11)[:, 0]
        if parameters.solarize[view]:
            expected = torch.where(expected >= 0.5, 1 - expected, expected)
        expected = normalize_(expected.clone(), **IMAGENET)
        torch.testing.assert_close(ours[view], expected, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------------ draws


def test_draws_follow_the_recipe():
    drawn = draw_color_parameters(loca_recipe(solarize_probability=0.25), 20000, generator())
    for values, low, high in (
        (drawn.brightness, -0.4, 0.4),
        (drawn.contrast, 0.6, 1.4),
        (drawn.saturation, 0.8, 1.2),
        (drawn.hue, -0.1, 0.1),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.01 * (high - low)
    assert abs(drawn.solarize.float().mean() - 0.25) < 0.01
    both = (drawn.solarize & drawn.jitter).float().mean()
    assert abs(both - 0.25 * 0.8) < 0.01  # independent of each other


def test_solarisation_takes_one_number_a_view_after_all_others():
    states, drawn = [generator(3), generator(3), generator(3)], []
    for state, probability in zip(states, (0.0, 0.2, 0.9), strict=True):
        drawn.append(draw_color_parameters(loca_recipe(solarize_probability=probability), 5, state))
    assert torch.equal(drawn[0].brightness, drawn[2].brightness)
    assert torch.equal(drawn[0].order, drawn[2].order)
    assert torch.equal(states[1].get_state(), states[2].get_state())
    torch.rand(5, generator=states[0])
    assert torch.equal(states[0].get_state(), states[1].get_state())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"operations": "pillow"}, "operations must be 'torchvision' or 'tensorflow', got 'pillow'"),
        ({"blur_border": "reflect"}, "blur_border must be 'replicate' or 'zero', got 'reflect'"),
        ({"blur_kernel_radius": -1}, "blur_kernel_radius must be 0 or more"),
        ({"solarize_probability": 1.1}, "solarize_probability must lie in"),
    ],
)
def test_a_wrong_recipe_names_the_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        loca_recipe(**wrong)


@pytest.mark.parametrize("exact", [False, True])
def test_float_crops_are_taken_when_asked_for_and_left_as_they_are(exact):
    crops = torch.randint(0, 256, (4, 3, 16, 16), generator=generator()).float()
    before, recipe = crops.clone(), loca_recipe()
    for parameters in (None, draw_color_parameters(recipe, 4, generator())):
        common = {"recipe": recipe, "exact": exact, **IMAGENET}
        ours = render_color(crops, parameters, unrounded=True, **common)
        assert torch.equal(ours, render_color(crops.byte(), parameters, **common))
        assert torch.equal(crops, before)
        with pytest.raises(TypeError, match="uint8"):
            render_color(crops, parameters, **common)
        with pytest.raises(TypeError, match="float32"):
            render_color(crops.byte(), parameters, unrounded=True, **common)
