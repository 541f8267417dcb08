"""What every method's views are and do.

Views are made in two places. In a worker: the crops, resized in uint8, and the record of their geometry
(`Views.views`). On the device, in batch: quarter turns, colour and normalisation (`Views.augment`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from hf_geossl.views.photometric import Normalization
from hf_geossl.views.settings import Settings, flat_fields, nest, sort_settings

Batch = dict[str, torch.Tensor]


class Views(Settings, ABC):
    """Makes the views of one method: `views` in a worker, `collate` to a batch, `augment` on the device.

    A method's views are a dataclass of groups of settings, declared by `@dataclass(frozen=True, init=False)`. They are
    equal by value, hashable, and `dataclasses.asdict` has every setting that changes what they make. Settings are given
    flat (`GTSAViews(num_local=4)`) or as whole groups (`GTSAViews(crops=GTSACrops(num_local=4))`), and read either way.
    `views` and `augment` share no state: an instance can be copied into workers and used from several threads.

    Attributes:
        normalization ([`Normalization`]): A field of every subclass: mean and standard deviation of each channel.

    Raises:
        TypeError: An unknown setting, with the nearest valid one.
        ValueError: A setting out of its range; the message names it.
    """

    accepts_pixels: ClassVar[bool] = True  # uint8 of (height, width, 3) as well as PIL images: the loader decodes to it
    normalization: Normalization

    def __init__(self, *values: object, **settings: object) -> None:
        if "exact_color" in settings:
            raise TypeError("exact_color is no setting any more: colours are always exact, so leave it out")
        flat = self.flat_settings()
        given, groups = sort_settings(type(self), flat, values, settings)
        implied = {
            name: value
            for name, value in self.implied_settings(given).items()
            if flat[name].metadata["place"][0] not in groups
        }
        for name, value in nest(type(self), flat, implied | given, groups).items():
            object.__setattr__(self, name, value)
        self.__post_init__()

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
    def mean(self) -> tuple[float, float, float]:
        """Mean of each channel, for images in [0, 1]."""
        return self.normalization.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of each channel, for images in [0, 1]."""
        return self.normalization.std

    def __call__(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """The same as `views`."""
        return self.views(image, seed)

    @abstractmethod
    def views(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """Crops of one image and the record of what was done to them.

        Args:
            image (`PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`): See `read_pixels`; any size from one pixel.
            seed (`int`, *optional*): The result is a function of image and seed alone; if absent the seed is drawn from
                torch's global generator.

        Returns:
            `dict[str, torch.Tensor]`: uint8 crops (in channels-last memory), and `crop_boxes` (`(views, 4)`, float32, x1,
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
            `torch.Tensor` of shape `(batch, 3, global_size, global_size)`: uint8.
        """

    @abstractmethod
    def describe(self) -> str:
        """The views in one line of words, for a model card."""

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
