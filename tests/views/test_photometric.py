"""Colour, blur and normalisation against torchvision, Pillow and formulas."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as tv

from hf_geossl.views import memory, photometric
from hf_geossl.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION, ColorRecipe, draw_color_parameters
from hf_geossl.views.memory import HUGE_PAGE, empty_batch
from hf_geossl.views.photometric import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    affine_color,
    exact_color,
    gaussian_blur,
    render_color,
)

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
JITTER_ONLY = ColorRecipe(color_jitter_probability=1.0, grayscale_probability=0.0, blur_probability=0.0)
TORCHVISION = {
    BRIGHTNESS: ("brightness", tv.adjust_brightness),
    CONTRAST: ("contrast", tv.adjust_contrast),
    SATURATION: ("saturation", tv.adjust_saturation),
    HUE: ("hue", tv.adjust_hue),
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
def test_each_exact_operation_equals_torchvision(code):
    name, reference = TORCHVISION[code]
    images = torch.rand(12, 3, 20, 28, generator=generator())
    images[0] = images[0, :1]  # grey: no hue
    images[1] = 0.0
    amounts = torch.linspace(-0.5, 0.5, 12) if code == HUE else torch.linspace(0.0, 2.5, 12)
    ours = getattr(photometric, f"adjust_{name}")(images, amounts)
    for image, amount, out in zip(images, amounts, ours, strict=True):
        torch.testing.assert_close(out, reference(image, amount.item()), atol=1e-5, rtol=0)


def test_exact_chain_equals_torchvision_in_every_order():
    images = torch.randint(0, 256, (96, 3, 16, 16), dtype=torch.uint8, generator=generator())
    parameters = draw_color_parameters(ColorRecipe(), 96, generator(1))
    assert len(parameters.order.unique(dim=0)) == 24
    torch.testing.assert_close(
        exact_color(images, parameters, **UNIT), torchvision_chain(images, parameters), atol=1e-5, rtol=0
    )


def test_affine_chain_is_exact_where_nothing_clips_and_hue_stays():
    images = torch.randint(110, 146, (96, 3, 40, 40), dtype=torch.uint8, generator=generator())
    recipe = ColorRecipe(0.4, 0.6, 0.6, 0.0, color_jitter_probability=0.8, grayscale_probability=0.3)
    parameters = draw_color_parameters(recipe, 96, generator(1))
    expected = tv.normalize(torchvision_chain(images, parameters), **IMAGENET)
    torch.testing.assert_close(affine_color(images, parameters, **IMAGENET), expected, atol=1e-5, rtol=0)


def test_affine_hue_is_exact_where_one_hue_prevails_and_for_thirds_of_a_turn():
    sky = torch.tensor([40, 90, 160]).view(1, 3, 1, 1) + torch.randint(0, 30, (16, 1, 32, 32), generator=generator())
    sky = (sky + torch.tensor([0, 12, 0]).view(3, 1, 1) * torch.rand(16, 1, 32, 32, generator=generator())).byte()
    mixed = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator())
    turns = torch.linspace(-0.5, 0.5, 16)
    for images, turn, tolerance in ((sky, turns, 2e-3), (mixed, torch.tensor([-1 / 3, 0.0, 1 / 3]), 1e-5)):
        parameters = draw_color_parameters(JITTER_ONLY, len(images), generator())
        parameters.hue = turn
        for name in ("brightness", "contrast", "saturation"):
            setattr(parameters, name, torch.ones(len(images)))
        expected = photometric.adjust_hue(images.float() / 255, turn)
        torch.testing.assert_close(affine_color(images, parameters, **UNIT), expected, atol=tolerance, rtol=0)


def test_affine_colours_of_photographs_have_the_statistics_of_exact_ones():
    crops = photo_crops(400)
    parameters = draw_color_parameters(ColorRecipe(), 400, generator(1))
    affine, exact = affine_color(crops, parameters, **UNIT), exact_color(crops, parameters, **UNIT)
    assert (affine - exact).abs().mean() < 0.012
    assert (exact - crops / 255).abs().mean() > 0.12
    assert (affine.mean((0, 2, 3)) - exact.mean((0, 2, 3))).abs().max() < 0.006
    assert (affine.std((0, 2, 3)) / exact.std((0, 2, 3)) - 1).abs().max() < 0.03
    assert abs(affine.std((2, 3)).mean() / exact.std((2, 3)).mean() - 1) < 0.03  # contrast within a view
    assert affine.min() >= 0
    assert affine.max() <= 1


@pytest.mark.parametrize("exact", [False, True])
def test_a_grey_image_and_a_single_pixel_stay_finite_and_grey(exact):
    images = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    parameters = draw_color_parameters(JITTER_ONLY, 4, generator())
    out = render_color(images, parameters, **UNIT, recipe=JITTER_ONLY, exact=exact)
    assert torch.isfinite(out).all()
    assert (out - out.mean(1, keepdim=True)).abs().max() < 1e-3  # grey weights sum to 0.9999


def test_draws_follow_the_recipe():
    recipe = ColorRecipe(0.8, 0.4, 1.5, 0.2, 0.8, 0.2, 0.3, (0.1, 2.0))
    drawn = draw_color_parameters(recipe, 20000, generator())
    for values, low, high in (
        (drawn.brightness, 0.2, 1.8),
        (drawn.contrast, 0.6, 1.4),
        (drawn.saturation, 0.0, 2.5),
        (drawn.hue, -0.2, 0.2),
        (drawn.blur_sigma, 0.1, 2.0),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.01 * (high - low)
    for flags, share in ((drawn.jitter, 0.8), (drawn.grayscale, 0.2), (drawn.blur, 0.3)):
        assert abs(flags.float().mean() - share) < 0.01
    orders, counts = drawn.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert (counts / 20000 - 1 / 24).abs().max() < 0.01


def test_the_same_generator_draws_the_same_views_whatever_the_recipe():
    first, second = generator(3), generator(3)
    draw_color_parameters(ColorRecipe(), 5, first)
    draw_color_parameters(ColorRecipe(blur_probability=1.0, hue=0.0), 5, second)
    assert torch.equal(first.get_state(), second.get_state())


def test_moving_parameters_keeps_every_field():
    parameters = draw_color_parameters(ColorRecipe(), 6, generator())
    moved = parameters.to(torch.device("meta"))
    for name, value in vars(parameters).items():
        assert getattr(moved, name).device.type == "meta"
        assert (getattr(moved, name).dtype, getattr(moved, name).shape) == (value.dtype, value.shape)
    chosen = parameters.select(torch.tensor([4, 1]))
    assert all(torch.equal(value[[4, 1]], getattr(chosen, name)) for name, value in vars(parameters).items())


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
    plain = affine_color(crops, parameters, **IMAGENET)
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


def test_pieces_do_not_change_the_result(monkeypatch):
    crops = photo_crops(7)
    parameters = draw_color_parameters(ColorRecipe(), 7, generator())
    whole = affine_color(crops, parameters, **IMAGENET)
    monkeypatch.setattr(photometric, "CPU_PIECE", 2 * crops[0].numel())
    torch.testing.assert_close(affine_color(crops, parameters, **IMAGENET), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"blur_probability": 1.5}, "blur_probability"),
        ({"contrast": -0.1}, "contrast"),
        ({"hue": 0.6}, "hue"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma"),
    ],
)
def test_a_wrong_recipe_names_the_argument(wrong, named):
    with pytest.raises(ValueError, match=named):
        ColorRecipe(**wrong)


def test_float_images_are_refused():
    parameters = draw_color_parameters(ColorRecipe(), 1, generator())
    with pytest.raises(TypeError, match="uint8"):
        render_color(torch.rand(1, 3, 8, 8), parameters, **UNIT, recipe=ColorRecipe())


# ---------------------------------------------------------------------------------------------------------- memory


def test_memory_of_a_batch_is_used_again_and_never_by_two():
    cpu, shape = torch.device("cpu"), (3, 1000, 1001)
    first, second = (empty_batch(shape, torch.float32, cpu).fill_(value) for value in (1, 2))
    view = first[1:, 5]  # keeps it as well
    place = first.data_ptr()
    del first
    third = empty_batch(shape, torch.float32, cpu).fill_(3)
    assert (view == 1).all()
    assert (second == 2).all()
    assert (third == 3).all()
    del view
    again = empty_batch((12, 250 * 1001), torch.float32, cpu)
    assert again.data_ptr() == place
    assert again.is_contiguous()
    assert empty_batch((2, 3), torch.uint8, cpu).shape == (2, 3)


def test_what_is_kept_of_the_memory_is_bounded():
    cpu = torch.device("cpu")
    tensors = [empty_batch((size * HUGE_PAGE,), torch.uint8, cpu) for size in (1, 1, 2, 3) for _ in range(9)]
    assert len(tensors) == 36
    del tensors
    assert len(memory._spares) == memory._spares.maxlen


def test_rendering_on_several_threads_gives_what_one_gives():
    crops = torch.randint(256, (40, 3, 96, 96), dtype=torch.uint8, generator=generator())
    recipe = ColorRecipe(blur_probability=1.0)
    parameters = draw_color_parameters(recipe, 40, generator())

    def render(_: int) -> torch.Tensor:
        return render_color(crops, parameters, recipe=recipe, **IMAGENET)

    alone = render(0).clone()
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(alone, other) for other in pool.map(render, range(24)))
