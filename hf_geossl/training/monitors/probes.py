"""Reads the instruments of a run: on a fixed set of images, of the teacher, with the floors beside every number."""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.monitors.instruments import (
    INSTRUMENTS,
    Encode,
    Encoded,
    LabelledImages,
    ProbeDataset,
    chance_levels,
    encode_thumbnail,
    in_units,
    measure,
)
from hf_geossl.training.monitors.schedule import ProbeSchedule
from hf_geossl.training.sharding import reshard, unshard
from hf_geossl.views.base import Views

logger = logging.getLogger(__name__)

PARTS = ".features"  # folder in that of the run
IMAGES, FLOORS = "probe_images.safetensors", "floors.json"
RANDOM_WEIGHTS, THUMBNAIL, CHANCE = "random weights", "thumbnail", "chance"  # the floors
SEED = 0  # of the random weights, as in an evaluation
TRIAL = 8  # images that are encoded to know how long it takes
FEWEST, MOST = 64, 512  # images of a set whose size is not given
SHARE_OF_IMAGES = 90  # a set has this part of the images that the run sees

Targets = Callable[[TeacherStudentModel, Any], dict[str, torch.Tensor]]
Value = TypeVar("Value")


class Probes:
    """The instruments of a run.

    They are read on a fixed set: the labelled images, or else crops of the first images of the run. Nothing of the run
    changes: no random number is drawn, and no weight or mode of a module is other than before.

    Args:
        args (`TeacherStudentTrainingArguments`): The run's.
        views (`Views`): The run's.
        run_dir (`Path`): Folder of the run, where crops and floors are kept for a resume.
        targets (`Callable`): What a method's teacher makes of its trunk's outputs, see `TeacherStudentTrainer.probe_targets`.
        dataset (`ProbeDataset`, *optional*): Labelled images.

    Attributes:
        floors (`dict[str, dict[str, float]]`): By instrument what random weights of the same architecture, a thumbnail and
            chance reach; empty before the first measurement.
        chosen_by (`str`): What the best checkpoint is chosen by, as `measure` calls it; empty for nothing.
        contrast (`float` or `None`): Deviation of the normalised values inside an image of the set.
    """

    def __init__(
        self,
        args: TeacherStudentTrainingArguments,
        views: Views,
        run_dir: Path,
        targets: Targets,
        dataset: ProbeDataset | None = None,
    ) -> None:
        self.args, self.views, self.parts, self.targets = args, views, run_dir / PARTS, targets
        self.dataset = dataset
        self.schedule = ProbeSchedule(args.probe_every_steps, args.probe_time_share, args.max_steps)
        self.chosen_by = (args.metric_for_best_model or "").removeprefix("eval_")
        self.floors: dict[str, dict[str, float]] = {}
        self.contrast: float | None = None
        self.labelled: LabelledImages | None = None
        self._images: torch.Tensor | None = None
        self._collected: list[torch.Tensor] = []
        self._last: tuple[int, dict[str, float]] | None = None

    @property
    def count(self) -> int:
        """Images of the set: `probe_images`, or the power of two below a part of what the run sees."""
        if self.args.probe_images is not None:
            return self.args.probe_images
        part = self.args.max_steps * self.args.global_batch_size // SHARE_OF_IMAGES
        return min(max(1 << max(part, 1).bit_length() - 1, FEWEST), MOST)

    def start(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a checkpoint's `state_dict()`, on the same images; begins a run without one."""
        self.schedule.load_state_dict(state)
        self._last, self._collected = None, []
        file = self.parts / IMAGES
        if state is None:
            self._images, self.floors = None, {}
        elif self.dataset is None and file.is_file():
            self._images = load_file(file)["images"]

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint holds of the probes."""
        return self.schedule.state_dict()

    def collect(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Takes crops of a batch of the run, where the set has no other images and is not full."""
        missing = self.count - sum(map(len, self._collected))
        wanted = self.schedule.every or self.chosen_by in INSTRUMENTS
        if wanted and self.dataset is None and self._images is None and missing > 0:
            self._collected.append(self.views.main_crops(dict(batch))[:missing].cpu().clone())

    def on_step(self, model: TeacherStudentModel, step: int, trained: float) -> dict[str, float] | None:
        """The numbers after a step, where it is due; all processes must call this.

        `trained` are the seconds that the run has taken so far.
        """
        schedule = self.schedule
        if not schedule.is_candidate(step) or not self._agreed(schedule.is_due(step)):
            return None
        began = time.perf_counter()
        try:
            if not self.floors and schedule.share < 1:
                if not self._agreed(schedule.affords(self._estimated_seconds(model), step, trained)):
                    return None
                self._prepare(model)
            measuring = time.perf_counter()
            numbers = self.read(model, step)
        finally:
            schedule.add(time.perf_counter() - began)
        schedule.count(time.perf_counter() - measuring, step, trained)
        return numbers

    def read(self, model: TeacherStudentModel, step: int) -> dict[str, float]:
        """The numbers of the weights after a step; all processes must call this.

        Raises:
            ValueError: If there are neither labelled images nor, before the first step, such of the run.
        """
        if self._last is None or self._last[0] != step:
            images = self._prepare(model)
            trunk = trunk_of(model)
            with self._undisturbed(trunk, model):
                encode = self._encoder(trunk, lambda outputs: self.targets(model, outputs))
                numbers = measure(encode, images, trunk.config.patch_size, self.args.device, self.labelled)
            self._last = step, self._agreed(numbers)
        return dict(self._last[1])

    def _prepare(self, model: TeacherStudentModel) -> torch.Tensor:
        """Loads the images and measures the floors, once."""
        if self._images is None and self.dataset is not None:
            self.labelled = self.dataset.load(self.count, _image_size(model))
            self._images = self.labelled.images
        elif self._images is None:
            if not self._collected:
                raise ValueError(
                    "features are measured on images of the run, and before its first step there are none: give a "
                    "probe_dataset, or leave eval_on_start out"
                )
            self._images = torch.cat(self._collected)
            self._collected = []
            if self.args.process_index == 0:
                self._write(IMAGES, partial(save_file, {"images": self._images.contiguous()}))
        if not self.floors:
            self.contrast = (in_units(self._images) / _channels(self.views.std)).std(dim=(-2, -1)).mean().item()
            known = self._agreed(self._read_floors())  # all processes measure them, or none
            self.floors = known or self._agreed(self._measure_floors(model))
        return self._images

    def _measure_floors(self, model: TeacherStudentModel) -> dict[str, dict[str, float]]:
        trunk, device, images = trunk_of(model), self.args.device, self._images
        assert images is not None
        patch_size, measured = trunk.config.patch_size, {}
        with self._undisturbed(trunk, model):
            torch.manual_seed(SEED)
            twin = type(trunk)(trunk.config).eval()
            nn.Module.to(twin, device)
            measured[RANDOM_WEIGHTS] = measure(self._encoder(twin), images, patch_size, device, self.labelled)
            encode: Encode = lambda batch: encode_thumbnail(batch, patch_size)  # noqa: E731
            measured[THUMBNAIL] = measure(encode, images, patch_size, device, self.labelled)
        measured[CHANCE] = chance_levels(images.shape[-1], patch_size, self.labelled)
        floors = {
            name: {floor: numbers[name] for floor, numbers in measured.items() if name in numbers}
            for name in INSTRUMENTS
        }
        if self.args.process_index == 0:
            text = json.dumps({"images": self._digest(), "floors": floors}, indent=1)
            self._write(FLOORS, lambda staged: staged.write_text(text))
        return floors

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file that a resume reads, whole or not at all."""
        self.parts.mkdir(parents=True, exist_ok=True)
        staged = self.parts / f"{name}.tmp"
        write(staged)
        os.replace(staged, self.parts / name)

    def _read_floors(self) -> dict[str, dict[str, float]] | None:
        """The floors that an earlier part of the run has measured on the same images."""
        file = self.parts / FLOORS
        known = json.loads(file.read_text()) if file.is_file() else {}
        return known["floors"] if known.get("images") == self._digest() else None

    def _digest(self) -> str:
        assert self._images is not None
        return hashlib.sha256(self._images.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

    def _estimated_seconds(self, model: TeacherStudentModel) -> float:
        """About how long preparation, floors and one measurement take."""
        trunk, device = trunk_of(model), self.args.device
        size = _image_size(model) if self.dataset else self.views.global_size
        images = torch.zeros(TRIAL, len(self.views.mean), size, size, device=device)
        seconds = math.inf
        with self._undisturbed(trunk, model):
            encode = self._encoder(trunk)
            for _ in range(3):  # the first warms up
                began = time.perf_counter()
                encode(images).pooled.sum().item()
                seconds = min(seconds, time.perf_counter() - began)
        views = 3 if self.dataset is None else 4
        reading = self.dataset.seconds(self.count, size) if self.dataset is not None and not self.labelled else 0.0
        return reading + 2 * views * self.count * seconds / TRIAL

    def _encoder(
        self, trunk: PreTrainedModel, targets: Callable[[Any], dict[str, torch.Tensor]] | None = None
    ) -> Encode:
        """The encoder that an evaluation would use: normalised images, bfloat16 on a GPU and float32 elsewhere."""
        device: torch.device = self.args.device
        mean, std = (_channels(values).to(device) for values in (self.views.mean, self.views.std))
        patch_size = trunk.config.patch_size

        def encode(images: torch.Tensor) -> Encoded:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                outputs = trunk(images.sub(mean).div_(std))
                rows, columns = (side // patch_size for side in images.shape[-2:])
                patches = outputs.last_hidden_state[:, -rows * columns :].unflatten(1, (rows, columns))
                return Encoded(outputs.pooler_output, patches, {} if targets is None else targets(outputs))

        return encode

    @contextmanager
    def _undisturbed(self, trunk: PreTrainedModel, model: TeacherStudentModel) -> Iterator[None]:
        """Evaluation mode without gradients; random numbers, modes and compiled code are as before afterwards."""
        device: torch.device = self.args.device
        unshard(model)
        network = model if model.teacher is None else model.teacher
        training = network.training
        network.eval()  # stochastic depth would draw numbers that the run needs
        try:
            with (
                torch.no_grad(),
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
                torch.compiler.set_stance("force_eager"),  # other batches would be compiled anew
            ):
                yield
        finally:
            network.train(training)
            reshard(model)

    def _agreed(self, value: Value) -> Value:
        """The first process's value."""
        if self.args.world_size == 1:
            return value
        agreed = [value]
        broadcast_object_list(agreed)
        return agreed[0]


def trunk_of(model: TeacherStudentModel) -> PreTrainedModel:
    """The trunk whose features a run is after: the teacher's, where there is one."""
    return getattr(model if model.teacher is None else model.teacher, model.base_model_prefix)


def _image_size(model: TeacherStudentModel) -> int:
    """The side at which an evaluation reads images for this model."""
    patch, side = model.config.patch_size, model.config.image_height_width[0]
    return max(1, round(side / patch)) * patch


def _channels(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
