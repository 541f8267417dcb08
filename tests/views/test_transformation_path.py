"""The path from an image to its transformed self: every point against torchvision on the scaled parameters."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hf_geossl.views.transformation_path import TRANSFORMATIONS, TransformationParameters, TransformationPath
from tests.helpers.photographs import photographs

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
NUMBERS = [field.name for field in fields(TransformationParameters)][:-1]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Five photographs, not square, float32 in [0, 1]."""
    arrays = [np.array(photo.resize((40, 56))) for photo in photographs()]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def torchvision_point(kind: str, image: torch.Tensor, parameters: TransformationParameters, row: int, share: float):
    """One image at `share` of its way by torchvision alone, black outside."""
    end = {name: getattr(parameters, name)[row].double() for name in NUMBERS}
    height, width = image.shape[-2:]
    if kind == "color":
        image = tv.adjust_brightness(image, 1 + share * end["brightness"].item())
        image = tv.adjust_contrast(image, 1 + share * end["contrast"].item())
        image = tv.adjust_saturation(image, 1 + share * end["saturation"].item())
        return tv.adjust_hue(image, share * end["hue"].item())
    if kind == "blur":
        sigma = share * end["blur_sigma"].item()
        if sigma < 0.05:
            return image
        return tv.gaussian_blur(tv.pad(image, [6], padding_mode="edge"), [13, 13], [sigma, sigma])[:, 6:-6, 6:-6]
    return tv.affine(
        image,
        angle=math.degrees(share * end["angles"].item()) if kind != "translation" else 0.0,
        translate=[
            share * end["translations"][axis].item() * (width, height)[axis] if kind != "rotation" else 0.0
            for axis in (0, 1)
        ],
        scale=1.0,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )


@pytest.mark.parametrize("kind", TRANSFORMATIONS)
@pytest.mark.parametrize("num_intermediate", [1, 2, 3])
def test_every_point_is_torchvisions_on_a_share_of_the_parameters(
    images: torch.Tensor, kind: str, num_intermediate: int
) -> None:
    path = TransformationPath(kind, num_intermediate, padding_mode="zeros", max_translation=0.2)
    parameters = path.draw(len(images), generator(1))
    normalized = tv.normalize(images, *IMAGENET)
    final, between = path.render(normalized, parameters, *IMAGENET)
    assert between.shape == (5, num_intermediate, 3, 56, 40)
    points = [*between.unbind(1), final]
    for k, point in enumerate(points, start=1):
        share = k / (num_intermediate + 1)
        expected = torch.stack(
            [torchvision_point(kind, image, parameters, row, share) for row, image in enumerate(images)]
        )
        torch.testing.assert_close(path.apply(images, parameters, share), expected, rtol=0, atol=5e-5)
        torch.testing.assert_close(point, tv.normalize(expected, *IMAGENET), rtol=0, atol=2e-4)
        mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
        torch.testing.assert_close(point * std + mean, path.apply(images, parameters, share), rtol=0, atol=1e-6)
    assert all((a - b).abs().mean() > 1e-3 for a, b in zip([normalized, *points[:-1]], points, strict=True))


@pytest.mark.parametrize("kind", ["se2", "rotation", "translation"])
def test_reflection_brings_in_the_mirrored_image(images: torch.Tensor, kind: str) -> None:
    path = TransformationPath(kind, max_translation=0.2)
    parameters = path.draw(len(images), generator(2))
    mirrored = torch.cat([images.flip(2), images, images.flip(2)], dim=2)
    mirrored = torch.cat([mirrored.flip(3), mirrored, mirrored.flip(3)], dim=3)
    parameters_of_mirrored = path.draw(len(images), generator(2))
    parameters_of_mirrored.translations /= 3  # shares of three times the side
    for share, point in zip((1 / 3, 2 / 3), path.render(images, parameters, *IMAGENET)[1].unbind(1), strict=True):
        for row, image in enumerate(mirrored):
            expected = torchvision_point(kind, image, parameters_of_mirrored, row, share)[:, 56:112, 40:80]
            torch.testing.assert_close(point[row], expected, rtol=0, atol=1e-4)


def test_shares_of_the_way_are_linear_in_every_number() -> None:
    parameters = TransformationParameters(
        **{name: torch.tensor([0.3, -0.6]) for name in NUMBERS if name != "translations"},
        translations=torch.tensor([[0.3, -0.9], [0.6, 0.0]]),
        transformed=torch.tensor([True, False]),
    )
    scaled = parameters.scaled(2 / 3)
    for name in NUMBERS:
        expected = [[0.2, -0.6], [0.4, 0.0]] if name == "translations" else [0.2, -0.4]
        torch.testing.assert_close(getattr(scaled, name), torch.tensor(expected), rtol=1e-6, atol=0)
    assert scaled.transformed.tolist() == [True, False]


@pytest.mark.parametrize("num_intermediate", [1, 2, 3, 5])
def test_points_lie_at_k_of_k_plus_one_in_place(num_intermediate: int) -> None:
    """A dot that moves by 24 pixels stands at k * 24 / (K + 1)."""
    path = TransformationPath("translation", num_intermediate, padding_mode="zeros")
    parameters = path.draw(1, generator())
    parameters.translations = torch.tensor([[24 / 48, -12 / 48]])
    dot = torch.zeros(1, 3, 48, 48)
    dot[..., 30, 8] = 1.0
    _, between = path.render(dot, parameters, (0.0,) * 3, (1.0,) * 3)
    place = torch.arange(48.0)
    for k in range(1, num_intermediate + 1):
        point = between[0, k - 1, 0]
        share = k / (num_intermediate + 1)
        assert (point.sum(0) * place).sum().item() == pytest.approx(8 + 24 * share, abs=1e-3)
        assert (point.sum(1) * place).sum().item() == pytest.approx(30 - 12 * share, abs=1e-3)


def test_draws_follow_the_laws() -> None:
    count, low_sigma = 20000, 0.1
    bounds = {
        "se2": {"angles": math.pi / 4, "translations": 10 / 224},
        "rotation": {"angles": math.pi / 4},
        "translation": {"translations": 10 / 224},
        "color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.1, "hue": 0.1},
    }
    for kind, used in bounds.items():
        drawn = TransformationPath(kind).draw(count, generator())
        assert drawn.transformed.all()
        for name in NUMBERS:
            values, bound = getattr(drawn, name), used.get(name, 0.0)
            assert values.abs().max() <= bound
            # uniform in [-x, x]: mean 0, variance x^2 / 3
            assert values.mean().abs() <= 0.02 * bound
            assert abs(values.square().mean() - bound**2 / 3) <= 0.02 * bound**2
    sigma = TransformationPath("blur").draw(count, generator()).blur_sigma
    assert low_sigma <= sigma.min() < low_sigma + 0.01
    assert 1.99 < sigma.max() <= 2.0
    assert sigma.mean().item() == pytest.approx(1.05, abs=0.01)
    drawn = TransformationPath("se2").draw(count, generator())
    together = torch.cat([drawn.angles[:, None], drawn.translations], dim=1)
    assert (torch.corrcoef(together.T) - torch.eye(3)).abs().max() < 0.03  # drawn apart


def test_the_generator_alone_decides_and_gives_as_many_numbers_for_every_transformation() -> None:
    states = []
    for kind in TRANSFORMATIONS:
        path, source = TransformationPath(kind, transformation_probability=0.5), generator(3)
        first, again, other = path.draw(6, source), path.draw(6, generator(3)), path.draw(6, generator(4))
        assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in [*NUMBERS, "transformed"])
        assert any(not torch.equal(getattr(first, name), getattr(other, name)) for name in NUMBERS)
        states.append(source.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
    # the turn of an SE(2) motion is that of the rotation of the same generator
    draws = [TransformationPath(kind).draw(6, generator(3)).angles for kind in ("se2", "rotation")]
    assert torch.equal(*draws)


def test_a_blur_below_a_twentieth_of_a_pixel_changes_nothing(images: torch.Tensor) -> None:
    path = TransformationPath("blur", 3)
    parameters = path.draw(5, generator())
    parameters.blur_sigma = torch.tensor([0.0, 0.04, 0.0499, 0.1, 1.0])
    final, between = path.render(images, parameters, *IMAGENET)
    assert torch.isfinite(final).all()
    assert torch.isfinite(between).all()
    assert torch.equal(final[:3], images[:3])
    assert torch.equal(between[:4, 0], images[:4])  # a quarter of 0.1 too
    assert not torch.equal(final[4], images[4])
    assert (path.blur_radius, TransformationPath("blur", path_blur_sigma=(0.1, 1.1)).blur_radius) == (6, 4)


def test_no_points_between_leave_the_end(images: torch.Tensor) -> None:
    one, none = TransformationPath("se2", 1), TransformationPath("se2", 0)
    parameters = none.draw(5, generator())
    final, between = none.render(images, parameters, *IMAGENET)
    assert between.shape == (5, 0, 3, 56, 40)
    assert torch.equal(final, one.render(images, parameters, *IMAGENET)[0])


@pytest.mark.parametrize("kind", TRANSFORMATIONS)
def test_an_image_that_is_not_drawn_stays_as_it_is(images: torch.Tensor, kind: str) -> None:
    path = TransformationPath(kind, transformation_probability=0.4, path_blur_sigma=(1.0, 2.0))
    assert path.draw(5000, generator()).transformed.float().mean().item() == pytest.approx(0.4, abs=0.02)
    parameters = path.draw(5, generator(1))
    stays = ~parameters.transformed
    assert 0 < stays.sum() < 5
    final, between = path.render(images, parameters, *IMAGENET)
    for point in (final, *between.unbind(1)):
        assert torch.equal(point[stays], images[stays])
        assert ((point - images).flatten(1).abs().amax(1) > 0.01).tolist() == parameters.transformed.tolist()


def test_without_a_transformation_every_point_is_the_image(images: torch.Tensor) -> None:
    path = TransformationPath(None, 1)
    final, between = path.render(images, path.draw(5, generator()), *IMAGENET)
    assert torch.equal(final, images)
    assert torch.equal(between[:, 0], images)
    assert path.describe() == "not transformed"


def test_autocast_changes_nothing(images: torch.Tensor) -> None:
    for kind in TRANSFORMATIONS:
        path = TransformationPath(kind)
        parameters = path.draw(5, generator())
        plain = path.render(images, parameters, *IMAGENET)
        with torch.autocast("cpu", torch.bfloat16):
            again = path.render(images, parameters, *IMAGENET)
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"transformation": "scale"}, "transformation must be one of 'se2', .*'blur', got 'scale'"),
        ({"padding_mode": "border"}, "padding_mode must be 'reflection' or 'zeros', got 'border'"),
        ({"num_intermediate": -1}, "num_intermediate must be 0 or more, got -1"),
        ({"max_rotation": 200.0}, r"max_rotation must lie in \[0, 180\], got 200"),
        ({"max_translation": 10}, "max_translation must lie in"),
        ({"path_brightness": 1.5}, "path_brightness must lie in"),
        ({"path_contrast": -0.1}, "path_contrast must lie in"),
        ({"path_saturation": float("nan")}, "path_saturation must lie in"),
        ({"path_hue": 0.6}, "path_hue must lie in"),
        ({"transformation_probability": 2.0}, "transformation_probability must lie in"),
        ({"path_blur_sigma": (2.0, 0.1)}, "path_blur_sigma must be"),
    ],
)
def test_wrong_settings_name_the_argument(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformationPath(**{"transformation": "se2", **wrong})


def test_channels_that_are_no_colours_get_a_brightness_and_a_contrast_each() -> None:
    """By the formula in float64: distances to the channel's mean times 1 + share * contrast, plus share * brightness."""
    normalised = torch.randn(3, 5, 12, 10, generator=generator())
    path = TransformationPath("color", 2, path_brightness=0.6, path_contrast=0.3)
    drawn = path.draw(3, generator(1), num_channels=5)
    assert drawn.brightness.shape == drawn.contrast.shape == (3, 5)
    assert (drawn.saturation == 0).all()
    assert 0.3 < drawn.brightness.abs().max() <= 0.6
    assert 0.15 < drawn.contrast.abs().max() <= 0.3
    mean, std = (0.4,) * 5, (0.2,) * 5
    end, between = path.render(normalised, drawn, mean, std, clip=False)
    values = normalised.double().numpy()
    center = values.mean(axis=(2, 3), keepdims=True)
    brightness, contrast = (
        getattr(drawn, name).double().numpy()[:, :, None, None] for name in ("brightness", "contrast")
    )
    for share, ours in ((1 / 3, between[:, 0]), (2 / 3, between[:, 1]), (1.0, end)):
        expected = center + (1 + share * contrast) * (values - center) + share * brightness
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)
    assert "of each channel" in path.describe(is_rgb=False)


@pytest.mark.parametrize("kind", [kind for kind in TRANSFORMATIONS if kind != "color"])
def test_every_channel_goes_the_same_way(kind: str) -> None:
    image = torch.randn(2, 1, 24, 24, generator=generator())
    path = TransformationPath(kind, 1)
    drawn = path.draw(2, generator(1), num_channels=5)
    colours = path.draw(2, generator(1))
    assert torch.equal(drawn.angles, colours.angles)
    end, between = path.render(image.expand(-1, 5, -1, -1), drawn, (0.0,) * 5, (1.0,) * 5)
    alone, _ = path.render(image, drawn, (0.0,), (1.0,))
    assert not torch.equal(alone, image)
    for channel in range(5):
        assert torch.equal(end[:, channel], alone[:, 0])
    assert between.shape == (2, 1, 5, 24, 24)


def test_colors_of_more_than_8_bits_are_not_clipped(images: torch.Tensor) -> None:
    path = TransformationPath("color", 0, path_saturation=0.0, path_hue=0.0, path_contrast=0.0)
    drawn, images = path.draw(5, generator(2)), 1.4 * images
    end, _ = path.render(images, drawn, (0.0,) * 3, (1.0,) * 3, clip=False)
    torch.testing.assert_close(end, images * (1 + drawn.brightness).view(5, 1, 1, 1), atol=1e-5, rtol=1e-5)
    assert end.max() > 1
    assert path.render(images, drawn, (0.0,) * 3, (1.0,) * 3)[0].max() <= 1
