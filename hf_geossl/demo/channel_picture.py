"""Pictures for models whose images are not RGB of 8 bits: what the model sees, and its false colours for people."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from PIL import Image

from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.display import Limits, display_limits, to_display

Channels = tuple[int, ...] | None  # which are shown, see `displayed_channels`; None for those of the format


@dataclass(frozen=True, eq=False)
class ChannelPicture:
    """A picture of any channels, with those methods of `PIL.Image.Image` that the demo uses.

    Args:
        planes (`tuple[PIL.Image.Image, ...]`): The channels, each of mode "L" where the format has 8 bits, else of mode "F"
            in units of the value range.
        image_format (`ImageFormat`): What the channels are.
    """

    planes: tuple[Image.Image, ...]
    image_format: ImageFormat
    _limits: dict[Channels, Limits | None] = field(default_factory=dict, repr=False)
    _displayed: dict[Channels, Image.Image] = field(default_factory=dict, repr=False)  # the last one

    @classmethod
    def from_pixels(cls, pixels: torch.Tensor, image_format: ImageFormat) -> Self:
        """Makes one of what `decode_pixels` gives for the format, `(height, width, channels)`."""
        return cls(
            tuple(Image.fromarray(np.ascontiguousarray(plane)) for plane in pixels.permute(2, 0, 1).numpy()),
            image_format,
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.planes[0].size

    @property
    def width(self) -> int:
        """In pixels."""
        return self.planes[0].width

    @property
    def height(self) -> int:
        """In pixels."""
        return self.planes[0].height

    def mapped(self, change: Callable[[Image.Image], Image.Image]) -> "ChannelPicture":
        """The picture whose channels have all been changed alike."""
        return ChannelPicture(tuple(map(change, self.planes)), self.image_format)

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> "ChannelPicture":
        """Scaled to `(width, height)`."""
        return self.mapped(lambda plane: plane.resize(size, resample))

    def crop(self, box: tuple[int, int, int, int]) -> "ChannelPicture":
        """What is inside of a box, x1, y1, x2, y2 in pixels."""
        return self.mapped(lambda plane: plane.crop(box))

    def transpose(self, method: Image.Transpose) -> "ChannelPicture":
        """Turned or mirrored."""
        return self.mapped(lambda plane: plane.transpose(method))

    def tobytes(self) -> bytes:
        """The values of all channels."""
        return b"".join(plane.tobytes() for plane in self.planes)

    def units(self) -> torch.Tensor:
        """The values as `(channels, height, width)`, float32, in units of the value range."""
        values = torch.from_numpy(np.stack([np.asarray(plane) for plane in self.planes])).float()
        return values / 255 if self.image_format.is_uint8 else values

    def displayed(self, channels: Channels = None) -> Image.Image:
        """The picture in false colours, from its own percentiles; not to be changed."""
        found = self._displayed.get(channels)
        if found is None:
            found = self.display(self.units(), channels)
            self._displayed.clear()
            self._displayed[channels] = found
        return found

    def display(self, units: torch.Tensor, channels: Channels = None) -> Image.Image:
        """Another image `(channels, height, width)` in units, in the false colours of this one, to be compared with it."""
        if channels not in self._limits:
            self._limits[channels] = display_limits(self.units(), self.image_format, channels)
        values = units * 255 if self.image_format.is_uint8 else units
        shown = to_display(values, self.image_format, channels, self._limits[channels])
        return Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())


Picture = Image.Image | ChannelPicture  # as a model sees it: RGB of 8 bits, or of the model's format


def displayed(picture: Picture, channels: Channels = None) -> Image.Image:
    """What people see of a picture: itself, or false colours."""
    return picture if isinstance(picture, Image.Image) else picture.displayed(channels)


def stack_units(pictures: Sequence[Picture]) -> torch.Tensor:
    """Pictures of one kind and size as `(pictures, channels, height, width)`, float32, in units of the value range."""
    if all(isinstance(picture, ChannelPicture) for picture in pictures):
        return torch.stack([picture.units() for picture in pictures if isinstance(picture, ChannelPicture)])
    width, height = pictures[0].size
    values = torch.stack([torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8) for one in pictures])
    return values.view(-1, height, width, 3).permute(0, 3, 1, 2).float() / 255
