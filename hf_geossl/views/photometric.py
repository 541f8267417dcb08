"""Colour, blur and normalisation of a batch of views, on the device that holds it.

Colours follow the float operations of torchvision or TensorFlow one by one, each clamped, as the papers' programs do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD
from hf_geossl.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION, ColorParameters, ColorRecipe
from hf_geossl.views.compiled import CompiledFunction
from hf_geossl.views.settings import Settings, setting

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's `rgb_to_grayscale`
Operation = Callable[..., torch.Tensor]  # of images and a number for each


@dataclass(frozen=True)
class Normalization(Settings):
    """Mean and standard deviation of each channel, for images in [0, 1].

    Raises:
        ValueError: Not a number of both for each channel, or a deviation that is not above 0.
    """

    mean: tuple[float, ...] = setting(IMAGENET_MEAN, "Mean of each channel, for images in [0, 1].")
    std: tuple[float, ...] = setting(IMAGENET_STD, "Standard deviation of each channel.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            count = max(len(self.mean), len(self.std))
            raise ValueError(
                f"mean and std must hold {count} numbers, those of std above 0, got {self.mean} and {self.std}"
            )

    def describe(self) -> str:
        """Mean and deviation in words, for a model card."""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"normalised by mean {mean} and std {std}"


@torch.no_grad()
def render_color(
    images: torch.Tensor,
    parameters: ColorParameters | None,
    *,
    recipe: ColorRecipe,
    mean: Sequence[float],
    std: Sequence[float],
    unrounded: bool = False,
    in_units: bool = False,
) -> torch.Tensor:
    """Colour, blur, solarisation and normalisation of a batch of views.

    Args:
        images (`torch.Tensor` of shape `(views, 3, height, width)`): RGB, see `unit_images`.
        parameters (`ColorParameters`, *optional*): What to do to each view; None only normalises. The host waits for the
            device only if they lie on an accelerator.
        recipe (`ColorRecipe`): What the parameters were drawn from.
        mean, std (`Sequence[float]`): Of each channel, for images in [0, 1].
        unrounded, in_units (`bool`): See `unit_images`. Colours of images in units are not clipped, and their saturation
            is torchvision's: they have no whole range.

    Returns:
        `torch.Tensor` of shape `(views, 3, height, width)`: float32, normalised, on the images' device.
    """
    unit = unit_images(images, unrounded=unrounded, in_units=in_units)
    if parameters is not None:
        parameters = parameters.to(torch.device("cpu"))  # the host chooses which views to change
        jitter = jitter_in_kernels if unit.is_cuda and not jitter_kernel.is_plain else jitter_chosen
        unit = jitter(unit, parameters, recipe.operations == "tensorflow", not in_units)
        _finish_colors(unit, parameters, recipe)
    return normalize_(unit, mean, std)


def unit_images(images: torch.Tensor, *, unrounded: bool = False, in_units: bool = False) -> torch.Tensor:
    """A copy of views `(views, channels, height, width)`, float32 and contiguous, in which the value range is 0 to 1.

    Raises:
        TypeError: The views are not uint8; not float32 in 0..255 if `unrounded`, or not float32 in units if `in_units`.
    """
    if (unrounded or in_units) and images.dtype != torch.float32:
        kind = "in units of the value range" if in_units else "in 0..255 if unrounded"
        raise TypeError(f"images must be float32 {kind}, got {images.dtype}; give the crops of views()")
    if not (unrounded or in_units) and images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in 0..255, got {images.dtype}; give the crops that views() made")
    unit = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return unit if in_units else unit.div_(255)


def jitter_chosen(images: torch.Tensor, parameters: ColorParameters, tensorflow: bool, clip: bool) -> torch.Tensor:
    """Jitters images in [0, 1] in place: at each of four places in the order, each operation on the views that have it there.

    `parameters` lie on the CPU. What the operations compute is as little as can be, in many short passes.
    """
    chain: dict[int, tuple[Operation, torch.Tensor]] = {
        BRIGHTNESS: (partial(add_brightness if tensorflow else adjust_brightness, clip=clip), parameters.brightness),
        CONTRAST: (partial(adjust_channel_contrast if tensorflow else adjust_contrast, clip=clip), parameters.contrast),
        SATURATION: (
            adjust_hsv_saturation if tensorflow and clip else partial(adjust_saturation, clip=clip),
            parameters.saturation,
        ),
        HUE: (adjust_hue, parameters.hue),
    }
    for place in range(4):
        for code, (operation, amount) in chain.items():
            change_chosen(images, parameters.jitter & (parameters.order[:, place] == code), operation, amount)
    return images


def jitter_in_kernels(images: torch.Tensor, parameters: ColorParameters, tensorflow: bool, clip: bool) -> torch.Tensor:
    """Jitters as `jitter_chosen`, in two kernels a place: the means of all views, and `jitter_step`, compiled.

    A GPU takes longer to start the hundreds of passes of `jitter_chosen` than to compute every operation for every view.
    """
    drawn = parameters.to(images.device)
    amounts = torch.stack([drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue], dim=1)
    amounts = amounts.gather(1, drawn.order)  # in the order in which a view has them
    codes = torch.where(drawn.jitter[:, None], drawn.order, -1)
    for place in range(4):
        # outside of the kernel, so that sums have one order whatever the compiler chooses
        center = images.mean(dim=(2, 3), keepdim=True)
        center = center if tensorflow else gray_level(center)
        images = jitter_kernel(images, center, codes[:, place], amounts[:, place], tensorflow, clip)
    return images


def jitter_step(
    images: torch.Tensor, center: torch.Tensor, codes: torch.Tensor, amounts: torch.Tensor, tensorflow: bool, clip: bool
) -> torch.Tensor:
    """Does one operation to each of `images (views, 3, height, width)`, by its code in `codes (views,)` (-1 is none).

    `center (views, 1 or 3, 1, 1)` is what contrast scales about: the mean grey level, or with TensorFlow's operations the
    mean of each channel.
    """
    brighter = (add_brightness if tensorflow else adjust_brightness)(images, amounts, clip=clip)
    changed = torch.where(_by_view(codes == BRIGHTNESS), brighter, images)
    contrasted = _clipped(torch.lerp(center, images, _by_view(amounts)), clip)
    changed = torch.where(_by_view(codes == CONTRAST), contrasted, changed)
    if tensorflow and clip:
        saturated = adjust_hsv_saturation(images, amounts)
    else:
        saturated = adjust_saturation(images, amounts, clip=clip)
    changed = torch.where(_by_view(codes == SATURATION), saturated, changed)
    return torch.where(_by_view(codes == HUE), adjust_hue(images, amounts), changed)


jitter_kernel = CompiledFunction(jitter_step, "colours")


def _finish_colors(images: torch.Tensor, parameters: ColorParameters, recipe: ColorRecipe) -> None:
    """Does to jittered images what comes after it, in place: grey, blur, solarisation."""
    change_chosen(images, parameters.grayscale, lambda chosen: gray_level(chosen).expand_as(chosen))
    blur = partial(gaussian_blur, radius=recipe.blur_radius, border=recipe.blur_border)
    change_chosen(images, parameters.blur, blur, parameters.blur_sigma)
    change_chosen(images, parameters.solarize, solarize)


def change_chosen(images: torch.Tensor, chosen: torch.Tensor, operation: Operation, *amounts: torch.Tensor) -> None:
    """Replaces the chosen of `images (views, ...)` by what an operation makes of them.

    `chosen (views,)` and `amounts`, a row a view, lie on the CPU.
    """
    rows = chosen.nonzero().flatten()
    if len(rows):
        index, *numbers = (
            values.to(images.device, non_blocking=True) for values in (rows, *(a[rows] for a in amounts))
        )
        images.index_copy_(0, index, operation(images.index_select(0, index), *numbers))


def normalize_(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Normalises `images` (`(views, channels, height, width)`, float, in [0, 1]) by channel, in place."""
    for channel, center, deviation in zip(images.unbind(-3), mean, std, strict=True):  # a host waits for small tensors
        channel.sub_(center).div_(deviation)
    return images


def adjust_brightness(images: torch.Tensor, factor: torch.Tensor, *, clip: bool = True) -> torch.Tensor:
    """Scales `images` (`(views, 3, height, width)`, in [0, 1]) by a factor a view (`(views,)`); clamped to [0, 1] by default."""
    return _clipped(images * _by_view(factor), clip)


def adjust_contrast(images: torch.Tensor, factor: torch.Tensor, *, clip: bool = True) -> torch.Tensor:
    """Scales `images` (as in `adjust_brightness`) about their mean grey level by a factor a view."""
    return _clipped(torch.lerp(gray_level(images).mean(dim=(2, 3), keepdim=True), images, _by_view(factor)), clip)


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor, *, clip: bool = True) -> torch.Tensor:
    """Scales `images` (as in `adjust_brightness`) about each pixel's grey level by a factor a view."""
    return _clipped(torch.lerp(gray_level(images), images, _by_view(factor)), clip)


def adjust_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turns the HSV hue of `images` (as in `adjust_brightness`) by `turns` (`(views,)`, in full turns)."""
    red, green, blue = images.unbind(1)
    largest, lowest = _extremes(images)
    chroma = largest - lowest
    # The hue in sixths of a turn: (green - blue) / chroma where red is the largest, 2 + (blue - red) / chroma where green
    # is, 4 + (red - green) / chroma where blue is. Signs and lerp, as a CPU takes several times as long for `torch.where`.
    is_red, is_green = 1 + (red - largest).sign_(), 1 + (green - largest).sign_()
    difference = torch.lerp(torch.lerp(red - green, blue - red, is_green), green - blue, is_red)
    of_largest = torch.rsub(is_green, 4, alpha=2).mul_(1 - is_red)
    sixths = difference.div_(chroma.clamp_min(1e-12)).add_(of_largest).add_(6 * turns[:, None, None])
    sixths -= (sixths / 6).floor_().mul_(6)
    turned = torch.empty_like(images)
    for channel, share in enumerate(((sixths - 3).abs_().sub_(1), 2 - (sixths - 2).abs_(), 2 - (sixths - 4).abs_())):
        turned[:, channel] = torch.addcmul(lowest, chroma, share.clamp_(0, 1))
    return turned


def add_brightness(images: torch.Tensor, delta: torch.Tensor, *, clip: bool = True) -> torch.Tensor:
    """Adds a number a view to `images` (as in `adjust_brightness`)."""
    return _clipped(images + _by_view(delta), clip)


def adjust_channel_contrast(images: torch.Tensor, factor: torch.Tensor, *, clip: bool = True) -> torch.Tensor:
    """Scales `images` (as in `adjust_brightness`) about the mean of each channel by a factor a view."""
    return _clipped(torch.lerp(images.mean(dim=(2, 3), keepdim=True), images, _by_view(factor)), clip)


def adjust_hsv_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scales the HSV saturation of `images` (as in `adjust_brightness`) by a factor a view, up to 1."""
    largest, lowest = (extreme[:, None] for extreme in _extremes(images))
    # S = chroma / largest, so that min(factor * S, 1) scales all distances to the largest channel alike. Without chroma
    # there is no distance to scale.
    highest_factor = largest / (largest - lowest).clamp_min(1e-12)
    return torch.lerp(largest, images, torch.minimum(_by_view(factor), highest_factor))


def solarize(images: torch.Tensor) -> torch.Tensor:
    """Inverts the values of `images` (in [0, 1]) from one half on: v -> 1 - v."""
    return torch.minimum(images, 1 - images)


def gray_level(images: torch.Tensor) -> torch.Tensor:
    """Grey level of `images` (`(views, 3, height, width)`): `(views, 1, height, width)`."""
    red, green, blue = images.unbind(1)
    return (GRAY_WEIGHTS[0] * red).add_(green, alpha=GRAY_WEIGHTS[1]).add_(blue, alpha=GRAY_WEIGHTS[2])[:, None]


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, radius: int, *, border: str = "replicate") -> torch.Tensor:
    """Blurs each of `images` (`(views, channels, height, width)`, float) by a `sigma` of its own (`(views,)`, above 0).

    Sigma and `radius` of the kernel are in pixels. The border goes on ("replicate", Pillow's) or is black ("zero", LOCA's
    convolution of padding "same"). Pillow's `GaussianBlur(sigma)`, which GTSA uses, approximates this by three box blurs of
    whole grey levels; the mean absolute difference is 0.002 of the range for sigma 0.3 to 2.
    """
    views, channels = images.shape[:2]
    distance = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-0.5 * (distance / sigma[:, None]).square(), dim=1).repeat_interleave(channels, dim=0)
    padded = F.pad(images, (radius,) * 4, mode="replicate" if border == "replicate" else "constant")
    blurred = padded.flatten(0, 1)[None]  # (views, channels, H, W) -> (1, views * channels, H, W): a kernel for each
    with torch.autocast(images.device.type, enabled=False):
        blurred = F.conv2d(blurred, kernel[:, None, None, :], groups=views * channels)
        blurred = F.conv2d(blurred, kernel[:, None, :, None], groups=views * channels)
    return blurred.view(images.shape)


def _clipped(images: torch.Tensor, clip: bool) -> torch.Tensor:
    return images.clamp_(0, 1) if clip else images


def _by_view(numbers: torch.Tensor) -> torch.Tensor:
    """`(views,)` -> `(views, 1, 1, 1)`."""
    return numbers[:, None, None, None]


def _extremes(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest and smallest channel of each pixel, each `(views, height, width)`."""
    red, green, blue = images.unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    return largest, torch.minimum(torch.minimum(red, green), blue)
