"""What is drawn for the colours of each view: the recipe, and the parameters that come out of it."""

import math
from dataclasses import dataclass, fields

import torch

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the values in `ColorParameters.order`
BLUR_TRUNCATION = 3.0  # the kernel reaches 3 standard deviations of the widest blur


@dataclass(frozen=True)
class ColorRecipe:
    """The distribution from which the colour changes of a view are drawn.

    Args:
        brightness, contrast, saturation (`float`): a factor is uniform in `[max(0, 1 - x), 1 + x]`.
        hue (`float`): the turn is uniform in `[-hue, hue]`, in full turns of the colour circle, at most 0.5.
        color_jitter_probability (`float`): how often a view gets these four, in a random order.
        grayscale_probability (`float`): how often a view loses its colour.
        blur_probability (`float`): how often a view is blurred.
        blur_sigma (`tuple[float, float]`): smallest and largest standard deviation of the blur, in pixels of the view.

    Raises:
        ValueError: a probability outside [0, 1], a negative strength, a hue above 0.5, or sigmas that are not
            `0 < smallest <= largest`.

    Source: torchvision `ColorJitter`; GTSA (arXiv 2304.08014) uses the defaults for every view.
    """

    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    color_jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        for name in ("color_jitter_probability", "grayscale_probability", "blur_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0.0 <= self.hue <= 0.5:
            raise ValueError(f"hue must lie in [0, 0.5] (turns of the colour circle), got {self.hue}")
        if not 0.0 < self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise ValueError(
                f"blur_sigma must be (smallest, largest) with 0 < smallest <= largest, got {self.blur_sigma}"
            )

    @property
    def blur_radius(self) -> int:
        """Radius in pixels of the blur kernel that all views share."""
        return math.ceil(BLUR_TRUNCATION * self.blur_sigma[1])


@dataclass
class ColorParameters:
    """What happens to the colours of `views` views; every field has one row a view.

    Args:
        brightness, contrast, saturation (`torch.Tensor` of shape `(views,)`): factors, 1 changes nothing.
        hue (`torch.Tensor` of shape `(views,)`): turns of the colour circle, 0 changes nothing.
        order (`torch.Tensor` of shape `(views, 4)`): a permutation of `BRIGHTNESS, CONTRAST, SATURATION, HUE`.
        jitter (`torch.Tensor` of shape `(views,)`, bool): whether those four are applied.
        grayscale (`torch.Tensor` of shape `(views,)`, bool): whether the view turns grey afterwards.
        blur (`torch.Tensor` of shape `(views,)`, bool): whether the view is blurred after that.
        blur_sigma (`torch.Tensor` of shape `(views,)`): standard deviation of the blur in pixels of the view.
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

    def select(self, views: torch.Tensor) -> "ColorParameters":
        """The parameters of some views.

        Args:
            views (`torch.Tensor`): indices or a mask into the first axis, on the parameters' device.

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
            count of numbers is taken from it for each view, whatever the recipe.

    Returns:
        `ColorParameters`: on the generator's device.

    Source: torchvision `ColorJitter.get_params`, `RandomApply`, `RandomGrayscale`.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    uniform = torch.rand(num_views, 12, generator=generator, device=device)

    def factor(column: int, strength: float) -> torch.Tensor:
        low, high = max(0.0, 1.0 - strength), 1.0 + strength
        return low + uniform[:, column] * (high - low)

    smallest, largest = recipe.blur_sigma
    return ColorParameters(
        brightness=factor(0, recipe.brightness),
        contrast=factor(1, recipe.contrast),
        saturation=factor(2, recipe.saturation),
        hue=(uniform[:, 3] * 2 - 1) * recipe.hue,
        order=uniform[:, 4:8].argsort(dim=1),
        jitter=uniform[:, 8] < recipe.color_jitter_probability,
        grayscale=uniform[:, 9] < recipe.grayscale_probability,
        blur=uniform[:, 10] < recipe.blur_probability,
        blur_sigma=smallest + uniform[:, 11] * (largest - smallest),
    )
