"""What an image is: channels, names, stored type, value range, mean and deviation, in one place that travels with the weights."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Protocol, Self, TypeVar, cast

import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RGB_NAMES = ("red", "green", "blue")

# stored type -> its whole range; floating point files are expected to hold 0 to 1
TYPE_RANGES = {
    "uint8": (0.0, 255.0),
    "uint16": (0.0, 65535.0),
    "int16": (-32768.0, 32767.0),
    "uint32": (0.0, 4294967295.0),
    "int32": (-2147483648.0, 2147483647.0),
    "float16": (0.0, 1.0),
    "float32": (0.0, 1.0),
    "float64": (0.0, 1.0),
}
# types whose values float32 may not hold exactly: the low end is subtracted in float64
_WIDE = ("uint32", "int32", "float64", "int64", "uint64")


class _Array(Protocol):
    """What NumPy's arrays and torch's tensors have in common."""

    @property
    def dtype(self) -> object: ...

    @property
    def shape(self) -> Sequence[int]: ...


Pixels = TypeVar("Pixels", bound=_Array)


@dataclass(frozen=True)
class ImageFormat:
    """Describes the images of a model: what is read from a file, and which stored values become 0 and 1.

    Args:
        channels (`str` or `tuple[int, ...]`, *optional*, defaults to `"rgb"`): `"rgb"` takes colour files as red, green
            and blue and repeats the channel of others; `"gray"` takes the luminance of colour files and the channel of
            others; numbers are those of the file's channels counted from 1, in the model's order.
        names (`tuple[str, ...]`, *optional*, defaults to red, green, blue): one a channel.
        dtype (`str`, *optional*, defaults to `"uint8"`): type that the files store: uint8, uint16, int16, uint32, int32,
            float16, float32 or float64.
        value_range (`tuple[tuple[float, float], ...]`, *optional*, defaults to `((0, 255),)`): stored values that become
            0 and 1; one pair for all channels, or one a channel.
        range_source (`str`, *optional*, defaults to `"type"`): how the range was chosen, for people: `"type"` (the whole
            range of the type), `"given"`, `"bits:12"`, `"percentiles:1,99"`, `"window:40,400"`.
        mean, std (`tuple[float, ...]`, *optional*): of values that were mapped to 0..1, one a channel; ImageNet's by
            default.

    Raises:
        ValueError: if a value makes no sense; the message names it.
    """

    channels: str | tuple[int, ...] = "rgb"
    names: tuple[str, ...] = RGB_NAMES
    dtype: str = "uint8"
    value_range: tuple[tuple[float, float], ...] = ((0.0, 255.0),)
    range_source: str = "type"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        # JSON has lists; written past the frozen class, as dataclasses do it themselves
        for name, value in (
            ("channels", _channels(self.channels)),
            ("names", tuple(str(name) for name in _listed("names", self.names))),
            ("value_range", tuple(_pair(pair) for pair in _listed("value_range", self.value_range))),
            ("mean", _numbers("mean", self.mean)),
            ("std", _numbers("std", self.std)),
        ):
            object.__setattr__(self, name, value)
        if self.dtype not in TYPE_RANGES:
            raise ValueError(f"dtype must be one of {', '.join(TYPE_RANGES)}, got {self.dtype!r}")
        count = self.num_channels
        for name in ("names", "mean", "std"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"{name} must have one entry for each of the {count} channels, got {getattr(self, name)}"
                )
        if len(self.value_range) not in (1, count):
            raise ValueError(
                f"value_range must be one pair, or one for each of the {count} channels, got {len(self.value_range)} pairs"
            )
        if self.is_uint8 and not all(0 <= mean <= 1 for mean in self.mean):
            raise ValueError(
                f"mean and std must be those of values mapped to 0..1, got {self.mean} and {self.std}: divide by 255"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be greater than 0 in every channel, got {self.std}")

    @property
    def num_channels(self) -> int:
        """Channels of the model's images."""
        return len(self.channels) if isinstance(self.channels, tuple) else {"rgb": 3, "gray": 1}[self.channels]

    @property
    def is_rgb(self) -> bool:
        """Whether the channels are colours that people see, so that hue, saturation and grey mean something."""
        return self.names == RGB_NAMES

    @property
    def is_rgb8(self) -> bool:
        """Whether these are plain colour images of 8 bits, whatever their mean and deviation."""
        return self.channels == "rgb" and self.is_rgb and self.is_uint8

    @property
    def is_uint8(self) -> bool:
        """Whether the pixels are used as the 8 bits that the files hold."""
        return self.dtype == "uint8" and set(self.value_range) == {TYPE_RANGES["uint8"]}

    @property
    def takes_pictures(self) -> bool:
        """Whether pictures of 8 bits are scaled to the range of these scans of more bits: their 255 is white."""
        return self.dtype in ("uint16", "uint32") and len(self.value_range) == 1

    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The stored values that become 0 and 1, one pair for each channel."""
        return self.value_range if len(self.value_range) > 1 else self.value_range * self.num_channels

    def to_unit(self, pixels: Pixels, channels_last: bool = True) -> Pixels:
        """Maps stored values to units: the low end of the range becomes 0, the high end 1; nothing is clipped.

        Args:
            pixels (`numpy.ndarray` or `torch.Tensor` of shape `(..., channels)`): of any type.
            channels_last (`bool`, *optional*, defaults to `True`): otherwise of shape `(..., channels, height, width)`.

        Returns:
            `numpy.ndarray` or `torch.Tensor`: float32, of the same shape.

        Raises:
            ValueError: for another number of channels.
        """
        axis = -1 if channels_last else -3
        if pixels.shape[axis] != self.num_channels:
            raise ValueError(
                f"pixels must have {self.num_channels} channels in dimension {axis}, got shape {tuple(pixels.shape)}"
            )
        wide = str(pixels.dtype).rpartition(".")[2] in _WIDE
        kind = np.float64 if wide else np.float32
        low = np.array([pair[0] for pair in self.value_range], dtype=kind)  # one for all channels, or one a channel
        width = np.array([pair[1] - pair[0] for pair in self.value_range], dtype=kind)
        if not channels_last:
            low, width = low[:, None, None], width[:, None, None]
        if isinstance(pixels, np.ndarray):
            if not low.any() and (width == 1).all():
                return cast(Pixels, pixels.astype(np.float32, copy=False))
            values: np.ndarray = pixels.astype(kind)
            values -= low
            values /= width
            return cast(Pixels, values.astype(np.float32, copy=False))
        tensor = pixels.double() if wide else pixels.float()  # type: ignore[attr-defined]
        return cast(Pixels, ((tensor - tensor.new_tensor(low)) / tensor.new_tensor(width)).float())

    def to_dict(self) -> dict[str, object]:
        """Returns plain values for JSON, as [`from_dict`] takes them."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Makes a format of what `to_dict` returned, also through JSON.

        Raises:
            ValueError: for unknown entries, and values that make no sense.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(
                f"image_format has no {', '.join(unknown)}; it has {', '.join(f.name for f in fields(cls))}"
            )
        return cls(**values)  # type: ignore[arg-type]

    def describe(self) -> str:
        """Says in one line what the images are, for cards and terminals."""
        numbers = self.channels if isinstance(self.channels, tuple) else ()
        names = [
            f"{name} ({n})" if name != f"channel {n}" else name for n, name in zip(numbers, self.names, strict=False)
        ]
        shown = ", ".join(names or self.names)
        if len(numbers) > 1 and self.names == tuple(f"channel {n}" for n in numbers):  # nothing but numbers to say
            row = list(range(numbers[0], numbers[0] + len(numbers)))
            shown = f"{numbers[0]} to {numbers[-1]}" if list(numbers) == row else ", ".join(map(str, numbers))
        pairs = list(dict.fromkeys(self.value_range))
        ranges = f"{pairs[0][0]:g} to {pairs[0][1]:g}" if len(pairs) == 1 else "of each channel its own range"
        count = "1 channel" if self.num_channels == 1 else f"{self.num_channels} channels"
        return f"{count}: {shown}; {self.dtype}, values {ranges} ({self.range_source})"


def _channels(value: object) -> str | tuple[int, ...]:
    if isinstance(value, str):
        if value in ("rgb", "gray"):
            return value
        raise ValueError(f'channels must be "rgb", "gray" or numbers of the file\'s channels from 1, got {value!r}')
    numbers = tuple(_whole(number) for number in _listed("channels", value))
    if not numbers or min(numbers) < 1:
        raise ValueError(f"channels are counted from 1, got {list(numbers)}")
    return numbers


def _whole(value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"channels must be whole numbers counted from 1, got {value!r}") from None


def _listed(name: str, value: object) -> Iterable[object]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list, got {value!r}")
    return value


def _numbers(name: str, value: object) -> tuple[float, ...]:
    try:
        numbers = tuple(float(entry) for entry in _listed(name, value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a list of numbers, got {value!r}") from None
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{name} must be finite numbers, got {value!r}")
    return numbers


def _pair(value: object) -> tuple[float, float]:
    numbers = _numbers("value_range", value)
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"each value_range must be two numbers, low < high, got {value!r}")
    return numbers[0], numbers[1]


def _plain(value: object) -> object:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value
