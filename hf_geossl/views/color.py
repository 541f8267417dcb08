"""What is drawn for the colours of each view: the recipe, and the parameters that come out of it."""

import math
from dataclasses import dataclass, fields

import torch

from hf_geossl.views.settings import Settings, setting

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
    color_jitter_probability: float = setting(
        0.8, "How often a view gets these four, in a random order.", low=0, high=1
    )
    grayscale_probability: float = setting(0.2, "How often a view loses its colour.", low=0, high=1)
    blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0), "Smallest and largest standard deviation of the blur, in pixels of the view.", above=0
    )


@dataclass(frozen=True)
class ColorRecipe(ColorJitter):
    """The distribution from which the colour changes of one kind of view are drawn.

    Brightness, contrast and saturation are those of one of two libraries (`operations`):

    - "torchvision": brightness scales; contrast scales about the mean grey level of the image, saturation about the grey
      level of each pixel.
    - "tensorflow": brightness adds; contrast scales about the mean of each channel; saturation scales the S of HSV.

    Source: torchvision `ColorJitter` and `tf.image`; GTSA (arXiv 2304.08014) uses the defaults for every view.
    """

    blur_probability: float = setting(0.2, "How often a view is blurred.", low=0, high=1)
    solarize_probability: float = setting(
        0.0, "How often values from one half on are inverted, after the blur.", low=0, high=1, flat=False
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
class ColorParameters:
    """What happens to the colours of `views` views; every field has one row a view.

    Args:
        brightness, contrast, saturation (`torch.Tensor` of shape `(views,)`): factors, 1 changes nothing; with
            TensorFlow's operations, brightness is what is added to values in [0, 1].
        hue (`torch.Tensor` of shape `(views,)`): turns of the colour circle, 0 changes nothing.
        order (`torch.Tensor` of shape `(views, 4)`): a permutation of `BRIGHTNESS, CONTRAST, SATURATION, HUE`.
        jitter (`torch.Tensor` of shape `(views,)`, bool): whether those four are applied.
        grayscale (`torch.Tensor` of shape `(views,)`, bool): whether the view turns grey afterwards.
        blur (`torch.Tensor` of shape `(views,)`, bool): whether the view is blurred after that.
        blur_sigma (`torch.Tensor` of shape `(views,)`): standard deviation of the blur in pixels of the view.
        solarize (`torch.Tensor` of shape `(views,)`, bool): whether bright values are inverted after that.
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

    def to(self, device: torch.device) -> "ColorParameters":
        """The same parameters on another device, in one transfer.

        Args:
            device (`torch.device`): where to.

        Returns:
            `ColorParameters`: on that device; the object itself if it is there already.
        """
        if self.brightness.device == device:
            return self
        columns = [getattr(self, field.name).float().reshape(len(self.order), -1) for field in fields(self)]
        moved = torch.cat(columns, dim=1).to(device, non_blocking=True).split([c.shape[1] for c in columns], dim=1)
        return ColorParameters(
            **{
                field.name: column.to(getattr(self, field.name).dtype).reshape(getattr(self, field.name).shape)
                for field, column in zip(fields(self), moved, strict=True)
            }
        )

    def select(self, views: torch.Tensor | slice) -> "ColorParameters":
        """The parameters of some views.

        Args:
            views (`torch.Tensor` or `slice`): Of the first axis: indices or a mask on the parameters' device, or a slice.

        Returns:
            `ColorParameters`: their rows, in that order.
        """
        return ColorParameters(**{field.name: getattr(self, field.name)[views] for field in fields(self)})


def draw_color_parameters(
    recipe: ColorRecipe, num_views: int, generator: torch.Generator | None = None
) -> ColorParameters:
    """Draws the colour changes of `num_views` views, independently of each other.

    Args:
        recipe (`ColorRecipe`): the distribution.
        num_views (`int`): how many views.
        generator (`torch.Generator`, *optional*): source of the numbers, torch's global CPU generator if absent. A fixed
            count of numbers is taken from it for each view, whatever the recipe, and after them one more for each view if
            the recipe solarises.

    Returns:
        `ColorParameters`: on the generator's device.

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
