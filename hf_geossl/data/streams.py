"""Endless streams of images, shuffled by unit and by block, that resume bit for bit."""

import inspect
import os
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from typing import Any

from torch.utils.data import IterableDataset

from hf_geossl.data.blocks import (
    Position,
    UnitReader,
    block_order,
    check_entries,
    refuse_difference,
    sample_seed,
    unit_order,
)
from hf_geossl.data.broken import BrokenImages, PassTally
from hf_geossl.data.images import DEFAULT_MAX_PIXELS, BrokenImageError, decode_image
from hf_geossl.data.noted import NotedImages
from hf_geossl.data.notes import collect_notes
from hf_geossl.data.sources.base import Source
from hf_geossl.data.sources.opened import source_of
from hf_geossl.data.sources.opening import open_source

Decode = Callable[[Any, int], Any]


def load_stream(
    path_or_id: str | os.PathLike[str],
    split: str = "train",
    *,
    config_name: str | None = None,
    image_column: str = "image",
    shuffle_block: int = 1000,
    seed: int = 0,
    skip_broken: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    max_broken_share: float = 0.1,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> "ImageStream":
    """Opens images from anywhere as one endless, shuffled stream that resumes exactly.

    Folders and globs of images are listed, not read: their first sample costs one file. Parquet files, tars and Hub
    datasets are read in blocks: before the first sample of a block its `shuffle_block` rows are read, encoded, so that
    with remote rows of 100 kB a block of 1000 costs a download of 100 MB and as much memory in every logical stream.
    Lower `shuffle_block` where that is too much.

    Args:
        path_or_id (`str` or path): a folder (searched to its depths) or glob of images, zips, parquet files or tars, one
            such file, a list of paths, what `save_to_disk` has written, the id of a Hub dataset, "scenes" (a folder of that
            name is "./scenes"), or "photographs" (crops of the few that scikit-image and scikit-learn carry).
        split (`str`, *optional*, defaults to `"train"`): files are divided by folders called train, validation, test.
        config_name (`str`, *optional*): configuration of the Hub dataset, or mode of the scenes.
        image_column (`str`, *optional*, defaults to `"image"`): column with the images, or of a list with their paths; in
            tars the ending of the name, the default meaning the sample's one plain image.
        shuffle_block (`int`, *optional*, defaults to 1000): rows that are read and shuffled together.
        seed (`int`, *optional*, defaults to 0): of the order and of every sample's `seed`, in [0, 2**32).
        skip_broken (`bool`, *optional*, defaults to `True`): skip, count and log what cannot be decoded.
        revision (`str`, *optional*): branch, tag or commit of the Hub dataset.
        token (`str` or `bool`, *optional*): for private and gated Hub datasets.
        max_broken_share (`float`, *optional*, defaults to 0.1): stop when more than this share of the rows is broken.
        max_pixels (`int`, *optional*, defaults to 2**26): larger images count as broken and are not decoded.

    Returns:
        `ImageStream`: see there for its samples and its state.

    Raises:
        FileNotFoundError: if nothing is there.
        PermissionError: if the Hub dataset is gated and the token does not open it.
        ValueError: if the split, the column or an argument is wrong.
        ConnectionError: if the Hub stays out of reach.
    """
    _check_positive("shuffle_block", shuffle_block)
    if split is None:
        raise ValueError("split must be the name of one split, such as 'train', got None")
    split = str(split)  # a datasets.Split too
    source = open_source(path_or_id, split, config_name, image_column, shuffle_block, revision, token)
    return ImageStream(
        source.opened_as(split, config_name, image_column),
        shuffle_block=shuffle_block,
        seed=seed,
        skip_broken=skip_broken,
        max_broken_share=max_broken_share,
        max_pixels=max_pixels,
    )


class ImageStream(IterableDataset[dict[str, Any]]):
    """An endless stream of RGB images whose position is a small dictionary.

    A sample is `{"image": PIL.Image.Image, "key": str, "seed": int}`: the image in RGB, where it came from (a file
    name, "file:row" or "unit 3 row 17"), and a number in [0, 2**63) for its augmentation, made from the stream's seed,
    the epoch, the unit and the row. Epoch follows epoch without an end; [`one_epoch`] gives a single pass.

    The rows lie in units (shards). An epoch visits all units in an order drawn for it; within a unit, each block of
    `shuffle_block` rows is read and permuted. [`shard`] divides the same order among logical streams: stream v of V
    takes the units v, v + V, v + 2V, ... of the endless list of epochs.

    `state_dict()` and `load_state_dict()` behave as those of `datasets.IterableDataset`: after k samples the state is
    the position after these k; a stream that loads it goes on with sample k + 1. Each `iter()` starts at the state
    loaded last, or at the beginning.

    Args:
        source ([`Source`]): the rows.
        shuffle_block, seed, skip_broken, max_broken_share, max_pixels: as in [`load_stream`].

    Attributes:
        decode (`Callable`): `decode_image`, or a function with its arguments, (encoded image, max_pixels) -> the image
            of a sample; raises `BrokenImageError`. [`StreamBatches`] takes `decode_pixels` for views that accept pixels.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        source: Source,
        *,
        shuffle_block: int = 1000,
        seed: int = 0,
        skip_broken: bool = True,
        max_broken_share: float = 0.1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        _check_positive("shuffle_block", shuffle_block)
        _check_positive("max_pixels", max_pixels)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
        if not 0 <= max_broken_share <= 1:
            raise ValueError(f"max_broken_share must lie in [0, 1], got {max_broken_share}")
        self.source, self.shuffle_block, self.seed, self.max_pixels = source, shuffle_block, seed, max_pixels
        self.decode: Decode = decode_image
        self.num_streams, self.index = 1, 0
        self.fingerprint: dict[str, Any] = {
            "kind": source.kind,
            **source.identity,
            "units": source.units,
            "shuffle_block": shuffle_block,
            "seed": seed,
        }
        self._start, self._position = Position(), Position()
        self._broken = BrokenImages(source.name, skip_broken, max_broken_share)
        self._noted = NotedImages()

    @classmethod
    def from_dataset(
        cls,
        dataset: object,
        image_column: str = "image",
        *,
        shuffle_block: int = 1000,
        seed: int = 0,
        skip_broken: bool = True,
        max_broken_share: float = 0.1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> "ImageStream":
        """Makes a stream of a dataset that is already open.

        Args:
            dataset (`datasets.IterableDataset`, `datasets.Dataset` or any map-style dataset): the last has `__len__`
                and a `__getitem__` that gives dicts. Complete and unshuffled: the stream splits and shuffles it. An
                iterable one of few shards is shuffled within its blocks only; raise `shuffle_block` there.
            image_column (`str`, *optional*, defaults to `"image"`): PIL images, encoded bytes, or uint8 arrays or
                tensors of shape `(height, width, channels)`.
            shuffle_block, seed, skip_broken, max_broken_share, max_pixels: as in [`load_stream`].

        Returns:
            `ImageStream`: the stream itself if `dataset` is one.

        Raises:
            TypeError: if it is none of these.
            ValueError: if it is empty, lacks the column, or is shuffled or split already.
        """
        if isinstance(dataset, ImageStream):
            return dataset
        _check_positive("shuffle_block", shuffle_block)
        return cls(
            source_of(dataset, image_column, shuffle_block).opened_as(None, None, image_column),
            shuffle_block=shuffle_block,
            seed=seed,
            skip_broken=skip_broken,
            max_broken_share=max_broken_share,
            max_pixels=max_pixels,
        )

    def shard(self, num_streams: int, index: int) -> "ImageStream":
        """Returns logical stream `index` of `num_streams`, at its beginning: no unit of an epoch is in two of them."""
        if not 0 <= index < num_streams:
            raise ValueError(f"index must lie in [0, num_streams={num_streams}), got {index}")
        if self.num_streams != 1:
            raise ValueError(f"this is already stream {self.index} of {self.num_streams}; shard the whole stream")
        return self._part(num_streams, index)

    def _part(self, num_streams: int, index: int, decode: Decode | None = None) -> "ImageStream":
        part = copy(self)
        part.num_streams, part.index = num_streams, index
        part.decode = self.decode if decode is None else decode
        part._start, part._position = Position(), Position()
        part._broken = self._broken.for_part()
        return part

    def with_decode(self, decode: Decode) -> "ImageStream":
        """Returns the same stream, at its beginning, with another `decode`."""
        return self._part(self.num_streams, self.index, decode)

    @property
    def num_images(self) -> int | None:
        """Images of one pass, broken ones among them; None where they would have to be read to be counted."""
        return self.source.num_images

    @property
    def epoch(self) -> int:
        """The pass over the data in which the position lies, from 0."""
        return (self.index + self._position.units_done * self.num_streams) // self.source.units

    @property
    def skipped_images(self) -> int:
        """How many broken images this stream has skipped since the start of training."""
        return self._position.broken

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the sample delivered last: plain values, some 600 bytes as JSON."""
        return {"fingerprint": dict(self.fingerprint), **self.position()}

    def position(self) -> dict[str, Any]:
        """Returns `state_dict()` without the fingerprint, which all logical streams share."""
        return {"num_streams": self.num_streams, "index": self.index, **self._position.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets the position at which the next `iter()` starts.

        Args:
            state (`dict`): from `state_dict()`, also through JSON.

        Raises:
            ValueError: if it was made by another stream; the message names what differs.
        """
        if not isinstance(state, dict):
            raise ValueError(f"state must be what state_dict() returned, got {type(state).__name__}")
        check_entries(state, ["fingerprint", "num_streams", "index"])
        position = Position.from_state_dict(state)
        ours = {**self.fingerprint, "num_streams": self.num_streams, "index": self.index}
        theirs = {**state["fingerprint"], "num_streams": state["num_streams"], "index": state["index"]}
        refuse_difference(theirs, ours)
        self._start, self._position = position, deepcopy(position)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # a plain loader would stack images of many sizes, and each of its workers would give every image once more
        frame = inspect.currentframe()
        caller = frame.f_back.f_globals.get("__name__") if frame is not None and frame.f_back is not None else ""
        if str(caller).startswith("torch.utils.data."):
            raise TypeError(
                "an ImageStream gives single images and does not go into a DataLoader; make the loader by "
                "StreamBatches(stream, views, batch_size).loader()"
            )
        # no generator function: the state must be right before the first next()
        self._position = deepcopy(self._start)
        return self._walk(self._position)

    def one_epoch(self, epoch: int = 0) -> Iterator[dict[str, Any]]:
        """Iterates once over all the data, in the order in which a single logical stream visits it in pass `epoch`.

        The position of the stream itself stays where it is.
        """
        units = self.source.units
        return self._part(1, epoch * units)._walk(Position(), end=units)

    def reject(self, sample: dict[str, Any], reason: str) -> None:
        """Counts the sample delivered last as broken, as if it had not been decoded; `reason` says why.

        Raises:
            BrokenStreamError: if too many are broken.
            BrokenImageError: if broken samples are not to be skipped.
        """
        self._broken.count(self._position, sample["key"], reason)

    def _walk(self, at: Position, end: int | None = None) -> Iterator[dict[str, Any]]:
        units = self.source.units
        tally = PassTally(units, self._broken)
        while end is None or at.units_done < end:
            epoch, place = divmod(self.index + at.units_done * self.num_streams, units)
            unit = int(unit_order(self.seed, epoch, units)[place])
            from_start, usable = not at.inside_unit, False
            rows_before, broken_before = at.rows, at.broken
            for sample in self._walk_unit(at, epoch, unit):
                broken = at.broken
                yield sample
                usable = usable or at.broken == broken  # the views may have rejected it
            at.end_unit()
            rows, broken = at.rows - rows_before, at.broken - broken_before
            tally.add(unit, at, rows=rows, broken=broken, from_start=from_start, usable=usable)

    def _walk_unit(self, at: Position, epoch: int, unit: int) -> Iterator[dict[str, Any]]:
        reader = UnitReader(self.source, unit, at.unit_state)
        while rows := reader.read(self.shuffle_block):
            length = len(rows)
            order = block_order(self.seed, epoch, unit, at.block, length)
            for chosen in order[at.taken :].tolist():
                row, rows[chosen] = rows[chosen], {}  # a block shrinks while it is used
                at.take_row()
                number = at.row + chosen
                key = self.source.label.format(**row) or f"unit {unit} row {number}"
                try:
                    with collect_notes() as notes:
                        image = self.decode(self.source.read(row), self.max_pixels)
                except BrokenImageError as error:
                    self._broken.count(at, key, error.reason)
                    continue
                self._noted.count(at, key, notes)
                yield {"image": image, "key": key, "seed": sample_seed(self.seed, epoch, unit, number)}
            at.end_block(length, reader.state)
            if length < self.shuffle_block:
                break


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
