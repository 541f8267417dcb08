"""Brightness, contrast, noise, blur and loss of channels that are not red, green and blue.

All of it is measured in standard deviations of each channel, so that it does not depend on the value range, and nothing is
clipped. Hue, saturation, grey and solarisation mean nothing for such channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_geossl.views.color import ColorRecipe, DrawnParameters
from hf_geossl.views.photometric import change_chosen, gaussian_blur, normalize_, unit_images
from hf_geossl.views.settings import Settings, probability, setting

_SEEDS = 2**24  # whole numbers that float32 holds, as parameters are moved between devices in it


@dataclass(frozen=True)
class ChannelJitter(Settings):
    """What happens to channels that are not colours, beside brightness, contrast and blur; unused for colours."""

    channel_drop_probability: float = probability(
        0.1,
        "How often each channel of a view is replaced by its mean, one always staying; not for red, green and blue.",
    )
    noise_probability: float = probability(0.2, "How often a view gets noise; not for red, green and blue.")
    noise_sigma: tuple[float, float] = setting(
        (0.02, 0.2), "Smallest and largest deviation of the noise, in deviations of the channel.", low=0
    )

    def describe(self, brightness: float, contrast: float, probability: float) -> list[str]:
        """What happens to the channels of views in words, for a model card."""
        return [
            f"brightness of each channel moved by up to {brightness:g} deviations and contrast by up to {contrast:g} in "
            f"{100 * probability:g}%",
            f"channels dropped in {100 * self.channel_drop_probability:g}%",
            f"noise in {100 * self.noise_probability:g}% (sigma {self.noise_sigma[0]:g} to {self.noise_sigma[1]:g})",
        ]


@dataclass
class ChannelParameters(DrawnParameters):
    """What happens to the channels of `views` views; every field has one row a view.

    Args:
        brightness (`torch.Tensor` of shape `(views, channels)`): What is added, in standard deviations.
        contrast (`torch.Tensor` of shape `(views, channels)`): Factor of the distances to the view's mean.
        dropped (`torch.Tensor` of shape `(views, channels)`, bool): Which channels become their mean.
        jitter, blur, noise (`torch.Tensor` of shape `(views,)`, bool): Whether brightness and contrast change, and
            whether the view is blurred and gets noise.
        blur_sigma (`torch.Tensor` of shape `(views,)`): Standard deviation of the blur in pixels of the view.
        noise_sigma (`torch.Tensor` of shape `(views,)`): Standard deviation of the noise, in those of the channels.
        noise_seed (`torch.Tensor` of shape `(views,)`, int64): Of the noise.
    """

    brightness: torch.Tensor
    contrast: torch.Tensor
    dropped: torch.Tensor
    jitter: torch.Tensor
    blur: torch.Tensor
    noise: torch.Tensor
    blur_sigma: torch.Tensor
    noise_sigma: torch.Tensor
    noise_seed: torch.Tensor


def draw_channel_parameters(
    recipe: ColorRecipe,
    channel_jitter: ChannelJitter,
    num_views: int,
    num_channels: int,
    generator: torch.Generator | None = None,
) -> ChannelParameters:
    """Draws the changes of `num_views` views, independently for each view and channel, on the generator's device.

    `brightness`, `contrast`, `color_jitter_probability`, `blur_probability` and `blur_sigma` are the recipe's. A fixed
    count of numbers is taken from the generator (torch's global CPU generator if absent) for each view.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    uniform = torch.rand(num_views, 3 * num_channels + 6, generator=generator, device=device)
    brightness, contrast, drop, others = uniform.split([num_channels] * 3 + [6], dim=1)
    jitter, blur, blur_sigma, noise, noise_sigma, seed = others.unbind(1)
    low = max(0.0, 1.0 - recipe.contrast)
    # the channel with the largest number always stays
    dropped = (drop < channel_jitter.channel_drop_probability) & (drop < drop.amax(dim=1, keepdim=True))

    def between(share: torch.Tensor, ends: tuple[float, float]) -> torch.Tensor:
        return ends[0] + share * (ends[1] - ends[0])

    return ChannelParameters(
        brightness=(2 * brightness - 1) * recipe.brightness,
        contrast=between(contrast, (low, 1.0 + recipe.contrast)),
        dropped=dropped,
        jitter=jitter < recipe.color_jitter_probability,
        blur=blur < recipe.blur_probability,
        noise=noise < channel_jitter.noise_probability,
        blur_sigma=between(blur_sigma, recipe.blur_sigma),
        noise_sigma=between(noise_sigma, channel_jitter.noise_sigma),
        noise_seed=(seed * _SEEDS).long(),
    )


@torch.no_grad()
def render_channels(
    images: torch.Tensor,
    parameters: ChannelParameters | None,
    *,
    recipe: ColorRecipe,
    mean: Sequence[float],
    std: Sequence[float],
    unrounded: bool = False,
    in_units: bool = False,
) -> torch.Tensor:
    """Normalises views of any channels, then changes brightness, contrast, sharpness, noise and presence of each.

    Args:
        images (`torch.Tensor` of shape `(views, channels, height, width)`): See `unit_images`.
        parameters (`ChannelParameters`, *optional*): What to do to each view; None only normalises.
        recipe (`ColorRecipe`): What the parameters were drawn from.
        mean, std (`Sequence[float]`): Of each channel, for images in [0, 1].
        unrounded, in_units (`bool`): See `unit_images`.

    Returns:
        `torch.Tensor` of shape `(views, channels, height, width)`: float32, on the images' device; nothing is clipped.
    """
    values = normalize_(unit_images(images, unrounded=unrounded, in_units=in_units), mean, std)
    if parameters is None:
        return values
    parameters = parameters.to(torch.device("cpu"))  # the host chooses which views to change
    change_chosen(values, parameters.jitter, adjust_channels, parameters.brightness, parameters.contrast)
    change_chosen(
        values,
        parameters.blur,
        lambda chosen, sigma: gaussian_blur(chosen, sigma, recipe.blur_radius),
        parameters.blur_sigma,
    )
    noisy = parameters.noise_seed[parameters.noise].tolist()
    if noisy:
        generator = torch.Generator(values.device).manual_seed(noisy[0])  # drawn on the device, for all views at once
        change_chosen(
            values, parameters.noise, lambda chosen, s: add_noise(chosen, s, generator), parameters.noise_sigma
        )
    dropping = parameters.dropped.any(dim=1)
    change_chosen(
        values,
        dropping,
        lambda chosen, dropped: chosen.masked_fill_(dropped[:, :, None, None], 0.0),
        parameters.dropped,
    )
    return values


def adjust_channels(images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
    """Scales normalised images about the mean of each channel and adds a number to it; nothing is clipped.

    `images (views, channels, height, width)`; `brightness` and the factors `contrast` are `(views, channels)`.
    """
    center = images.mean(dim=(2, 3), keepdim=True)
    factor = contrast[:, :, None, None]
    return torch.addcmul(center * (1 - factor) + brightness[:, :, None, None], images, factor)


def add_noise(images: torch.Tensor, sigma: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Adds Gaussian noise of a deviation a view (`(views,)`) to normalised images `(views, channels, height, width)`."""
    noise = torch.empty_like(images).normal_(generator=generator)
    return images + noise * sigma[:, None, None, None]
