"""False colours: the channels that people would choose, between two percentiles where 8 bits do not say what is white."""

import numpy as np
import pytest
import torch

from hf_geossl.modeling.image_format import RGB_NAMES, ImageFormat
from hf_geossl.views.display import display_limits, displayed_channels, to_display


def described(names: tuple[str, ...], dtype: str = "float32") -> ImageFormat:
    count = len(names)
    ends = ((0.0, 255.0),) if dtype == "uint8" else ((0.0, 1.0),)
    return ImageFormat(tuple(range(1, count + 1)), names, dtype, ends, mean=(0.5,) * count, std=(0.2,) * count)


@pytest.mark.parametrize(
    ("names", "channels", "shown"),
    [
        (RGB_NAMES, None, (0, 1, 2)),
        (("blue", "green", "red", "infrared"), None, (2, 1, 0)),
        (("a", "b", "c", "d"), None, (0, 1, 2)),
        (("a", "b"), None, (0,)),
        (("a",), None, (0,)),
        (("a", "b", "c", "d"), (3, 0, 1), (3, 0, 1)),
    ],
)
def test_red_green_and_blue_are_shown_where_they_are_and_else_the_first_channels(
    names: tuple[str, ...], channels: tuple[int, ...] | None, shown: tuple[int, ...]
) -> None:
    assert displayed_channels(described(names), channels) == shown
    crops = torch.randint(0, 256, (2, len(names), 4, 5), dtype=torch.uint8)
    pictures = to_display(crops, described(names, "uint8"), channels)
    assert torch.equal(pictures, crops[:, shown if len(shown) == 3 else shown * 3])


def test_wrong_channels_are_named() -> None:
    for channels in ((4, 0, 1), (0, 1)):
        with pytest.raises(ValueError, match="one or three places from 0 to 3"):
            displayed_channels(described(("a", "b", "c", "d")), channels)


def test_values_of_more_bits_are_shown_between_two_percentiles() -> None:
    crops = torch.randn(2, 3, 5, 40, 50, generator=torch.Generator().manual_seed(0)) * torch.rand(5, 1, 1) * 9
    names = tuple("abcde")
    ours = to_display(crops, described(names)).numpy().astype(int)
    low, high = (
        np.quantile(crops[:, :, :3].numpy(), share, axis=(3, 4), keepdims=True, method="nearest")
        for share in (0.02, 0.98)
    )
    expected = np.clip((crops[:, :, :3].numpy() - low) / (high - low), 0, 1) * 255
    assert np.abs(ours - expected).max() <= 1.5
    together = to_display(crops[:, :, :3], described(RGB_NAMES)).float()  # colours keep their balance
    order = crops[0, 0, :3].flatten(1).mean(1).argsort()
    assert torch.equal(together[0, 0].flatten(1).mean(1).argsort(), order)
    flat = to_display(torch.full((5, 4, 4), 0.3), described(names))
    assert flat.shape == (3, 4, 4)


def test_crops_of_one_image_are_compared_by_the_same_limits() -> None:
    names = tuple("abcd")
    crops = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    limits = display_limits(crops, described(names))
    assert limits is not None
    darker = to_display(crops - 0.3, described(names), limits=limits)
    assert darker.float().mean() < to_display(crops, described(names), limits=limits).float().mean() - 30
    assert display_limits(crops, described(names, "uint8")) is None
    unrounded = torch.tensor([[[0.4, 254.6, 300.0]]] * 4)
    assert to_display(unrounded, described(names, "uint8"))[0, 0].tolist() == [0, 255, 255]
