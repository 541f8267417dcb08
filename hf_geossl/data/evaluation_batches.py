"""Batches for evaluation during training: one pass over the images, the same views each time."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from hf_geossl.data.batches import ImageViews, decode_for
from hf_geossl.data.streams import Decode, ImageStream


class FirstImages:
    """The first `count` images (at least 1) of a stream's pass, as an `eval_dataset`."""

    def __init__(self, stream: ImageStream, count: int) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.stream, self.count = stream, count
        self.source, self.fingerprint = stream.source, stream.fingerprint

    @property
    def num_images(self) -> int:
        """The number of images, an upper bound where the stream does not know its own."""
        known = self.stream.num_images
        return self.count if known is None else min(self.count, known)

    def with_decode(self, decode: Decode) -> "FirstImages":
        """Returns the same images with another `decode`."""
        return FirstImages(self.stream.with_decode(decode), self.count)

    def one_epoch(self) -> Iterator[dict[str, Any]]:
        """Iterates over the images, in the stream's order."""
        return islice(self.stream.one_epoch(), self.count)


def samples_for(views: ImageViews, stream: ImageStream | FirstImages) -> Iterator[dict[str, Any]]:
    """Iterates over one pass of a stream, decoded for views."""
    decode = decode_for(views)
    return (stream if decode is None else stream.with_decode(decode)).one_epoch()


class EvaluationBatches:
    """One pass over a stream in batches, divided among the processes, which all get the same number of batches.

    Args:
        stream (`ImageStream` or `FirstImages`): The images.
        views (`ImageViews`): Makes the views of an image.
        batch_size (`int`): Images in a batch.
        rank, world_size (`int`): This process of how many.
        drop_last (`bool`): Leave out a last group of images that does not fill the batches of all processes, for methods
            that compare the images of a batch.

    Attributes:
        images (`int`): How many images the pass has given so far, over all processes.

    Raises:
        ValueError: When iterated, if `drop_last` leaves no batch.
    """

    def __init__(
        self,
        stream: ImageStream | FirstImages,
        views: ImageViews,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.stream, self.views, self.batch_size = stream, views, batch_size
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.images = 0

    def check_size(self) -> None:
        """Raises the `ValueError` before an image is read, where the images are known to be too few for a batch."""
        known = self.stream.num_images
        if self.drop_last and known is not None and known < self.batch_size * self.world_size:
            raise self._too_few(known)

    def _too_few(self, images: int) -> ValueError:
        size = f"{self.batch_size * self.world_size} images"
        if self.world_size > 1:
            size += f" ({self.batch_size} on each of {self.world_size} processes)"
        return ValueError(
            f"eval_dataset must hold at least a whole batch of {size}, which are compared with each other, got {images}; "
            "give more images (--eval_images) or a smaller per_device_eval_batch_size"
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        samples = samples_for(self.views, self.stream)
        batch = self.images = 0
        size = self.batch_size * self.world_size
        while group := list(islice(samples, size)):
            if self.drop_last and len(group) < size:
                if not batch:
                    raise self._too_few(len(group))
                return
            self.images += len(group)
            mine = group[self.rank :: self.world_size] or [group[self.rank % len(group)]]  # no process without a batch
            views = [self.views(sample["image"], seed=sample["seed"]) for sample in mine]
            yield {**self.views.collate(views), "evaluation_batch": batch}
            batch += 1
