"""What every method's views are and do.

Views are made in two places. In a worker: the crops, resized in uint8, and the record of their geometry
(`Views.views`). On the device, in batch: quarter turns, colour and normalisation (`Views.augment`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.channels import ChannelParameters, draw_channel_parameters, render_channels
from hf_geossl.views.color import ColorJitter, ColorParameters, ColorRecipe, draw_color_parameters
from hf_geossl.views.image_settings import ImageSettings, implied_image_settings
from hf_geossl.views.photometric import Normalization, render_color
from hf_geossl.views.settings import Settings, flat_fields, nest, sort_settings
from hf_geossl.views.transformation_path import TransformationPath

Batch = dict[str, torch.Tensor]
Photometrics = ColorParameters | ChannelParameters


class Views(Settings, ABC):
    """Makes the views of one method: `views` in a worker, `collate` to a batch, `augment` on the device.

    A method's views are a dataclass of groups of settings, declared by `@dataclass(frozen=True, init=False)`. They are
    equal by value, hashable, and `dataclasses.asdict` has every setting that changes what they make. Settings are given
    flat (`GTSAViews(num_local=4)`) or as whole groups (`GTSAViews(crops=GTSACrops(num_local=4))`), and read either way.
    `views` and `augment` share no state: an instance can be copied into workers and used from several threads.

    What the images are is given flat (`channels`, `channel_names`, `dtype`, `value_range`, `mean`, `std`), or as one
    `image_format` ([`ImageFormat`]); RGB of 8 bits by default.

    Attributes:
        normalization ([`Normalization`]): A field of every subclass: mean and standard deviation of each channel.
        image ([`ImageSettings`]), channel_jitter ([`ChannelJitter`]): Fields of subclasses whose images may be other than
            RGB of 8 bits: which channels, and what happens to those that are not red, green and blue.

    Raises:
        TypeError: An unknown setting, with the nearest valid one.
        ValueError: A setting out of its range; the message names it.
    """

    accepts_pixels: ClassVar[bool] = True  # of `decode_pixels` as well as PIL images: the loader decodes to them
    normalization: Normalization

    def __init__(self, *values: object, **settings: object) -> None:
        if "exact_color" in settings:
            raise TypeError("exact_color is no setting any more: colours are always exact, so leave it out")
        flat = self.flat_settings()
        given, groups = sort_settings(type(self), flat, values, _with_format(type(self), settings))
        implied = {
            name: value
            for name, value in (implied_image_settings(given) | self.implied_settings(given)).items()
            if name in flat and flat[name].metadata["place"][0] not in groups
        }
        for name, value in nest(type(self), flat, implied | given, groups).items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.image_format  # checks that its parts fit

    def __getattr__(self, name: str) -> Any:
        """Reads a setting by its flat name."""
        flat = {} if name.startswith("_") else self.flat_settings()
        if name not in flat:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        owner, inner = flat[name].metadata["place"]
        return getattr(getattr(self, owner), inner)

    @classmethod
    def flat_settings(cls) -> dict[str, Field[Any]]:
        """The flat keywords, in the order of positional values; `metadata["help"]` of each says what it sets."""
        return flat_fields(cls)

    @classmethod
    def implied_settings(cls, given: Mapping[str, object]) -> dict[str, object]:
        """Flat settings that follow from those that are `given`, where they are not given themselves."""
        return {}

    @property
    def global_size(self) -> int:
        """Side in pixels of the views that stand for a whole image: by default the setting of the crops."""
        return self.crops.global_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, for images in [0, 1]."""
        return self.normalization.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, for images in [0, 1]."""
        return self.normalization.std

    @cached_property
    def image_format(self) -> ImageFormat:
        """What the images are; RGB of 8 bits for views without a group `image`."""
        settings = vars(self).get("image", ImageSettings())
        return cast(ImageSettings, settings).describe(self.mean, self.std)

    @property
    def in_units(self) -> bool:
        """Whether crops are float32 in units of the value range, from 0 to 1, not uint8."""
        return not self.image_format.is_uint8

    def __call__(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """The same as `views`."""
        return self.views(image, seed)

    @abstractmethod
    def views(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """Crops of one image and the record of what was done to them.

        Args:
            image (`PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`): See `read_pixels`; any size from one pixel. A
                tensor of the crops' type is pixels that `decode_pixels` gave; an array has the values that files store.
            seed (`int`, *optional*): The result is a function of image and seed alone; if absent the seed is drawn from
                torch's global generator.

        Returns:
            `dict[str, torch.Tensor]`: crops (in channels-last memory; uint8, or float32 in units of the value range for
            images of more than 8 bits), and `crop_boxes` (`(views, 4)`, float32, x1,
            y1, x2, y2 in pixels of the source image, integers), `flips` (`(views,)`, bool: mirrored left to right) and
            `quarter_turns` (`(views,)`, int64: counter-clockwise, 0 to 3, still to be done by `augment`).

        Raises:
            BrokenImageError, TypeError: As `read_pixels`.
        """

    @abstractmethod
    def augment(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """Turns, colours and normalises the crops of a batch on the device that holds them.

        Args:
            batch (`dict[str, torch.Tensor]`): What `collate` returned; it is left as it is.
            generator (`torch.Generator`, *optional*): Source of all random numbers; torch's global CPU generator if
                absent. The host waits for the device only if the generator is on an accelerator.

        Returns:
            `dict`: the arguments of the model's `forward`.
        """

    @abstractmethod
    def normalize(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """`augment` without change of colour or transformation: the crops turned and normalised, nothing random."""

    @abstractmethod
    def main_crops(self, batch: Batch) -> torch.Tensor:
        """The crops of a batch that stand for the images, for pictures; not turned yet.

        Returns:
            `torch.Tensor` of shape `(batch, channels, global_size, global_size)`: uint8, or float32 in units.
        """

    @abstractmethod
    def describe(self) -> str:
        """The views in one line of words, for a model card."""

    def draw_photometrics(
        self, recipe: ColorRecipe, num_views: int, generator: torch.Generator | None = None
    ) -> Photometrics:
        """Draws what happens to the colours, or the channels, of some views: parameters for `render`."""
        if self.image_format.is_rgb:
            return draw_color_parameters(recipe, num_views, generator)
        channels = self.image_format.num_channels
        return draw_channel_parameters(recipe, self.channel_jitter, num_views, channels, generator)

    def render(
        self, images: torch.Tensor, parameters: Photometrics | None, recipe: ColorRecipe, *, unrounded: bool = False
    ) -> torch.Tensor:
        """Changes colours or channels of crops `(views, channels, height, width)` and normalises them.

        See `render_color` and `render_channels`; `unrounded` says that crops of a format of 8 bits were not rounded.
        """
        render: Any = render_color if self.image_format.is_rgb else render_channels
        return render(
            images,
            parameters,
            recipe=recipe,
            mean=self.mean,
            std=self.std,
            unrounded=unrounded and not self.in_units,
            in_units=self.in_units,
        )

    def transform(
        self, path: TransformationPath, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws the ends of paths of normalised images and renders them and the points between, see `TransformationPath`."""
        image_format = self.image_format
        channels = None if image_format.is_rgb else image_format.num_channels
        parameters = path.draw(len(images), generator, channels)
        return path.render(images, parameters, self.mean, self.std, clip=not self.in_units)

    def describe_photometrics(self, color: ColorJitter, colors: Sequence[str]) -> list[str]:
        """What happens to the channels in words: `colors` for red, green and blue, with the format of other images."""
        image_format = self.image_format
        if image_format.is_rgb8:
            return list(colors)
        words = list(colors)
        if not image_format.is_rgb:
            words = self.channel_jitter.describe(color.brightness, color.contrast, color.color_jitter_probability)
        return [image_format.describe().replace("; ", " of "), *words, "nothing clipped"]

    @staticmethod
    def collate(samples: Sequence[Batch]) -> Batch:
        """Stacks the views of several images; crops in channels-last memory stay there.

        Raises:
            ValueError: No samples, or samples of different keys.
        """
        if not samples:
            raise ValueError("samples must hold at least one image, got none")
        for position, sample in enumerate(samples):
            if sample.keys() != samples[0].keys():
                raise ValueError(
                    f"samples must have the same keys: sample 0 has {sorted(samples[0])}, "
                    f"sample {position} has {sorted(sample)}"
                )
        return {key: _stack([sample[key] for sample in samples]) for key in samples[0]}


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    if not tensors[0].is_contiguous():  # crops in channels-last memory
        return _stack([tensor.movedim(-3, -1) for tensor in tensors]).movedim(-1, -3)
    return default_collate(tensors)  # in a worker straight into the memory that it shares


def percent(value: float) -> str:
    """A share in words, such as "12.5%"."""
    return f"{100 * value:g}%"


def describe_crops(size: int, scale: tuple[float, float]) -> str:
    """Size and share of the image of a kind of crops, in words."""
    return f"of {size} x {size} pixels from {percent(scale[0])} to {percent(scale[1])} of the image"


def _with_format(cls: type[Views], settings: Mapping[str, object]) -> dict[str, object]:
    """Settings in which an `image_format` has become the groups that hold its parts.

    Raises:
        ValueError: For other images than RGB of 8 bits, where views have no group that says what they are.
    """
    others = {name: value for name, value in settings.items() if name != "image_format"}
    given = settings.get("image_format")
    if given is None:
        return others
    image_format = given if isinstance(given, ImageFormat) else ImageFormat.from_dict(cast(Any, given))
    normalization = Normalization(image_format.mean, image_format.std)
    if "image" in {entry.name for entry in fields(cls)}:
        return {"image": ImageSettings.of(image_format), "normalization": normalization, **others}
    if not image_format.is_rgb8:
        raise ValueError(
            f"{cls.__name__} makes views of RGB of 8 bits alone, got images of {image_format.describe()}; give the class "
            "fields image and channel_jitter"
        )
    return {"normalization": normalization, **others}
