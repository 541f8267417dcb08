"""What is drawn for the colours of each view: the recipe, and the parameters that come out of it."""

import math
from dataclasses import dataclass, fields

import torch

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the values in `ColorParameters.order`
BLUR_TRUNCATION = 3.0  # the kernel reaches 3 standard deviations of the widest blur
OPERATIONS = ("torchvision", "tensorflow")
BLUR_BORDERS = ("replicate", "zero")


@dataclass(frozen=True)
class ColorRecipe:
    """The distribution from which the colour changes of a view are drawn.

    Brightness, contrast and saturation are those of one of two libraries (`operations`):

    - "torchvision": brightness scales; contrast scales about the mean grey level of the image, saturation about the grey
      level of each pixel.
    - "tensorflow": brightness adds; contrast scales about the mean of each channel; saturation scales the S of HSV.

    Args:
        brightness, contrast, saturation (`float`): a factor is uniform in `[max(0, 1 - x), 1 + x]`; TensorFlow's
            brightness adds a share of the range 0..1 that is uniform in `[-x, x]`.
        hue (`float`): the turn is uniform in `[-hue, hue]`, in full turns of the colour circle, at most 0.5.
        color_jitter_probability (`float`): how often a view gets these four, in a random order.
        grayscale_probability (`float`): how often a view loses its colour.
        blur_probability (`float`): how often a view is blurred.
        blur_sigma (`tuple[float, float]`): smallest and largest standard deviation of the blur, in pixels of the view.
        solarize_probability (`float`): how often the values of a view from one half on are inverted, after the blur.
        operations (`str`): "torchvision" or "tensorflow", see above.
        blur_border (`str`): what the blur sees outside the view: "replicate" (its border pixels) or "zero" (black).
        blur_kernel_radius (`int`, *optional*): radius of the blur's kernel in pixels; three times the widest sigma if
            absent.

    Raises:
        ValueError: a probability outside [0, 1], a negative strength, a hue above 0.5, an unknown word, a negative
            radius, or sigmas that are not `0 < smallest <= largest`.

    Source: torchvision `ColorJitter` and `tf.image`; GTSA (arXiv 2304.08014) uses the defaults for every view.
    """

    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    color_jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.0
    operations: str = "torchvision"
    blur_border: str = "replicate"
    blur_kernel_radius: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "color_jitter_probability",
            "grayscale_probability",
            "blur_probability",
            "solarize_probability",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name, words in (("operations", OPERATIONS), ("blur_border", BLUR_BORDERS)):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be {words[0]!r} or {words[1]!r}, got {getattr(self, name)!r}")
        if not 0.0 <= self.hue <= 0.5:
            raise ValueError(f"hue must lie in [0, 0.5] (turns of the colour circle), got {self.hue}")
        if not 0.0 < self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise ValueError(
                f"blur_sigma must be (smallest, largest) with 0 < smallest <= largest, got {self.blur_sigma}"
            )
        if self.blur_kernel_radius is not None and self.blur_kernel_radius < 0:
            raise ValueError(f"blur_kernel_radius must be 0 or more pixels, got {self.blur_kernel_radius}")

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
