"""Batches of views for the Trainer, whose position is exact for any number of workers."""

import logging
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hf_geossl.data.blocks import refuse_difference
from hf_geossl.data.broken import BrokenStreamError
from hf_geossl.data.images import BrokenImageError, decode_pixels
from hf_geossl.data.notes import describe_counts
from hf_geossl.data.streams import Decode, ImageStream
from hf_geossl.modeling.image_format import ImageFormat

logger = logging.getLogger(__name__)

STATE_KEY = "stream_state"
KEYS_KEY = "keys"

# what a worker's error is raised as in the main process: the first that fits
_CLEAR_ERRORS = (BrokenStreamError, BrokenImageError, ConnectionError, OSError, ValueError, TypeError)


class ImageViews(Protocol):
    """Makes the views of one image; every random choice comes from `seed` alone.

    Views with an attribute `accepts_pixels` that is true get what `decode_pixels` gives for their `image_format` (uint8
    tensors of shape `(height, width, 3)` without one), which are decoded faster, instead of PIL images.
    """

    def __call__(self, image: Image.Image, *, seed: int) -> dict[str, torch.Tensor]:
        """Makes the views of one image; a `ValueError` counts the image as broken."""
        ...

    def collate(self, samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Stacks the views of several images."""
        ...


def decode_for(views: ImageViews) -> Decode | None:
    """How images are decoded for views: to pixels of their format; None where they take PIL images."""
    if not getattr(views, "accepts_pixels", False):
        return None
    image_format: ImageFormat | None = getattr(views, "image_format", None)
    if image_format is None or image_format.is_rgb8:
        return decode_pixels
    return partial(decode_pixels, image_format=image_format)


@dataclass(frozen=True)
class _WorkerFailure:
    """An error that a worker sends to the main process, which raises it in place of the batch."""

    error: type[Exception]
    message: str
    details: str | None = None  # the worker's traceback, where that helps

    def rebuild(self) -> Exception:
        error = self.error(self.message)
        if self.details:
            error.add_note(self.details)
        return error


class StreamBatches(IterableDataset):
    """The batches of one process ("rank"), endless, divided among the workers of a `DataLoader`.

    The data are divided into V logical streams ([`ImageStream.shard`]), fixed for the length of the training. Rank r of
    R reads the streams v with v % R == r. Batch n of a rank is filled from its stream number n % (V / R), whatever the
    number of workers, so that neither workers nor prefetching change the order of the batches.

    A batch is what `views.collate` returns and two entries more: `"keys"`, a list with the name of every image, and
    `"stream_state"`, the position after this batch. [`advance`] takes both out and records the position; what workers
    have prepared beyond it does not count. Every stream has one block of encoded rows in memory.

    Args:
        stream ([`ImageStream`]): the whole stream.
        views ([`ImageViews`]): `views(image, seed=...) -> dict` of tensors, and `views.collate(list) -> dict`.
        batch_size (`int`): images in a batch.
        rank (`int`, *optional*, defaults to 0), world_size (`int`, *optional*, defaults to 1): this process of how many.
        num_streams (`int`, *optional*): V; `world_size * max(1, num_workers)` by default. A checkpoint can only be
            resumed with the V that it was written with: fix it to be free in the number of processes and workers.
        num_workers (`int`, *optional*, defaults to 0): workers of the loader in this process.

    Raises:
        ValueError: if V cannot be divided among the ranks, or a rank's streams among its workers.
    """

    def __init__(
        self,
        stream: ImageStream,
        views: ImageViews,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_streams: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size={world_size}), got {rank}")
        num_streams = world_size * max(1, num_workers) if num_streams is None else num_streams
        if num_streams < 1 or num_streams % world_size:
            raise ValueError(
                f"num_streams must be a multiple of the {world_size} processes, got {num_streams}; "
                f"the next one is {-(-max(1, num_streams) // world_size) * world_size}"
            )
        self.stream, self.views, self.batch_size = stream, views, batch_size
        self.rank, self.world_size = rank, world_size
        self.num_streams, self.num_workers = num_streams, num_workers
        self.next_batch = 0
        self._owned = list(range(rank, num_streams, world_size))
        self._positions = {v: stream.shard(num_streams, v).position() for v in self._owned}
        self._started_in_worker = False
        self._check_workers(num_workers)

    def advance(self, batch: dict[str, Any]) -> list[str]:
        """Records that a batch has been used; takes `"stream_state"` and `"keys"` out of it and returns the keys.

        Raises:
            ValueError: if the batch is not the next one.
        """
        if STATE_KEY not in batch:
            raise ValueError(f"the batch has no {STATE_KEY!r}: it was advanced already, or is none of this loader's")
        state = batch[STATE_KEY]
        if state["batch"] != self.next_batch:
            raise ValueError(
                f"batch {state['batch']} came where batch {self.next_batch} was expected; advance every batch, in order"
            )
        del batch[STATE_KEY]
        in_first_pass = self.epoch == 0
        self._positions[state["stream"]] = state["position"]
        self.next_batch += 1
        if in_first_pass and self.epoch > 0:
            self.log_notes("in the first pass")
        return batch.pop(KEYS_KEY)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of this rank after the batch advanced last: plain values, 250 bytes a stream as JSON."""
        return {
            "fingerprint": dict(self.stream.fingerprint),
            "num_streams": self.num_streams,
            "batch_size": self.batch_size,
            "rank": self.rank,
            "world_size": self.world_size,
            "next_batch": self.next_batch,
            "streams": [deepcopy(self._positions[v]) for v in self._owned],
        }

    def load_state_dict(self, states: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Sets the position at which the next `iter()` of a loader starts.

        Args:
            states (`dict` or `Sequence[dict]`): the `state_dict()` of this rank, or of all ranks, which is needed when
                the number of processes has changed. The next batches are then the same images, if the new number of
                processes divides the number of batches delivered by all ranks together.

        Raises:
            ValueError: if the position belongs to other data or settings, or cannot be divided among the processes now.
        """
        states = [states] if isinstance(states, dict) else list(states or [])
        if not states or not all(isinstance(state, dict) and "streams" in state for state in states):
            raise ValueError("this is no state of StreamBatches; pass what state_dict() returned, or a list of them")
        for state in states:
            refuse_difference(_settings(state), _settings(self.state_dict()))
        counts = {(state["world_size"], state["next_batch"]) for state in states}
        if len(counts) > 1:
            raise ValueError(
                f"the states come from different moments: (world_size, next_batch) are {sorted(counts)}; "
                "pass the states of one checkpoint"
            )
        world_size, next_batch = counts.pop()
        by_index = {position["index"]: position for state in states for position in state["streams"]}
        missing = sorted(set(self._owned) - set(by_index))
        if missing:
            raise ValueError(
                f"rank {self.rank} of {self.world_size} reads the streams {self._owned}, but the states hold no "
                f"{missing}: the checkpoint was written by {world_size} processes; pass the states of them all as a list"
            )
        if next_batch * world_size % self.world_size:
            raise ValueError(
                f"{world_size} processes delivered {next_batch} batches each, which {self.world_size} processes cannot "
                "share evenly; resume with a number of processes that divides their product"
            )
        self._positions = {v: deepcopy(by_index[v]) for v in self._owned}
        self.next_batch = next_batch * world_size // self.world_size

    @property
    def skipped_images(self) -> int:
        """How many broken images this rank has skipped since the start of training, up to the batch advanced last."""
        return sum(position["broken"] for position in self._positions.values())

    def log_notes(self, when: str) -> None:
        """Logs how many images of this rank were converted, reduced or cut in decoding, since the start of training."""
        counts: dict[str, int] = {}
        for position in self._positions.values():
            for kind, number in position.get("notes", {}).items():
                counts[kind] = counts.get(kind, 0) + number
        images = sum(position["rows"] - position["broken"] for position in self._positions.values())
        of_process = f" (process {self.rank} of {self.world_size})" if self.world_size > 1 else ""
        for line in describe_counts(counts, images):
            logger.warning("%s%s: %s", when, of_process, line)

    @property
    def epoch(self) -> int:
        """The pass over the data that the stream furthest behind is in, from 0."""
        units = self.stream.source.units
        return min((v + at["units_done"] * self.num_streams) // units for v, at in self._positions.items())

    def loader(
        self,
        num_workers: int | None = None,
        *,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        generator: torch.Generator | None = None,
        multiprocessing_context: str | BaseContext | None = None,
    ) -> DataLoader:
        """Makes the loader of this rank; do not let `accelerator.prepare` divide it again.

        Args:
            num_workers (`int`, *optional*): those given at construction by default; must divide V / R.
            pin_memory, prefetch_factor, persistent_workers, multiprocessing_context: as in `DataLoader`. Workers that
                persist can be iterated once only; the stream has no end that would need it twice.
            generator (`torch.Generator`, *optional*): of the workers' base seed, which nothing here depends on. One of
                its own by default, so that the global generator stays as it is.

        Returns:
            `torch.utils.data.DataLoader`: endless; errors of workers are raised as what they are.
        """
        num_workers = self.num_workers if num_workers is None else num_workers
        self._check_workers(num_workers)
        return _ClearErrorLoader(
            self,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers and num_workers > 0,
            generator=generator or torch.Generator().manual_seed(self.stream.seed),
            multiprocessing_context=multiprocessing_context if num_workers > 0 else None,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_main,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is None:
            return self._deliver(0, 1, self.next_batch, deepcopy(self._positions))
        self._check_workers(worker.num_workers)
        if self._started_in_worker:
            message = "persistent workers were iterated twice; use the first iterator on, or persistent_workers=False"
            return iter([_WorkerFailure(ValueError, message)])  # type: ignore[list-item]
        self._started_in_worker = True
        return self._deliver_from_worker(worker.id, worker.num_workers)

    def _deliver(
        self, worker: int, workers: int, first_batch: int, positions: dict[int, dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        number = first_batch + worker
        streams: dict[int, ImageStream] = {}
        samples: dict[int, Iterator[dict[str, Any]]] = {}
        while True:
            v = self._owned[number % len(self._owned)]
            if v not in streams:
                stream = self.stream.shard(self.num_streams, v)
                decode = decode_for(self.views)
                streams[v] = stream if decode is None else stream.with_decode(decode)
                streams[v].load_state_dict({"fingerprint": self.stream.fingerprint, **positions[v]})
                samples[v] = iter(streams[v])
            batch = self._fill(streams[v], samples[v])
            batch[STATE_KEY] = {"batch": number, "stream": v, "position": streams[v].position()}
            yield batch
            number += workers

    def _fill(self, stream: ImageStream, samples: Iterator[dict[str, Any]]) -> dict[str, Any]:
        made: list[dict[str, torch.Tensor]] = []
        keys: list[str] = []
        while len(made) < self.batch_size:
            sample = next(samples)
            try:
                made.append(self.views(sample["image"], seed=sample["seed"]))
            except ValueError as error:
                stream.reject(sample, str(error))
                continue
            keys.append(sample["key"])
        return {**self.views.collate(made), KEYS_KEY: keys}

    def _deliver_from_worker(self, worker: int, workers: int) -> Iterator[Any]:
        try:
            yield from self._deliver(worker, workers, self.next_batch, self._positions)
        except Exception as error:
            details = f"In worker {worker} of {workers}:\n{traceback.format_exc()}"
            kind = next((kind for kind in _CLEAR_ERRORS if isinstance(error, kind)), None)
            if kind is None:
                failure = _WorkerFailure(RuntimeError, f"{type(error).__name__}: {error}", details)
            else:
                failure = _WorkerFailure(kind, str(error), details if kind in (ValueError, TypeError) else None)
            yield failure

    def _check_workers(self, num_workers: int) -> None:
        streams = len(self._owned)
        if num_workers < 0 or streams % max(1, num_workers):
            raise ValueError(
                f"num_workers must divide the {streams} streams of a process (num_streams={self.num_streams} / "
                f"world_size={self.world_size}), got {num_workers}; a num_streams that fits is "
                f"{self.world_size * max(1, num_workers)} or a multiple of it"
            )


class _ClearErrorLoader(DataLoader):
    """A `DataLoader` that raises the errors of its workers with their own type and message."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.num_workers == 0 or not hasattr(signal, "sigwaitinfo"):
            return _raise_failures(super().__iter__())
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # workers inherit it, see below
        try:
            return _raise_failures(super().__iter__())  # the workers start now, not at the first next()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise_failures(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, _WorkerFailure):
            # no variable for it: a frame that refers to its own error would leave the workers running
            raise batch.rebuild()
        yield batch


def _settings(state: dict[str, Any]) -> dict[str, Any]:
    return {**state["fingerprint"], "num_streams": state["num_streams"], "batch_size": state["batch_size"]}


def _unchanged(batch: object) -> object:
    return batch


def _leave_signals_to_main(worker: int) -> None:
    """Leaves Ctrl-C, and SIGTERM that schedulers send to all processes, to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which reports the sender of a signal; Linux has it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_main, args=(os.getppid(),), daemon=True).start()


def _end_for_main(main: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main and os.getppid() == main:
        pass
    os._exit(0)
