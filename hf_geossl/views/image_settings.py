"""What the images of views are, as settings: channels, their names, stored type and value range."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from hf_geossl.modeling.image_format import RGB_NAMES, TYPE_RANGES, ImageFormat
from hf_geossl.views.settings import Settings, setting


@dataclass(frozen=True)
class ImageSettings(Settings):
    """The parts of an [`ImageFormat`] that a `Normalization` has not; see there for what each means."""

    channels: str | tuple[int, ...] = setting(
        "rgb", 'Channels that are read: "rgb", "gray", or numbers of the file\'s channels counted from 1.'
    )
    names: tuple[str, ...] = setting(RGB_NAMES, "Names of the channels; channel 1, channel 2, ... if absent.")
    dtype: str = setting("uint8", "Type of the values that the files store.", words=tuple(TYPE_RANGES))
    value_range: tuple[tuple[float, float], ...] = setting(
        ((0.0, 255.0),),
        "Stored values that become 0 and 1: a pair for all channels, or one for each; the type's whole range if absent.",
    )
    range_source: str = setting("type", "How the value range was chosen, for people.", flat=False)

    @classmethod
    def of(cls, image_format: ImageFormat) -> Self:
        """The settings of a format."""
        return cls(
            image_format.channels,
            image_format.names,
            image_format.dtype,
            image_format.value_range,
            image_format.range_source,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        values: Sequence[object] = self.value_range
        if len(values) == 2 and not any(isinstance(value, Sequence) for value in values):
            values = [values]  # one pair alone
        ranges = tuple(tuple(map(float, pair)) if isinstance(pair, Sequence) else pair for pair in values)
        object.__setattr__(self, "value_range", ranges)

    def describe(self, mean: Sequence[float], std: Sequence[float]) -> ImageFormat:
        """The whole format, with mean and deviation of each channel.

        Raises:
            ValueError: Settings that do not fit each other.
        """
        count = len(self.channels) if isinstance(self.channels, tuple) else {"gray": 1}.get(self.channels, 3)
        if count != len(mean) or count != len(std):
            raise ValueError(
                f"mean and std must have a number for each of the {count} channels, got {len(mean)} and {len(std)}: give "
                "those of the images mapped to 0..1 (hf_geossl.data.measurement measures them)"
            )
        return ImageFormat(
            self.channels, self.names, self.dtype, self.value_range, self.range_source, tuple(mean), tuple(std)
        )


def implied_image_settings(given: Mapping[str, object]) -> dict[str, object]:
    """Flat settings that follow from the channels and the type that are `given`."""
    implied: dict[str, object] = {}
    channels, dtype = given.get("channels", "rgb"), given.get("dtype")
    if isinstance(channels, list | tuple):
        implied["channel_names"] = tuple(f"channel {number}" for number in channels)
    elif channels == "gray":
        implied["channel_names"] = ("gray",)
    if isinstance(dtype, str) and dtype in TYPE_RANGES:
        implied["value_range"] = (TYPE_RANGES[dtype],)
    return implied


# flat keyword of views -> field
IMAGE_KEYWORDS = {"channels": "channels", "channel_names": "names", "dtype": "dtype", "value_range": "value_range"}
