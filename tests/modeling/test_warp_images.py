"""Warped images against torchvision's affine, quarter turns and whole-pixel shifts."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from hf_geossl.modeling.geometry import warp_images

SIZES = [(40, 40), (33, 50), (48, 21)]  # height, width
MOTIONS = [(0.0, 3.0, -2.0), (30.0, 0.0, 0.0), (-45.0, 4.5, 2.25), (45.0, -7.0, 5.5), (100.0, 1.0, 9.0)]


def picture(height: int, width: int, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def torchvision_affine(image: torch.Tensor, degrees: float, shift: tuple[float, float]) -> torch.Tensor:
    return tv.affine(
        image,
        angle=degrees,
        translate=list(shift),
        scale=1.0,
        shear=[0.0],
        interpolation=InterpolationMode.BILINEAR,
    )


def motions() -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.tensor(MOTIONS)
    return torch.deg2rad(values[:, 0]), values[:, 1:]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("fill", [None, [-2.0, 0.5, 1.5]])
def test_a_batch_equals_torchvisions_affine_to_the_border(height: int, width: int, fill: list[float] | None) -> None:
    images = picture(height, width, len(MOTIONS))
    angles, shifts = motions()
    warped = warp_images(images, angles, shifts, "zeros", fill)
    for image, (degrees, x, y), ours in zip(images, MOTIONS, warped, strict=True):
        # torchvision's own fill weighs a pixel at the border twice with the share that lies inside.
        outside = torch.tensor(fill or [0.0] * 3)[:, None, None]
        expected = torchvision_affine(image - outside, degrees, (x, y)) + outside
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
        alone = warp_images(image[None], torch.tensor([math.radians(degrees)]), torch.tensor([[x, y]]), "zeros", fill)
        torch.testing.assert_close(alone[0], ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_reflection_equals_torchvision_on_a_mirrored_surrounding(height: int, width: int) -> None:
    images = picture(height, width, len(MOTIONS))
    angles, shifts = motions()
    warped = warp_images(images, angles, shifts, "reflection")
    mirrored = torch.cat([images, images.flip(2), images, images.flip(2), images], dim=2)
    mirrored = torch.cat([mirrored, mirrored.flip(3), mirrored, mirrored.flip(3), mirrored], dim=3)
    for image, (degrees, x, y), ours in zip(mirrored, MOTIONS, warped, strict=True):
        expected = torchvision_affine(image, degrees, (x, y))[:, 2 * height : 3 * height, 2 * width : 3 * width]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert (warped - warp_images(images, angles, shifts, "zeros")).abs().max() > 0.5  # the corners differ


@pytest.mark.parametrize("padding_mode", ["zeros", "reflection"])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_right_angles_turn_clockwise_exactly(padding_mode: str, quarters: int) -> None:
    image = picture(16, 16)
    turned = warp_images(image, torch.tensor([quarters * math.pi / 2]), torch.zeros(1, 2), padding_mode)
    torch.testing.assert_close(turned, image.rot90(-quarters, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_whole_pixels_move_right_and_down_exactly(height: int, width: int) -> None:
    image = picture(height, width)
    zeros = warp_images(image, torch.zeros(1), torch.tensor([[3.0, -2.0]]), "zeros")
    expected = torch.zeros_like(image)
    expected[:, :, :-2, 3:] = image[:, :, 2:, :-3]
    torch.testing.assert_close(zeros, expected, rtol=0, atol=2e-5)
    mirrored = warp_images(image, torch.zeros(1), torch.tensor([[3.0, -2.0]]), "reflection")
    expected[:, :, :-2, :3] = image[:, :, 2:, :3].flip(3)
    expected[:, :, -2:] = expected[:, :, -4:-2].flip(2)
    torch.testing.assert_close(mirrored, expected, rtol=0, atol=2e-5)


def test_an_image_is_turned_first_and_shifted_along_the_axes_of_the_image_then() -> None:
    image = picture(24, 24)
    both = warp_images(image, torch.tensor([math.pi / 2]), torch.tensor([[4.0, 0.0]]), "zeros")
    expected = torch.zeros_like(image)
    expected[:, :, :, 4:] = image.rot90(-1, (2, 3))[:, :, :, :-4]
    torch.testing.assert_close(both, expected, rtol=0, atol=2e-5)


def test_autocast_does_not_coarsen_places_and_the_type_stays() -> None:
    image = picture(64, 64)
    motion = (torch.tensor([0.4]), torch.tensor([[2.5, 1.0]]))
    plain = warp_images(image, *motion)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(warp_images(image, *motion), plain, rtol=0, atol=1e-6)
    half = warp_images(image.bfloat16(), *motion)
    assert half.dtype == torch.bfloat16
    assert (half - plain).abs().max() < 0.01  # 8 bits for values up to 1, none lost for places


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": torch.zeros(2, 3, 8)}, "images must be floating point of shape"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "got torch.uint8"),
        ({"angles": torch.zeros(1)}, r"angles must have shape \(2,\)"),
        ({"translations": torch.zeros(2)}, r"translations must have shape \(2, 2\)"),
        ({"padding_mode": "border"}, "padding_mode must be 'reflection' or 'zeros', got 'border'"),
        ({"fill": [0.0], "padding_mode": "zeros"}, "fill must hold one value for each of the 3 channels"),
        ({"fill": [0.0] * 3}, "needs padding_mode 'zeros'"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict, message: str) -> None:
    arguments = {"images": torch.zeros(2, 3, 8, 8), "angles": torch.zeros(2), "translations": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=message):
        warp_images(**{**arguments, **wrong})
