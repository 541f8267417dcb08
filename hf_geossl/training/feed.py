"""From a stream to the model's inputs: batches on the device, coloured and turned from a seed of their place in the run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.evaluation_batches import FirstImages
from hf_geossl.data.streams import ImageStream
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.views.base import Views

Inputs = dict[str, Any]

# the first number of a seed's position says what is drawn there
TRAINING, EVALUATION_VIEWS, PROCESS, EVALUATION = range(4)


def seed_at(seed: int, *position: int) -> int:
    """A seed in [0, 2^63) of the run's and of a position in it, so that nothing depends on what was drawn before."""
    drawn = np.random.SeedSequence((seed, *position)).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))


class TrainingFeed:
    """Feeds a run: opens the loader, knows the position in the stream, and makes the inputs of each micro-batch.

    Attributes:
        batches (`StreamBatches` or `None`): The batches of the present call of `train`.
        micro_batch (`int`): How many micro-batches of the present step have been fed.
    """

    def __init__(self, args: TeacherStudentTrainingArguments, views: Views) -> None:
        self.args, self.views = args, views
        self.batches: StreamBatches | None = None
        self.micro_batch = 0

    def open(self, stream: ImageStream | None, saved: Sequence[dict] | None) -> DataLoader:
        """Opens the loader of this process, at the positions that a checkpoint has `saved` of each process."""
        if stream is None:
            raise ValueError("training needs a train_dataset: load_stream(...) makes one")
        args = self.args
        self.batches = StreamBatches(
            stream,
            self.views,
            args.train_batch_size,
            rank=args.process_index,
            world_size=args.world_size,
            num_streams=args.num_streams or (saved[0]["num_streams"] if saved else None),
            num_workers=args.dataloader_num_workers,
        )
        if saved:
            self.batches.load_state_dict(saved)
        return self.batches.loader(
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            # the loader's own: the global generator stays untouched
            generator=torch.Generator().manual_seed(args.seed),
        )

    def opened(self) -> StreamBatches:
        """The batches of the present call of `train`."""
        if self.batches is None:
            raise ValueError("there are batches and checkpoints during training only: call train()")
        return self.batches

    @property
    def skipped_images(self) -> int:
        """Broken images that this process has skipped since the start of the run."""
        return self.batches.skipped_images if self.batches is not None else 0

    def log_notes(self) -> None:
        """Logs how many images of the run were converted, reduced or cut in decoding."""
        if self.batches is not None:
            self.batches.log_notes("in the whole run")

    def begin_step(self) -> None:
        """Begins an optimizer step."""
        self.micro_batch = 0

    def to_device(self, batch: Mapping[str, Any]) -> Inputs:
        """Moves a batch to the device; from pinned memory without waiting for what a GPU still has to do."""
        device, is_gpu = self.args.device, self.args.device.type == "cuda"
        return {
            name: value.to(device, non_blocking=is_gpu) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }

    def make_inputs(
        self, batch: Mapping[str, object], step: int, to_device: Callable[[dict], dict]
    ) -> tuple[Inputs, list[str]]:
        """Makes the model's inputs of a batch, and names its images.

        Colours, blur and quarter turns depend on the batch's place in the run alone.
        """
        crops = dict(batch)
        keys = self.opened().advance(crops)
        # the batch's place among those of its step, however many processes share them
        place = self.micro_batch * self.args.world_size + self.args.process_index
        self.micro_batch += 1
        generator = torch.Generator().manual_seed(seed_at(self.args.seed, 0, TRAINING, step, place))
        return self.views.augment(to_device(crops), generator), keys


def as_stream(dataset: object, seed: int) -> ImageStream | FirstImages | None:
    """A stream of what a trainer was given: any dataset whose samples hold an `image`, in an order of `seed`."""
    if dataset is None or isinstance(dataset, ImageStream | FirstImages):
        return dataset
    return ImageStream.from_dataset(dataset, seed=seed)
