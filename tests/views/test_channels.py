"""What happens to channels that are not colours: by the formulas, the same for every value range, and nothing clipped."""

import numpy as np
import pytest
import torch

from hf_geossl import EquiCoherentViews, GTSAViews, LOCAViews
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.channels import (
    ChannelJitter,
    ChannelParameters,
    add_noise,
    adjust_channels,
    draw_channel_parameters,
    render_channels,
)
from hf_geossl.views.color import ColorRecipe
from hf_geossl.views.photometric import gaussian_blur

MEAN, STD = (0.4, 0.5, 0.6, 0.3, 0.2), (0.1, 0.2, 0.3, 0.1, 0.2)
UNITS = {"mean": MEAN, "std": STD, "in_units": True}
VIEWS = (
    (GTSAViews, {"global_size": 32, "local_size": 16, "num_local": 2}),
    (LOCAViews, {"reference_size": 32, "focal_size": 16, "num_focal": 2, "patch_size": 8}),
    (EquiCoherentViews, {"global_size": 32, "local_size": 16, "num_local": 2, "patch_size": 8}),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nothing(views: int, channels: int) -> ChannelParameters:
    """Parameters that change nothing."""
    wide, zeros = torch.zeros(views, channels), torch.zeros(views)
    jitter, blur, noise = torch.zeros(3, views, dtype=torch.bool)
    return ChannelParameters(wide, wide + 1, wide.bool(), jitter, blur, noise, zeros + 1, zeros, zeros.long())


def test_parameters_are_drawn_as_the_settings_say() -> None:
    recipe = ColorRecipe(brightness=0.6, contrast=0.3, color_jitter_probability=0.7, blur_probability=0.4)
    jitter = ChannelJitter(channel_drop_probability=0.25, noise_probability=0.15, noise_sigma=(0.1, 0.3))
    drawn = draw_channel_parameters(recipe, jitter, 20000, 5, generator())
    for values, low, high in (
        (drawn.brightness, -0.6, 0.6),
        (drawn.contrast, 0.7, 1.3),
        (drawn.noise_sigma, 0.1, 0.3),
        (drawn.blur_sigma, 0.1, 2.0),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    shares = [(drawn.jitter, 0.7), (drawn.blur, 0.4), (drawn.noise, 0.15), (drawn.dropped, 0.25)]
    for chosen, share in shares:  # a channel is not dropped where all would be, 0.25 ** 5 of the views
        assert chosen.float().mean() == pytest.approx(share, abs=0.01)
    assert len(drawn.noise_seed.unique()) > 19900
    correlation = np.corrcoef(drawn.brightness.T)
    assert np.abs(correlation - np.eye(5)).max() < 0.03  # each channel by itself


def test_one_channel_always_stays() -> None:
    for channels in (1, 2, 5):
        drawn = draw_channel_parameters(ColorRecipe(), ChannelJitter(1.0), 500, channels, generator())
        assert drawn.dropped.sum(dim=1).tolist() == [channels - 1] * 500


def test_brightness_and_contrast_are_in_deviations_of_the_channel() -> None:
    images = torch.rand(2, 5, 6, 7, generator=generator()) * 3 - 1
    parameters = nothing(2, 5)
    parameters.jitter[1] = True
    parameters.brightness = torch.rand(2, 5, generator=generator(1)) * 2 - 1
    parameters.contrast = torch.rand(2, 5, generator=generator(2)) * 2
    out = render_channels(images, parameters, recipe=ColorRecipe(), **UNITS).double().numpy()
    mean, std = (np.array(values)[None, :, None, None] for values in (MEAN, STD))
    values = (images.double().numpy() - mean) / std
    np.testing.assert_allclose(out[0], values[0], atol=1e-5)
    center = values.mean(axis=(2, 3), keepdims=True)
    contrast, brightness = (
        getattr(parameters, name).double().numpy()[:, :, None, None] for name in ("contrast", "brightness")
    )
    np.testing.assert_allclose(out[1], (center + contrast * (values - center) + brightness)[1], atol=1e-5)


def test_blur_noise_and_dropped_channels() -> None:
    images, recipe = torch.rand(3, 5, 24, 24, generator=generator()), ColorRecipe()
    plain = render_channels(images, None, recipe=recipe, **UNITS)
    parameters = nothing(3, 5)
    parameters.blur[0], parameters.blur_sigma = True, torch.tensor([1.5, 1.0, 1.0])
    parameters.noise[1], parameters.noise_sigma = True, torch.tensor([0.0, 0.3, 0.0])
    parameters.noise_seed = torch.tensor([5, 6, 7])
    parameters.dropped[2, [1, 3]] = True
    out = render_channels(images, parameters, recipe=recipe, **UNITS)
    torch.testing.assert_close(out[:1], gaussian_blur(plain[:1], torch.tensor([1.5]), recipe.blur_radius))
    noise = out[1] - plain[1]
    assert noise.std() == pytest.approx(0.3, rel=0.05)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    torch.testing.assert_close(out[1:2], add_noise(plain[1:2], torch.tensor([0.3]), generator(6)))
    assert (out[2, [1, 3]] == 0).all()  # the mean of the channel
    assert torch.equal(out[2, [0, 2, 4]], plain[2, [0, 2, 4]])
    assert torch.equal(out, render_channels(images, parameters, recipe=recipe, **UNITS))


def test_adjusted_channels_keep_every_level() -> None:
    levels = torch.arange(4096.0).view(1, 1, 64, 64).expand(2, 3, 64, 64) / 4095
    changed = adjust_channels(levels, torch.full((2, 3), 0.7), torch.full((2, 3), 0.3))
    assert all(len(plane.unique()) == 4096 for plane in changed.flatten(0, 1))


def stored_images(channels: int, dtype: str) -> tuple[list[np.ndarray], ImageFormat]:
    """Images whose values use a twentieth of the range of their type, as scans do, and their format."""
    rng = np.random.default_rng(channels)
    low, high = {"uint8": (0, 255), "uint16": (0, 65535), "float32": (-1000.0, 3000.0)}[dtype]
    units = [np.clip(rng.normal(0.1, 0.02, (48, 40, channels)), 0, 1) for _ in range(4)]
    images = [(unit * (high - low) + low).astype(dtype) for unit in units]
    pixels = np.concatenate([(image.astype(float) - low) / (high - low) for image in images]).reshape(-1, channels)
    numbers = tuple(range(1, channels + 1))
    names = tuple(f"channel {number}" for number in numbers)
    ends = ((float(low), float(high)),)
    return images, ImageFormat(
        numbers, names, dtype, ends, "given", tuple(pixels.mean(axis=0)), tuple(pixels.std(axis=0))
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 5, 13])
@pytest.mark.parametrize(("cls", "settings"), VIEWS)
def test_views_of_channels_are_not_clipped(cls: type, settings: dict, channels: int, dtype: str) -> None:
    images, image_format = stored_images(channels, dtype)
    views = cls(**settings, channel_drop_probability=0.0, image_format=image_format)
    batch = views.collate([views(image, seed=seed) for seed, image in enumerate(images)])
    plain, out = views.normalize(batch), views.augment(batch, generator())
    clipped = count = 0
    for name, values in out.items():
        if values is None or not name.endswith("pixel_values"):
            continue
        assert values.dtype == torch.float32
        assert values.shape[-3] == channels
        planes = values.flatten(-2).flatten(0, -2)  # (planes, pixels)
        for ends in (planes.amin(dim=1, keepdim=True), planes.amax(dim=1, keepdim=True)):
            at_end = (planes == ends).sum(dim=1)
            clipped += int((at_end[at_end > 0.02 * planes.shape[1]]).sum())  # more than ties of whole levels
        count += planes.numel()
        if plain[name] is not None:
            assert 0.3 < float(values.std() / plain[name].std()) < 3
            assert float(values.abs().mean()) < 3  # deviations: a range of which little is used does no harm
    assert clipped <= 0.001 * count


def test_the_same_values_in_another_range_make_the_same_views() -> None:
    images, image_format = stored_images(5, "float32")
    low, high = image_format.value_range[0]
    wide = ImageFormat(
        image_format.channels,
        image_format.names,
        "float32",
        ((low - 4 * (high - low), low + 6 * (high - low)),),
        "given",
        tuple(0.4 + 0.1 * mean for mean in image_format.mean),
        tuple(0.1 * std for std in image_format.std),
    )
    for cls, settings in VIEWS:
        first, second = (cls(**settings, image_format=kind) for kind in (image_format, wide))
        made = [
            views.augment(views.collate([views(image, seed=2) for image in images]), generator(1))
            for views in (first, second)
        ]
        for name, values in made[0].items():
            if values is not None and name.endswith("pixel_values"):
                torch.testing.assert_close(values, made[1][name], atol=2e-3, rtol=2e-3)
