"""What is drawn for the colours of each view: the recipe, and the parameters that come out of it."""

import math
from dataclasses import dataclass, fields
from typing import Any, Self

import torch

from hf_geossl.views.settings import Settings, probability, setting

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the values in `ColorParameters.order`
BLUR_TRUNCATION = 3.0  # the kernel reaches 3 standard deviations of the widest blur


@dataclass(frozen=True)
class ColorJitter(Settings):
    """How strongly and how often the colours of views change: what all views of a method share.

    The strengths are of the operations of one of two libraries, see `ColorRecipe`. A factor is uniform in
    `[max(0, 1 - x), 1 + x]`; TensorFlow's brightness adds a share of the range 0..1 that is uniform in `[-x, x]`.

    Source: torchvision `ColorJitter`.
    """

    brightness: float = setting(0.8, "The factor of brightness is uniform in [max(0, 1 - x), 1 + x].", low=0)
    contrast: float = setting(0.8, "The factor of contrast is uniform in [max(0, 1 - x), 1 + x].", low=0)
    saturation: float = setting(0.8, "The factor of saturation is uniform in [max(0, 1 - x), 1 + x].", low=0)
    hue: float = setting(
        0.2, "The hue turns by a number uniform in [-x, x], in full turns of the colour circle.", low=0, high=0.5
    )
    color_jitter_probability: float = probability(0.8, "How often a view gets these four, in a random order.")
    grayscale_probability: float = probability(0.2, "How often a view loses its colour.")
    blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0), "Smallest and largest standard deviation of the blur, in pixels of the view.", above=0
    )

    def recipe(self, **others: Any) -> "ColorRecipe":
        """A recipe of these settings and others."""
        return ColorRecipe(**{entry.name: getattr(self, entry.name) for entry in fields(ColorJitter)}, **others)


@dataclass(frozen=True)
class ColorRecipe(ColorJitter):
    """The distribution from which the colour changes of one kind of view are drawn.

    Brightness, contrast and saturation are those of one of two libraries (`operations`):

    - "torchvision": brightness scales; contrast scales about the mean grey level of the image, saturation about the grey
      level of each pixel.
    - "tensorflow": brightness adds; contrast scales about the mean of each channel; saturation scales the S of HSV.

    Source: torchvision `ColorJitter` and `tf.image`; GTSA (arXiv 2304.08014) uses the defaults for every view.
    """

    blur_probability: float = probability(0.2, "How often a view is blurred.")
    solarize_probability: float = probability(
        0.0, "How often values from one half on are inverted, after the blur.", flat=False
    )
    operations: str = setting(
        "torchvision", "Whose operations are meant.", words=("torchvision", "tensorflow"), flat=False
    )
    blur_border: str = setting(
        "replicate",
        "What the blur sees outside the view: its border pixels or black.",
        words=("replicate", "zero"),
        flat=False,
    )
    blur_kernel_radius: int | None = setting(
        None, "Radius of the blur's kernel in pixels; three times the widest sigma if absent.", low=0, flat=False
    )

    @property
    def blur_radius(self) -> int:
        """Radius in pixels of the blur kernel that all views share."""
        if self.blur_kernel_radius is not None:
            return self.blur_kernel_radius
        return math.ceil(BLUR_TRUNCATION * self.blur_sigma[1])


@dataclass
class DrawnParameters:
    """Base of dataclasses of tensors that have one row a view or an image."""

    def to(self, device: torch.device) -> Self:
        """The same parameters on another device, in one transfer; the object itself if it is there already."""
        values = [getattr(self, entry.name) for entry in fields(self)]
        if values[0].device == device:
            return self
        columns = [value.float().reshape(len(value), -1) for value in values]
        moved = torch.cat(columns, dim=1).to(device, non_blocking=True).split([c.shape[1] for c in columns], dim=1)
        return type(self)(*(new.to(old.dtype).reshape(old.shape) for old, new in zip(values, moved, strict=True)))

    def select(self, rows: torch.Tensor | slice) -> Self:
        """The parameters of some rows: indices or a mask on the parameters' device, or a slice."""
        return type(self)(*(getattr(self, entry.name)[rows] for entry in fields(self)))


@dataclass
class ColorParameters(DrawnParameters):
    """What happens to the colours of `views` views; every field has one row a view.

    Args:
        brightness, contrast, saturation (`torch.Tensor` of shape `(views,)`): Factors, 1 changes nothing; with
            TensorFlow's operations, brightness is what is added to values in [0, 1].
        hue (`torch.Tensor` of shape `(views,)`): Turns of the colour circle, 0 changes nothing.
        order (`torch.Tensor` of shape `(views, 4)`): A permutation of `BRIGHTNESS, CONTRAST, SATURATION, HUE`.
        jitter, grayscale, blur, solarize (`torch.Tensor` of shape `(views,)`, bool): Whether those four are applied,
            and what follows them in this order.
        blur_sigma (`torch.Tensor` of shape `(views,)`): Standard deviation of the blur in pixels of the view.
    """

    brightness: torch.Tensor
    contrast: torch.Tensor
    saturation: torch.Tensor
    hue: torch.Tensor
    order: torch.Tensor
    jitter: torch.Tensor
    grayscale: torch.Tensor
    blur: torch.Tensor
    blur_sigma: torch.Tensor
    solarize: torch.Tensor


def draw_color_parameters(
    recipe: ColorRecipe, num_views: int, generator: torch.Generator | None = None
) -> ColorParameters:
    """Draws the colour changes of `num_views` views, independently of each other, on the generator's device.

    A fixed count of numbers is taken from the generator (torch's global CPU generator if absent) for each view,
    whatever the recipe, and after them one more for each view if the recipe solarises.

    Source: torchvision `ColorJitter.get_params`, `RandomApply`, `RandomGrayscale`.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    uniform = torch.rand(num_views, 12, generator=generator, device=device)
    if recipe.solarize_probability:
        solarize = torch.rand(num_views, generator=generator, device=device) < recipe.solarize_probability
    else:
        solarize = torch.zeros(num_views, dtype=torch.bool, device=device)

    def factor(column: int, strength: float) -> torch.Tensor:
        low, high = max(0.0, 1.0 - strength), 1.0 + strength
        return low + uniform[:, column] * (high - low)

    smallest, largest = recipe.blur_sigma
    adds = recipe.operations == "tensorflow"
    return ColorParameters(
        brightness=(uniform[:, 0] * 2 - 1) * recipe.brightness if adds else factor(0, recipe.brightness),
        contrast=factor(1, recipe.contrast),
        saturation=factor(2, recipe.saturation),
        hue=(uniform[:, 3] * 2 - 1) * recipe.hue,
        order=uniform[:, 4:8].argsort(dim=1),
        jitter=uniform[:, 8] < recipe.color_jitter_probability,
        grayscale=uniform[:, 9] < recipe.grayscale_probability,
        blur=uniform[:, 10] < recipe.blur_probability,
        blur_sigma=smallest + uniform[:, 11] * (largest - smallest),
        solarize=solarize,
    )
