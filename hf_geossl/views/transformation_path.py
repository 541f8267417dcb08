"""The path of EquiCoherent: an image transformed by shares of a transformation, directly from the image for each share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from hf_geossl.modeling.configuration_vit import TRANSFORMATIONS
from hf_geossl.modeling.geometry import warp_images
from hf_geossl.views.channels import adjust_channels
from hf_geossl.views.color import BLUR_TRUNCATION, DrawnParameters
from hf_geossl.views.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    normalize_,
)
from hf_geossl.views.settings import Settings, probability, setting

SMALLEST_SIGMA = 0.05  # pixels; what is blurred less stays as it is


@dataclass
class TransformationParameters(DrawnParameters):
    """How `images` images are transformed; every field has one row an image, 0 changes nothing.

    Args:
        angles (`torch.Tensor` of shape `(images,)`): Turn about the centre in radians, clockwise as displayed.
        translations (`torch.Tensor` of shape `(images, 2)`): Shift to the right and down after the turn, in shares of
            the image's width and height.
        brightness, contrast, saturation (`torch.Tensor` of shape `(images,)`): What the factor has above 1. For channels
            that are not red, green and blue brightness and contrast are `(images, channels)`, and brightness is added, in
            standard deviations of the channel.
        hue (`torch.Tensor` of shape `(images,)`): Turns of the colour circle.
        blur_sigma (`torch.Tensor` of shape `(images,)`): Standard deviation of the blur in pixels.
        transformed (`torch.Tensor` of shape `(images,)`, bool): Which images are transformed at all.
    """

    angles: torch.Tensor
    translations: torch.Tensor
    brightness: torch.Tensor
    contrast: torch.Tensor
    saturation: torch.Tensor
    hue: torch.Tensor
    blur_sigma: torch.Tensor
    transformed: torch.Tensor

    def scaled(self, share: float) -> "TransformationParameters":
        """The parameters of a point of the path: every number times `share`, 0 the image as it was, 1 the end."""
        numbers = {field.name: getattr(self, field.name) * share for field in fields(self)[:-1]}
        return TransformationParameters(**numbers, transformed=self.transformed)


@dataclass(frozen=True)
class TransformationPath(Settings):
    """Draws a transformation for each image and renders it and the points between: k / (K + 1) of the path, k = 1 to K.

    Every point is made directly from the image by the scaled parameters, in one warp; nothing is transformed twice.

    Source: EquiCoherent (arXiv 2503.18753), Table 2. The paper leaves open what lies outside, the scale of a shift for
    other sizes than 224 pixels, the order of colour operations, that shares of a motion are linear in its numbers, and
    what a blur sees beyond the border: here the border pixel goes on, as in Pillow (see `gaussian_blur`), where
    torchvision reflects the image. This changes nothing but the outermost pixels, as many as `blur_radius`.
    """

    transformation: str | None = setting(
        "se2",
        "The transformation: se2 (a turn, then a shift), rotation, translation, color (brightness, contrast, saturation "
        "and hue, in this order; of other channels than red, green and blue contrast and brightness of each) or blur; None "
        "transforms nothing.",
        words=(*TRANSFORMATIONS, None),
    )
    num_intermediate: int = setting(2, "How many points between the image and the end are rendered.", low=0)
    padding_mode: str = setting(
        "reflection",
        "What a turn or shift brings in from outside: reflection (the image mirrored) or zeros (black, whose corners give "
        "the angle away).",
        words=("reflection", "zeros"),
    )
    max_rotation: float = setting(45.0, "Largest angle, in degrees.", low=0, high=180)
    max_translation: float = setting(
        10 / 224, "Largest shift, in shares of the image's width and height.", low=0, high=1
    )
    path_brightness: float = setting(0.4, "Largest change of the factor of brightness at the end.", low=0, high=1)
    path_contrast: float = setting(0.4, "Largest change of the factor of contrast at the end.", low=0, high=1)
    path_saturation: float = setting(0.1, "Largest change of the factor of saturation at the end.", low=0, high=1)
    path_hue: float = setting(0.1, "Largest turn of the hue at the end, in full turns.", low=0, high=0.5)
    path_blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0), "Smallest and largest standard deviation of the blur at the end, in pixels.", low=0
    )
    transformation_probability: float = probability(1.0, "How often an image is transformed at all.")

    @property
    def blur_radius(self) -> int:
        """Radius in pixels of the blur kernel, the same all along the path."""
        return math.ceil(BLUR_TRUNCATION * self.path_blur_sigma[1])

    def draw(
        self, num_images: int, generator: torch.Generator | None = None, num_channels: int | None = None
    ) -> TransformationParameters:
        """Draws the ends of the paths of `num_images` images, independently of each other, on the generator's device.

        A fixed count of numbers is taken from the generator (torch's global CPU generator if absent) for each image,
        whatever the transformation; what that does not use is 0. `num_channels` is given for channels that are not red,
        green and blue, each of which gets a brightness and a contrast of its own.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        uniform = torch.rand(num_images, 9, generator=generator, device=device)
        signed = 2 * uniform - 1

        def only_for(names: tuple[str, ...], values: torch.Tensor) -> torch.Tensor:
            return values if self.transformation in names else torch.zeros_like(values)

        brightness, contrast, saturation, hue = signed[:, 3:7].unbind(1)
        if num_channels is not None:
            drawn = torch.rand(num_images, 2, num_channels, generator=generator, device=device)
            brightness, contrast = (2 * drawn - 1).unbind(1)
            saturation, hue = torch.zeros_like(saturation), torch.zeros_like(hue)
        smallest, largest = self.path_blur_sigma
        return TransformationParameters(
            angles=only_for(("se2", "rotation"), signed[:, 0] * math.radians(self.max_rotation)),
            translations=only_for(("se2", "translation"), signed[:, 1:3] * self.max_translation),
            brightness=only_for(("color",), brightness * self.path_brightness),
            contrast=only_for(("color",), contrast * self.path_contrast),
            saturation=only_for(("color",), saturation * self.path_saturation),
            hue=only_for(("color",), hue * self.path_hue),
            blur_sigma=only_for(("blur",), smallest + uniform[:, 7] * (largest - smallest)),
            transformed=uniform[:, 8] < self.transformation_probability,
        )

    def apply(
        self, images: torch.Tensor, parameters: TransformationParameters, share: float = 1.0, clip: bool = True
    ) -> torch.Tensor:
        """Points at a `share` of the paths of `images (images, channels, height, width)` in [0, 1]; `clip` as of `render`.

        The brightness of channels that are not red, green and blue is added as it is, in units.
        """
        channels, scaled = images.shape[1], parameters.to(images.device).scaled(share)
        return self._transform(images, scaled, (0.0,) * channels, (1.0,) * channels, clip)

    @torch.no_grad()
    def render(
        self,
        images: torch.Tensor,
        parameters: TransformationParameters,
        mean: Sequence[float],
        std: Sequence[float],
        clip: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The ends of the paths of normalised images `(images, channels, height, width)`, and the points between.

        Equal to taking back the normalisation by `mean` and `std`, `apply` and normalising again; float32. The points
        between are those at k / (K + 1) of the path for k = 1 to K, `(images, num_intermediate, channels, height,
        width)`. `clip` says whether colours are clipped to [0, 1], as those of 8 bits are; other channels never are.
        """
        parameters = parameters.to(images.device)
        steps = self.num_intermediate + 1
        between = images.new_empty(len(images), self.num_intermediate, *images.shape[1:])
        for k in range(1, steps):
            between[:, k - 1] = self._transform(images, parameters.scaled(k / steps), mean, std, clip)
        return self._transform(images, parameters, mean, std, clip), between

    def _transform(
        self,
        images: torch.Tensor,
        parameters: TransformationParameters,
        mean: Sequence[float],
        std: Sequence[float],
        clip: bool = True,
    ) -> torch.Tensor:
        """Transforms normalised images by all of `parameters`; a warp and a blur need not take the normalisation back."""
        images = images.float()
        if self.transformation is None:
            return images
        if self.transformation == "color" and parameters.brightness.dim() == 2:
            result = adjust_channels(images, parameters.brightness, 1 + parameters.contrast)
        elif self.transformation == "color":
            result = _adjust_colors(images, parameters, mean, std, clip)
        elif self.transformation == "blur":
            # At the smallest sigma all weights but the middle one underflow, so that the image stays as it is, bit for
            # bit; at 0 they would be 0 / 0.
            result = gaussian_blur(images, parameters.blur_sigma.clamp_min(SMALLEST_SIGMA), self.blur_radius)
        else:
            black = [-m / s for m, s in zip(mean, std, strict=True)] if self.padding_mode == "zeros" else None
            height, width = images.shape[-2:]
            right, down = parameters.translations.unbind(1)
            pixels = torch.stack([right * width, down * height], dim=1)
            result = warp_images(images, parameters.angles, pixels, self.padding_mode, black)
        return torch.where(parameters.transformed[:, None, None, None], result, images)

    def describe(self, is_rgb: bool = True) -> str:
        """The path in one line of words, for a model card; of red, green and blue, or of other channels."""
        if self.transformation is None:
            return "not transformed"
        turn = f"turned by up to {self.max_rotation:g} degrees"
        shift = f"shifted by up to {100 * self.max_translation:.6g}% of the side"
        outside = "mirrored" if self.padding_mode == "reflection" else "black"
        colors = (self.path_brightness, self.path_contrast, self.path_saturation, self.path_hue)
        words = {
            "se2": f"{turn} and {shift} ({outside} outside)",
            "rotation": f"{turn} ({outside} outside)",
            "translation": f"{shift} ({outside} outside)",
            "color": f"recoloured by up to {'/'.join(f'{strength:g}' for strength in colors)}"
            if is_rgb
            else f"brightness and contrast of each channel moved by up to {colors[0]:g} deviations and {colors[1]:g}",
            "blur": f"blurred by sigma {self.path_blur_sigma[0]:g} to {self.path_blur_sigma[1]:g}",
        }[self.transformation]
        return f"{words} in {100 * self.transformation_probability:g}%, with {self.num_intermediate} points between"


def _adjust_colors(
    images: torch.Tensor,
    parameters: TransformationParameters,
    mean: Sequence[float],
    std: Sequence[float],
    clip: bool,
) -> torch.Tensor:
    """The four colour operations of torchvision in fixed order, each clamped if `clip`, on normalised images."""
    channels = (images[:, channel] * std[channel] + mean[channel] for channel in range(3))
    unit = torch.stack(list(channels), dim=1)
    unit = adjust_brightness(unit, 1 + parameters.brightness, clip=clip)
    unit = adjust_contrast(unit, 1 + parameters.contrast, clip=clip)
    unit = adjust_saturation(unit, 1 + parameters.saturation, clip=clip)
    return normalize_(adjust_hue(unit, parameters.hue), mean, std)
