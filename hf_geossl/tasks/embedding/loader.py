"""Images decoded ahead by worker processes, in order, in pieces of work that depend on the dataset alone."""

import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.notes import Note, collect_notes
from hf_geossl.data.wording import without_arguments
from hf_geossl.tasks.embedding.images import DatasetImages, Row
from hf_geossl.tasks.embedding.inputs import ImageInputs, Picture, thumbnail_of
from hf_geossl.tasks.embedding.tiles import Box, tile_boxes

# what a user can mend keeps its type and message when it comes from a worker
_CLEAR_ERRORS = (ConnectionError, OSError, ValueError, TypeError)


@dataclass(frozen=True)
class Shard:
    """A piece of the output: consecutive rows of a unit of the dataset."""

    unit: int
    number: int


@dataclass(frozen=True)
class Work:
    """Rows that are decoded together.

    Args:
        shard ([`Shard`]): That they belong to.
        rows (`list[Row]`): At most a batch; none of a unit without rows.
        ends (`bool`): Whether the shard ends with them.
        last (`bool`): Whether the unit ends with them.
    """

    shard: Shard
    rows: list[Row]
    ends: bool
    last: bool


@dataclass
class Decoded:
    """What has been made of a `Work`.

    Args:
        work ([`Work`]): Without the rows' values.
        keys (`list[str]`), sizes (`list[(int, int)]`, height and width), boxes (`list[Box]`), carried (`list[dict]`): One a
            tile; an image that is not cut is one.
        thumbnails (`list[numpy.ndarray]`): Of each tile, see `thumbnail_of`.
        images (`list[int]`): How many tiles each image has.
        pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`, *optional*): None where all are broken.
        broken (`list[(str, str)]`): Key and reason.
        notes (`list[(str, list[Note])]`): Key of an image, and what decoding did to it.
    """

    work: Work
    keys: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    carried: list[dict[str, Any]] = field(default_factory=list)
    thumbnails: list[np.ndarray] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    pixel_values: torch.Tensor | None = None
    broken: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, list[Note]]] = field(default_factory=list)

    def pin_memory(self) -> "Decoded":
        """For `DataLoader`, in whose thread it is called."""
        if self.pixel_values is not None:
            self.pixel_values = self.pixel_values.pin_memory()
        return self


class Decoder(Dataset):
    """Decodes rows: the dataset of a `DataLoader`, whose sampler gives the rows themselves.

    Args:
        images ([`DatasetImages`]): Where rows come from.
        inputs ([`ImageInputs`]): What becomes of an image.
        tile, tile_overlap (`int`): As in `tile_boxes`.
    """

    def __init__(self, images: DatasetImages, inputs: ImageInputs, tile: int | None, tile_overlap: int) -> None:
        self.images, self.inputs, self.tile, self.tile_overlap = images, inputs, tile, tile_overlap

    def __getitems__(self, work: Work) -> Decoded | Exception:
        """Decodes the rows of a `Work`; an error that a user can mend is returned, to be raised in the main process."""
        try:
            return self.decode(work)
        except _CLEAR_ERRORS as error:
            return error

    def decode(self, work: Work) -> Decoded:
        """Decodes the rows of a `Work`.

        Raises:
            ValueError: If images come out of the processor in different sizes.
        """
        decoded = Decoded(Work(work.shard, [], work.ends, work.last))
        made: list[torch.Tensor] = []
        for row in work.rows:
            key, values = self.images.read(row)
            try:
                with collect_notes() as notes:
                    picture = self.inputs.open(self.images.image_of(values))
            except BrokenImageError as error:
                decoded.broken.append((key, without_arguments(error.reason)))
                continue
            if notes:
                decoded.notes.append((key, notes))
            width, height = _size_of(picture)
            boxes = tile_boxes(width, height, self.tile, self.tile_overlap)
            carried = self.images.carried_of(values)
            for box in boxes:
                part = _cut(picture, box) if len(boxes) > 1 else picture
                made.append(self.inputs.pixel_values(part))
                decoded.thumbnails.append(thumbnail_of(part))
                decoded.keys.append(key)
                decoded.sizes.append((height, width))
                decoded.boxes.append(box)
                decoded.carried.append(carried)
            decoded.images.append(len(boxes))
        if made:
            if len(shapes := {tuple(values.shape) for values in made}) > 1:
                some = " and ".join(" x ".join(map(str, shape[-2:])) for shape in sorted(shapes)[:2])
                raise ValueError(
                    f"the model's image processor makes images of several sizes, such as {some}: give image_size "
                    "(--image_size), to which all are scaled"
                )
            decoded.pixel_values = torch.stack(made)
        return decoded


def decoded_ahead(decoder: Decoder, works: Iterable[Work], num_workers: int, *, pin_memory: bool) -> Iterator[Decoded]:
    """Decodes works in order, ahead of whoever takes them.

    Args:
        decoder ([`Decoder`]): Decodes them.
        works (`Iterable[Work]`): Read ahead in a thread, for rows of a stream may have to be downloaded.
        num_workers (`int`): Processes; 0 decodes in this one, when a result is asked for.
        pin_memory (`bool`): Whether results are put where a GPU copies them from at full speed.
    """
    ahead = _Ahead(works, 2 * max(1, num_workers))
    loader: DataLoader = DataLoader(
        decoder,
        batch_sampler=ahead,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        prefetch_factor=(2 if decoder.tile is None else 1) if num_workers else None,  # a large image is many tiles
        worker_init_fn=_ignore_interrupt,
        generator=torch.Generator(),
    )
    try:
        for decoded in loader:
            if isinstance(decoded, Exception):
                raise decoded
            yield decoded
    finally:
        ahead.stop()


def plan(
    images: DatasetImages,
    batch_size: int,
    shard_rows: int,
    is_wanted: Callable[[Shard], bool],
    is_finished: Callable[[int], bool],
) -> Iterator[Work]:
    """Divides a dataset into works.

    Args:
        images ([`DatasetImages`]): The dataset.
        batch_size (`int`): Rows of a work.
        shard_rows (`int`): Rows of a shard, a multiple of it.
        is_wanted (`Callable`): Whether a shard is to be made, by this process.
        is_finished (`Callable`): Whether all shards of a unit are there, which needs no reading then.
    """
    for unit in range(images.units):
        if is_finished(unit):
            continue
        number = 0
        while True:
            shard = Shard(unit, number)
            if images.count is not None:  # any row can be read: those of other shards are passed over
                start, stop = number * shard_rows, min((number + 1) * shard_rows, images.count)
                is_end = stop == images.count
                if is_wanted(shard):
                    yield from _works(shard, images.from_place(0, start), stop - start, batch_size, is_end)
                if is_end:
                    break
                number += 1
                continue
            yield from _stream_works(images, unit, batch_size, shard_rows, is_wanted)
            break


def _works(shard: Shard, rows: Iterator[Row], count: int, batch_size: int, last: bool) -> Iterator[Work]:
    done = 0
    while True:
        batch = list(islice(rows, min(batch_size, count - done)))
        done += len(batch)
        yield Work(shard, batch, done == count, last and done == count)
        if done == count:
            return


def _stream_works(
    images: DatasetImages, unit: int, batch_size: int, shard_rows: int, is_wanted: Callable[[Shard], bool]
) -> Iterator[Work]:
    """The works of a unit of a stream, whose end shows when it is read."""
    rows, done = images.from_place(unit, 0), 0
    batch = list(islice(rows, batch_size))
    while True:
        following = list(islice(rows, batch_size))
        shard = Shard(unit, done // shard_rows)
        done += len(batch)
        if is_wanted(shard):
            yield Work(shard, batch, not following or done % shard_rows == 0, not following)
        if not following:
            return
        batch = following


class _Ahead:
    """Runs an iterator in a thread, a few entries ahead; iterable once."""

    def __init__(self, entries: Iterable[Work], ahead: int) -> None:
        self._entries, self._queue = entries, queue.Queue[Work | BaseException | None](ahead)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Work]:
        threading.Thread(target=self._run, daemon=True).start()
        while (entry := self._queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry

    def _run(self) -> None:
        try:
            for entry in self._entries:
                self._put(entry)
                if self._stopped.is_set():
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, entry: Work | BaseException | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(entry, timeout=0.2)
                return


def _size_of(picture: Picture) -> tuple[int, int]:
    """Width and height."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[2], picture.shape[1])


def _cut(picture: Picture, box: Box) -> Picture:
    if isinstance(picture, Image.Image):
        return picture.crop(box)
    left, top, right, bottom = box
    return picture[:, top:bottom, left:right]


def _unchanged(decoded: object) -> object:
    return decoded


def _ignore_interrupt(worker: int) -> None:
    """Leaves Ctrl-C to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
