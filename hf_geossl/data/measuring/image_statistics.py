"""What the images of a dataset are, counted in bounded memory: sizes, channels, types, values, notes, broken ones."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_geossl.data.measuring.channel_statistics import ChannelStatistics
from hf_geossl.data.notes import Note
from hf_geossl.data.pixel_values import are_colors, color_places, luminance
from hf_geossl.data.rasters import Raster

_VALUES_AT_ONCE = (
    2**18
)  # of a channel of one image that are counted where a sample is enough; extremes are those of all
_MOST_SIZES = 4096  # that are counted one by one
_MOST_REASONS = 256  # of broken images; others are counted as the last one
_EXAMPLES = 3
OTHER_REASONS = "other reasons"
_COUNTERS = ("sizes", "channels", "dtypes", "kinds", "names", "bits", "transparent", "pages", "notes", "broken")


@dataclass
class Measurement:
    """What images are, counted.

    Args:
        images (`int`): that were measured.
        sizes (`Counter`): images by (height, width), up to 4096 sizes; None has the others.
        channels (`Counter`): images by their number of channels, transparency not among them; [`channel_examples`] has the
            first image of each number.
        dtypes, kinds (`Counter`): images by stored type and by format of the file.
        names (`Counter`): images by the names that their files give the channels.
        bits (`Counter`): images by the number of bits that are used, where the file says so; otherwise None.
        transparent (`Counter`): images by the number of their transparency channel among all channels of the file.
        color (`int`): images whose first channels are known to be red, green and blue, and are not called otherwise.
        pages (`Counter`): images by how many pages their file has, for files of several.
        notes (`Counter`): images by what decoding did to their values; [`note_examples`] has the first of each kind.
        broken (`Counter`): unusable images by the reason; [`broken_examples`] has the first names of each.
        values (`dict`): stored type -> statistics of each channel of the file, transparency among them.
        luminance (`dict`): stored type -> statistics of the luminance of colour images.
    """

    images: int = 0
    sizes: Counter[tuple[int, int] | None] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    channel_examples: dict[int, str] = field(default_factory=dict)
    dtypes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    names: Counter[tuple[str, ...]] = field(default_factory=Counter)
    bits: Counter[int | None] = field(default_factory=Counter)
    transparent: Counter[int] = field(default_factory=Counter)
    color: int = 0
    pages: Counter[int] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    note_examples: dict[str, tuple[str, str]] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)
    broken_examples: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, list[ChannelStatistics]] = field(default_factory=dict)
    luminance: dict[str, ChannelStatistics] = field(default_factory=dict)

    def add(self, key: str, raster: Raster, notes: list[Note], sample: bool = False) -> None:
        """Adds one image.

        Args:
            key (`str`): name of the image.
            raster ([`Raster`]): its stored values.
            notes (`list[Note]`): what decoding did to them.
            sample (`bool`, *optional*): count 262,144 values of a channel at most, spread evenly, instead of all; and those
                of the luminance, of which a format of one channel needs mean and deviation.
        """
        height, width, channels = raster.pixels.shape
        size = (height, width)
        self.images += 1
        self.sizes[size if size in self.sizes or len(self.sizes) < _MOST_SIZES else None] += 1
        self.channels[channels] += 1
        self.channel_examples.setdefault(channels, key)
        self.dtypes[raster.dtype] += 1
        self.kinds[raster.kind] += 1
        self.names[tuple(raster.names)] += 1
        self.bits[raster.bits] += 1
        self.color += raster.color and are_colors(raster.names)
        if raster.alpha:
            self.transparent[raster.transparency_place + 1] += 1
        if raster.frames > 1:
            self.pages[raster.frames] += 1
        for kind in {note.kind for note in notes}:
            self.notes[kind] += 1
        for note in notes:
            self.note_examples.setdefault(note.kind, (key, note.detail))
        step = max(1, height * width // _VALUES_AT_ONCE) if sample else 1
        values = raster.all_channels()
        statistics = self.values.setdefault(raster.dtype, [])
        statistics += [ChannelStatistics(raster.dtype) for _ in range(values.shape[2] - len(statistics))]
        for number, one in enumerate(statistics[: values.shape[2]]):
            one.add(values[..., number], raster.nodata, step)
        if channels >= 3 and sample:
            colors = raster.pixels[..., color_places(raster)]
            if step > 1:
                colors = colors.reshape(-1, 3)[::step]
            gray = self.luminance.setdefault(raster.dtype, ChannelStatistics("float32"))
            gray.add(luminance(colors).astype(np.float32), raster.nodata)

    def add_broken(self, key: str, reason: str) -> None:
        """Counts an image that cannot be used."""
        if reason not in self.broken and len(self.broken) >= _MOST_REASONS:
            reason = OTHER_REASONS
        self.broken[reason] += 1
        examples = self.broken_examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(key)

    @property
    def num_broken(self) -> int:
        """Images that cannot be used."""
        return self.broken.total()

    def first_broken(self) -> str:
        """The first image that cannot be used and why, for messages."""
        return next((f"{names[0]}: {reason}" for reason, names in self.broken_examples.items()), "there are no images")

    def merge(self, other: "Measurement") -> None:
        """Adds what another has counted."""
        self.images += other.images
        self.color += other.color
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.channel_examples = {**other.channel_examples, **self.channel_examples}
        for kind, example in other.note_examples.items():
            self.note_examples.setdefault(kind, example)
        for reason, names in other.broken_examples.items():
            mine = self.broken_examples.setdefault(reason, [])
            mine += names[: _EXAMPLES - len(mine)]
        for dtype, channels in other.values.items():
            statistics = self.values.setdefault(dtype, [])
            statistics += [ChannelStatistics(dtype) for _ in range(len(channels) - len(statistics))]
            for one, theirs in zip(statistics, channels, strict=False):
                one.merge(theirs)
        for dtype, gray in other.luminance.items():
            self.luminance.setdefault(dtype, ChannelStatistics(gray.dtype)).merge(gray)

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "images": self.images,
            "color": self.color,
            "channel_examples": list(self.channel_examples.items()),
            "note_examples": self.note_examples,
            "broken_examples": self.broken_examples,
            "values": {dtype: [one.state_dict() for one in channels] for dtype, channels in self.values.items()},
            "luminance": {dtype: one.state_dict() for dtype, one in self.luminance.items()},
            **{name: list(getattr(self, name).items()) for name in _COUNTERS},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Measurement":
        """Makes the measurement of what `state_dict` returned, also through JSON."""
        counters = {name: Counter({_hashable(key): count for key, count in state[name]}) for name in _COUNTERS}
        return cls(
            images=state["images"],
            color=state["color"],
            channel_examples=dict(state["channel_examples"]),
            note_examples={kind: (example[0], example[1]) for kind, example in state["note_examples"].items()},
            broken_examples={reason: list(names) for reason, names in state["broken_examples"].items()},
            values={
                dtype: [ChannelStatistics.from_state_dict(one) for one in channels]
                for dtype, channels in state["values"].items()
            },
            luminance={dtype: ChannelStatistics.from_state_dict(one) for dtype, one in state["luminance"].items()},
            **counters,
        )


def _hashable(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
