"""Colour, blur and normalisation against torchvision, Pillow, the numbers of LOCA's authors and formulas written out."""

import colorsys
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as tv

from hf_geossl.views import photometric
from hf_geossl.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION, ColorRecipe, draw_color_parameters
from hf_geossl.views.photometric import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalization,
    adjust_brightness,
    gaussian_blur,
    normalize_,
    render_color,
)
from tests.helpers.golden import golden_folder
from tests.helpers.photographs import photographs

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
NO_BLUR = ColorRecipe(blur_probability=0.0)
JITTER_ONLY = ColorRecipe(color_jitter_probability=1.0, grayscale_probability=0.0, blur_probability=0.0)
TORCHVISION = {
    BRIGHTNESS: ("brightness", tv.adjust_brightness),
    CONTRAST: ("contrast", tv.adjust_contrast),
    SATURATION: ("saturation", tv.adjust_saturation),
    HUE: ("hue", tv.adjust_hue),
}
GOLDEN = load_file(golden_folder("photometric.safetensors", "loca") / "photometric.safetensors")
TENSORFLOW = {
    "brightness": photometric.add_brightness,
    "contrast": photometric.adjust_channel_contrast,
    "saturation": photometric.adjust_hsv_saturation,
    "hue": photometric.adjust_hue,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photo_crops(count, size=48):
    """uint8 (count, 3, size, size) from six photographs."""
    photos = [skimage.data.coffee(), skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.rocket()]
    photos += sklearn.datasets.load_sample_images().images
    rng = np.random.default_rng(0)
    crops = []
    for _ in range(count):
        photo = photos[rng.integers(len(photos))]
        side = rng.integers(100, 300)
        y, x = rng.integers(photo.shape[0] - side), rng.integers(photo.shape[1] - side)
        crop = torch.from_numpy(photo[y : y + side, x : x + side].copy()).permute(2, 0, 1)
        crops.append(tv.resize(crop, [size, size], antialias=True))
    return torch.stack(crops)


def torchvision_chain(images, parameters):
    rendered = []
    for i, image in enumerate(images.float() / 255):
        if parameters.jitter[i]:
            for code in parameters.order[i].tolist():
                name, operation = TORCHVISION[code]
                image = operation(image, getattr(parameters, name)[i].item())
        if parameters.grayscale[i]:
            image = tv.rgb_to_grayscale(image, 3)
        rendered.append(image)
    return torch.stack(rendered)


@pytest.mark.parametrize("code", sorted(TORCHVISION))
def test_each_operation_equals_torchvision(code):
    name, reference = TORCHVISION[code]
    images = torch.rand(12, 3, 20, 28, generator=generator())
    images[0] = images[0, :1]  # grey: no hue
    images[1] = 0.0
    amounts = torch.linspace(-0.5, 0.5, 12) if code == HUE else torch.linspace(0.0, 2.5, 12)
    ours = getattr(photometric, f"adjust_{name}")(images, amounts)
    for image, amount, out in zip(images, amounts, ours, strict=True):
        torch.testing.assert_close(out, reference(image, amount.item()), atol=1e-5, rtol=0)


def test_the_chain_equals_torchvision_in_every_order():
    images = torch.randint(0, 256, (96, 3, 16, 16), dtype=torch.uint8, generator=generator())
    parameters = draw_color_parameters(NO_BLUR, 96, generator(1))
    assert len(parameters.order.unique(dim=0)) == 24
    torch.testing.assert_close(
        render_color(images, parameters, **UNIT, recipe=NO_BLUR),
        torchvision_chain(images, parameters),
        atol=1e-5,
        rtol=0,
    )


def test_a_grey_image_and_a_single_pixel_stay_finite_and_grey():
    images = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    parameters = draw_color_parameters(JITTER_ONLY, 4, generator())
    out = render_color(images, parameters, **UNIT, recipe=JITTER_ONLY)
    assert torch.isfinite(out).all()
    assert (out - out.mean(1, keepdim=True)).abs().max() < 1e-3  # grey weights sum to 0.9999


def test_blur_is_torchvisions_gaussian_with_pillows_border():
    photo = Image.fromarray(skimage.data.astronaut()).resize((96, 96))
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float()
    sigmas = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0])
    blurred = gaussian_blur(image.expand(5, 3, 96, 96), sigmas, 6)
    for sigma, ours in zip(sigmas.tolist(), blurred, strict=True):
        reference = tv.gaussian_blur(image, [13, 13], [sigma, sigma])
        torch.testing.assert_close(ours[:, 6:-6, 6:-6], reference[:, 6:-6, 6:-6], atol=1e-3, rtol=0)
        pillow = torch.from_numpy(np.array(photo.filter(ImageFilter.GaussianBlur(sigma)))).permute(2, 0, 1)
        difference = (ours - pillow).abs() / 255
        assert difference.mean() < 0.003
        assert difference[:, :3].mean() < 0.004  # at the border too


def test_only_the_chosen_views_are_blurred():
    crops = photo_crops(12)
    recipe = ColorRecipe(blur_probability=0.5, blur_sigma=(1.0, 2.0))
    parameters = draw_color_parameters(recipe, 12, generator())
    assert 0 < parameters.blur.sum() < 12
    sharp = dataclasses.replace(parameters, blur=torch.zeros(12, dtype=torch.bool))
    plain = render_color(crops, sharp, **IMAGENET, recipe=recipe)
    out = render_color(crops, parameters, **IMAGENET, recipe=recipe)
    assert torch.equal(out[~parameters.blur], plain[~parameters.blur])
    expected = torch.stack(
        [
            tv.gaussian_blur(tv.pad(image, [6], padding_mode="edge"), [13, 13], [sigma, sigma])[:, 6:-6, 6:-6]
            for image, sigma in zip(
                plain[parameters.blur], parameters.blur_sigma[parameters.blur].tolist(), strict=True
            )
        ]
    )
    torch.testing.assert_close(out[parameters.blur], expected, atol=1e-5, rtol=0)


def test_float_images_are_refused():
    parameters = draw_color_parameters(ColorRecipe(), 1, generator())
    with pytest.raises(TypeError, match="uint8"):
        render_color(torch.rand(1, 3, 8, 8), parameters, **UNIT, recipe=ColorRecipe())


def test_rendering_on_several_threads_gives_what_one_gives():
    crops = torch.randint(256, (40, 3, 96, 96), dtype=torch.uint8, generator=generator())
    recipe = ColorRecipe(blur_probability=1.0)
    parameters = draw_color_parameters(recipe, 40, generator())

    def render(_: int) -> torch.Tensor:
        return render_color(crops, parameters, recipe=recipe, **IMAGENET)

    alone = render(0).clone()
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(alone, other) for other in pool.map(render, range(24)))


# ------------------------------------------------------------------------------------------------------ TensorFlow


def tensorflow_recipe(**changes):
    settings = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "blur_probability": 0.0}
    borders = {"blur_border": "zero", "blur_kernel_radius": 11}
    return ColorRecipe(**{**settings, **borders, "operations": "tensorflow", **changes})


def golden(name):
    """(height, width, 3) as the authors keep it -> (1, 3, height, width)."""
    return GOLDEN[name].permute(2, 0, 1)[None].clone()


# --------------------------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize("name", sorted(name for name in GOLDEN if name.split("_")[0] in TENSORFLOW))
def test_each_operation_equals_the_authors(name):
    operation, amount = name.split("_")
    ours = TENSORFLOW[operation](golden("x"), torch.tensor([float(amount)]))
    torch.testing.assert_close(ours, golden(name), atol=1e-6, rtol=0)


def test_solarisation_and_normalisation_equal_the_authors():
    torch.testing.assert_close(photometric.solarize(golden("x")), golden("solarize"), atol=1e-6, rtol=0)
    ours = normalize_(golden("standardize_in"), **IMAGENET)
    torch.testing.assert_close(ours, golden("standardize_out"), atol=1e-6, rtol=0)


def test_grey_equals_the_authors():
    levels = torch.arange(256, dtype=torch.uint8)
    images = torch.stack([levels, levels.flip(0), levels.roll(90)]).view(1, 3, 16, 16)
    recipe = tensorflow_recipe(color_jitter_probability=0.0, grayscale_probability=1.0)
    ours = render_color(images, draw_color_parameters(recipe, 1), **UNIT, recipe=recipe)
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
    amounts = {name: float(getattr(parameters, name)[view]) for name in TENSORFLOW}
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


def test_rendering_equals_the_chain_written_out_in_every_order():
    images = torch.randint(0, 256, (120, 3, 5, 6), dtype=torch.uint8, generator=generator())
    images[0] = images[0, :1]  # grey: no hue
    images[1] = 0
    recipe = tensorflow_recipe(solarize_probability=0.3)
    parameters = draw_color_parameters(recipe, 120, generator(1))
    assert len(parameters.order[parameters.jitter].unique(dim=0)) == 24
    ours = render_color(images, parameters, recipe=recipe, **IMAGENET)
    for view, image in enumerate(images):
        expected = slow_chain(image.permute(1, 2, 0).numpy() / 255.0, parameters, view)
        expected = torch.from_numpy((expected - IMAGENET_MEAN) / IMAGENET_STD).float().permute(2, 0, 1)
        torch.testing.assert_close(ours[view], expected, atol=2e-5, rtol=0)


def test_grey_images_and_single_pixels_stay_finite_and_grey():
    images = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    recipe = tensorflow_recipe(color_jitter_probability=1.0)
    out = render_color(images, draw_color_parameters(recipe, 4, generator()), **UNIT, recipe=recipe)
    assert torch.isfinite(out).all()
    assert (out - out.mean(1, keepdim=True)).abs().max() < 1e-3  # grey weights sum to 0.9999


# -------------------------------------------------------------------------------------------- blur and solarisation


def test_chosen_views_are_blurred_against_black_and_then_solarised():
    photo = torch.from_numpy(np.array(photographs()[2].resize((40, 32)))).permute(2, 0, 1)
    images = photo.expand(16, 3, 32, 40).contiguous()
    recipe = tensorflow_recipe(
        blur_probability=0.5, blur_sigma=(1.0, 2.0), solarize_probability=0.5, color_jitter_probability=0.0
    )
    parameters = draw_color_parameters(recipe, 16, generator(2))
    assert len(torch.stack([parameters.blur, parameters.solarize]).unique(dim=1).T) == 4  # all four combinations
    ours = render_color(images, parameters, recipe=recipe, **IMAGENET)
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


def test_float_crops_are_taken_when_asked_for_and_left_as_they_are():
    crops = torch.randint(0, 256, (4, 3, 16, 16), generator=generator()).float()
    before, recipe = crops.clone(), tensorflow_recipe()
    for parameters in (None, draw_color_parameters(recipe, 4, generator())):
        common = {"recipe": recipe, **IMAGENET}
        ours = render_color(crops, parameters, unrounded=True, **common)
        assert torch.equal(ours, render_color(crops.byte(), parameters, **common))
        assert torch.equal(crops, before)
        with pytest.raises(TypeError, match="uint8"):
            render_color(crops, parameters, **common)
        with pytest.raises(TypeError, match="float32"):
            render_color(crops.byte(), parameters, unrounded=True, **common)


# --------------------------------------------------------------------------------------------------- normalisation


def test_normalisation_is_torchvisions():
    images = torch.rand(3, 3, 4, 5, generator=generator())
    torch.testing.assert_close(normalize_(images.clone(), **IMAGENET), tv.normalize(images, **IMAGENET))
    crops = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8, generator=generator())
    plain = render_color(crops, None, recipe=NO_BLUR, **IMAGENET)
    torch.testing.assert_close(plain, tv.normalize(crops / 255, **IMAGENET))


def test_a_normalization_says_its_numbers_and_refuses_others():
    assert Normalization((0, 0.5, 1), (1, 0.25, 2)).describe() == "normalised by mean 0 0.5 1 and std 1 0.25 2"
    for wrong in ({"mean": (0.5, 0.5)}, {"std": (0.2, 0.0, 0.2)}):
        with pytest.raises(ValueError, match="mean and std must hold 3 numbers, those of std above 0"):
            Normalization(**wrong)


# --------------------------------------------------------------------------------- red, green and blue of more than 8 bits


def test_colors_in_units_are_those_of_8_bits_where_nothing_is_clipped():
    images = torch.randint(90, 110, (24, 3, 16, 16), dtype=torch.uint8, generator=generator())
    recipe = ColorRecipe(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)
    parameters = draw_color_parameters(recipe, 24, generator(1))
    ours = render_color(images.float() / 255, parameters, **IMAGENET, recipe=recipe, in_units=True)
    torch.testing.assert_close(ours, render_color(images, parameters, **IMAGENET, recipe=recipe))
    with pytest.raises(TypeError, match="images must be float32 in units of the value range, got torch.uint8"):
        render_color(images, parameters, **IMAGENET, recipe=recipe, in_units=True)


@pytest.mark.parametrize("operations", ["torchvision", "tensorflow"])
def test_colors_in_units_are_not_clipped(operations):
    generated = torch.rand(64, 3, 8, 8, generator=generator()) * 1.4 - 0.2
    recipe = ColorRecipe(operations=operations, grayscale_probability=0.0, blur_probability=0.0)
    parameters = draw_color_parameters(recipe, 64, generator(1))
    out = render_color(generated, parameters, **UNIT, recipe=recipe, in_units=True)
    assert torch.isfinite(out).all()
    assert out.max() > 1.2
    assert out.min() < -0.2
    assert ((out == 0) | (out == 1)).float().mean() < 1e-3
    brighter = adjust_brightness(generated, torch.full((64,), 1.5), clip=False)
    torch.testing.assert_close(brighter, generated * 1.5)


@pytest.mark.parametrize("operations", ["torchvision", "tensorflow"])
@pytest.mark.parametrize("clip", [True, False])
def test_colors_in_kernels_are_those_of_chosen_views(operations, clip, monkeypatch):
    """What a GPU computes, in every order; as one graph, for all sizes, and without a compiler."""
    recipe = ColorRecipe(operations=operations, brightness=0.4)
    compiled = photometric.CompiledFunction(photometric.jitter_step, "colours", backend="eager", fullgraph=True)
    for kernel, sizes in ((photometric.jitter_step, (16,)), (compiled, (12, 16) if clip else ())):
        monkeypatch.setattr(photometric, "jitter_kernel", kernel)
        for size in sizes:
            parameters = draw_color_parameters(recipe, 200, generator(size))
            assert len(parameters.order[parameters.jitter].unique(dim=0)) == 24
            images = torch.rand(200, 3, size, size, generator=generator())
            expected = photometric.jitter_chosen(images.clone(), parameters, operations == "tensorflow", clip)
            changed = photometric.jitter_in_kernels(images, parameters, operations == "tensorflow", clip)
            assert not torch.equal(changed, images)
            torch.testing.assert_close(changed, expected, atol=2e-6, rtol=0)
    assert not compiled.is_plain


def test_colors_in_kernels_tell_the_host_nothing(monkeypatch):
    """Tensors on "meta" have no values to wait for."""
    monkeypatch.setattr(photometric, "jitter_kernel", photometric.jitter_step)
    parameters = draw_color_parameters(JITTER_ONLY, 5, generator())
    for tensorflow in (False, True):
        images = torch.empty(5, 3, 8, 8, device="meta")
        assert photometric.jitter_in_kernels(images, parameters, tensorflow, True).shape == images.shape
