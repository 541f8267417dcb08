"""Colour recipes: what is drawn from them, and which are refused."""

import pytest
import torch

from hf_geossl.views.color import ColorRecipe, draw_color_parameters


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensorflow_recipe(**changes):
    settings = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    return ColorRecipe(**{**settings, "operations": "tensorflow", **changes})


def test_draws_follow_the_recipe():
    recipe = ColorRecipe(contrast=0.4, saturation=1.5, blur_probability=0.3)
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


def test_draws_for_tensorflow_follow_the_recipe():
    drawn = draw_color_parameters(tensorflow_recipe(solarize_probability=0.25), 20000, generator())
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
        drawn.append(draw_color_parameters(tensorflow_recipe(solarize_probability=probability), 5, state))
    assert torch.equal(drawn[0].brightness, drawn[2].brightness)
    assert torch.equal(drawn[0].order, drawn[2].order)
    assert torch.equal(states[1].get_state(), states[2].get_state())
    torch.rand(5, generator=states[0])
    assert torch.equal(states[0].get_state(), states[1].get_state())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blur_probability": 1.5}, "blur_probability must lie in"),
        ({"contrast": -0.1}, "contrast must be 0 or more"),
        ({"hue": 0.6}, "hue must lie in"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma must be"),
        ({"operations": "pillow"}, "operations must be 'torchvision' or 'tensorflow', got 'pillow'"),
        ({"blur_border": "reflect"}, "blur_border must be 'replicate' or 'zero', got 'reflect'"),
        ({"blur_kernel_radius": -1}, "blur_kernel_radius must be 0 or more"),
        ({"solarize_probability": 1.1}, "solarize_probability must lie in"),
    ],
)
def test_a_wrong_recipe_names_the_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        ColorRecipe(**wrong)


def test_the_kernel_reaches_three_deviations_of_the_widest_blur_unless_it_is_given():
    assert ColorRecipe().blur_radius == 6
    assert ColorRecipe(blur_sigma=(0.1, 1.1)).blur_radius == 4
    assert ColorRecipe(blur_kernel_radius=11).blur_radius == 11
