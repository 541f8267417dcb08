"""What a run logs: losses, schedules and speed of its log lines, and losses of held-out images."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_geossl.data.evaluation_batches import EvaluationBatches
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.checkpoints.checkpointer import Checkpointer
from hf_geossl.training.feed import EVALUATION, EVALUATION_VIEWS, seed_at
from hf_geossl.training.monitors.nonfinite import NonFiniteGuard
from hf_geossl.training.optimization import OptimizerPlan
from hf_geossl.training.resources import MatrixRate, peak_memory
from hf_geossl.views.base import Views


class LossMeter:
    """Adds up losses and their parts between two log lines, without waiting for the device.

    Attributes:
        steps, skipped (`int`): Optimizer steps made and left out since the last log line.
        spreads (`dict[str, float]`): Measurements of features since then, the newest of each name.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total = 0.0  # of the loss, up to the last log line
        self.reset()
        self.begin_step()

    def reset(self) -> None:
        """Starts a new log line."""
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = self.skipped = 0
        self.spreads: dict[str, float] = {}

    def begin_step(self) -> None:
        """Marks the beginning of an optimizer step, to which `discard_step` goes back."""
        self._before_step = dict(self.sums)

    def add(self, parts: Mapping[str, torch.Tensor], divisor: int) -> None:
        """Adds the scalars of a micro-batch, `loss` among them; a step has `divisor` micro-batches."""
        for name, value in parts.items():
            part = value / divisor
            self.sums[name] = self.sums[name] + part if name in self.sums else part

    def discard_step(self) -> None:
        """Takes the present step out of the sums."""
        self.sums = dict(self._before_step)

    def count_step(self, skipped: bool) -> None:
        """Counts a step, made or left out."""
        self.steps += not skipped
        self.skipped += skipped

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the steps made and all processes, which must all call this; empty where no step was made."""
        if not self.steps:
            return {}
        means = gathered_means(self.sums, 1, accelerator)
        self.total += means["loss"]
        return {name: value / self.steps for name, value in means.items()}

    def mean_of_run(self, steps: int, accelerator: Accelerator) -> float:
        """The mean loss of all `steps` of the run; all processes must call this."""
        rest = gathered_means({"loss": self.sums["loss"]}, 1, accelerator)["loss"] if "loss" in self.sums else 0.0
        return (self.total + rest) / max(steps, 1)

    def state_dict(self) -> dict[str, object]:
        """The unfinished log line in plain values."""
        return {
            "total": self.total,
            "sums": {name: value.item() for name, value in self.sums.items()},
            "steps": self.steps,
            "skipped": self.skipped,
            "spreads": self.spreads,
        }

    def load_state_dict(self, state: Mapping | None) -> None:
        """Puts an unfinished log line back; begins a run where there is none."""
        if state is None:
            state = {"total": 0.0, "sums": {}, "steps": 0, "skipped": 0, "spreads": {}}
        self.total = state["total"]
        self.sums = {name: torch.tensor(value, device=self.device) for name, value in state["sums"].items()}
        self.steps, self.skipped, self.spreads = state["steps"], state["skipped"], dict(state["spreads"])
        self.begin_step()


def scalars_of(outputs: Mapping, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Of a model's outputs and their `components`: `loss`, what ends with `_loss`, and what is named, in float32."""
    everything = (*outputs.items(), *(outputs.get("components") or {}).items())
    return {
        name: value.detach().float()
        for name, value in everything
        if name == "loss" or name.endswith("_loss") or name in names
    }


def gathered_means(sums: Mapping[str, torch.Tensor], count: int, accelerator: Accelerator) -> dict[str, float]:
    """Means of sums over `count` and over all processes, in one exchange; all have the same names, at least one."""
    means = accelerator.gather((torch.stack(list(sums.values())) / count)[None]).mean(dim=0)
    return dict(zip(sums, means.tolist(), strict=True))


class Stopwatch:
    """Seconds of a run and of its log lines, by a clock that nobody sets.

    Attributes:
        steps (`int`): Optimizer steps since the last log line.
        waited (`float`): Seconds since then that the step has waited for its data.
    """

    def __init__(self) -> None:
        self._before = self._began = 0.0  # seconds of earlier calls of train, and when this one began
        self.reset()

    def start(self, seconds: float) -> None:
        """Starts with the seconds that the run took before."""
        self._before, self._began = seconds, time.perf_counter()
        self.reset()

    def stop(self) -> None:
        """Stops: `trained` no longer grows."""
        self._before, self._began = self.trained, 0.0

    def reset(self) -> None:
        """Starts a new log line."""
        self.steps, self.waited, self._line = 0, 0.0, time.perf_counter()

    def count_step(self) -> None:
        """Counts an optimizer step."""
        self.steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the seconds in it as waited for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @property
    def trained(self) -> float:
        """Seconds that the run has trained, over all resumes."""
        return self._before + self.since_start

    @property
    def since_start(self) -> float:
        """Seconds since `start`; 0 where the run is not training."""
        return time.perf_counter() - self._began if self._began else 0.0

    def describe(self, images_per_step: int) -> dict[str, float]:
        """Speed of the log line: `images_per_second`, and `data_wait`, the share of its time that data were waited for."""
        elapsed = time.perf_counter() - self._line
        return {"images_per_second": self.steps * images_per_step / elapsed, "data_wait": self.waited / elapsed}


class LogLine:
    """Completes log lines: loss parts (means over accumulation, steps and processes), schedules, spreads and speed."""

    def __init__(
        self,
        plan: OptimizerPlan,
        meter: LossMeter,
        stopwatch: Stopwatch,
        guard: NonFiniteGuard,
        checkpointer: Checkpointer,
        accelerator: Accelerator,
        matrix_rate: MatrixRate,
    ) -> None:
        self.plan, self.meter, self.stopwatch, self.guard = plan, meter, stopwatch, guard
        self.checkpointer, self.accelerator, self.matrix_rate = checkpointer, accelerator, matrix_rate
        self.first_step = 0

    def begin(self, step: int) -> None:
        """Begins a call of `train` at a step."""
        self.first_step = step

    def extend(self, logs: dict[str, float], step: int, has_teacher: bool, skipped_images: int) -> None:
        """Adds to a line, in place, what it is a line of; all processes must call this."""
        if "loss" in logs:
            self._complete(logs, step, has_teacher, skipped_images)
        if "train_loss" in logs:
            self._summarize(logs, step)

    def _complete(self, logs: dict[str, float], step: int, has_teacher: bool, skipped_images: int) -> None:
        del logs["loss"]  # transformers' mean counts the steps that were left out
        logs.update(self.meter.means(self.accelerator))
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            del logs["grad_norm"]
        logs["weight_decay"] = self.plan.weight_decay_at(max(step - 1, 0))
        if has_teacher:
            logs["teacher_momentum"] = self.plan.teacher_momentum_at(max(step - 1, 0))
        logs.update(self.meter.spreads)
        logs["skipped_images"] = skipped_images
        logs["skipped_steps"] = self.guard.skipped
        if self.checkpointer.failed:
            logs["failed_saves"] = self.checkpointer.failed
        logs.update(self.stopwatch.describe(self.plan.args.global_batch_size))
        logs.update(self.matrix_rate.describe(logs["images_per_second"]))
        logs.update(peak_memory(self.meter.device))
        self.meter.reset()
        self.stopwatch.reset()

    def _summarize(self, logs: dict[str, float], step: int) -> None:
        """Completes the line at the end of `train`, in place: of the whole run, also where it was resumed."""
        logs["train_loss"] = self.meter.mean_of_run(step - self.guard.skipped, self.accelerator)
        seconds = self.stopwatch.since_start
        if seconds:  # transformers asks a clock that may be set in between
            steps = step - self.first_step
            logs["train_runtime"], logs["train_steps_per_second"] = round(seconds, 4), round(steps / seconds, 3)
            logs["train_samples_per_second"] = round(steps * self.plan.args.global_batch_size / seconds, 3)


class HeldOutLosses:
    """Measures losses, their parts and metrics: means over the images of all processes.

    The model takes its final loss weights, so that the losses can be compared over the run, and the generator of the
    training is left as it was.
    """

    def __init__(self, args: TeacherStudentTrainingArguments, views: Views, accelerator: Accelerator) -> None:
        self.args, self.views, self.accelerator = args, views, accelerator

    @torch.no_grad()
    def measure(
        self,
        model: TeacherStudentModel,
        batches: EvaluationBatches,
        parts_of: Callable[[Any], Mapping[str, torch.Tensor]],
        to_device: Callable[[dict[str, Any]], dict[str, Any]],
        after_batch: Callable[[], object],
    ) -> dict[str, float]:
        """Means of one pass of what `parts_of` outputs gives, by name, and how many `images`; empty without any.

        All processes must call this.
        """
        nn.Module.to(model, self.args.device).eval()
        sums: dict[str, torch.Tensor] = {}
        images, rank = 0, self.args.process_index
        for batch in batches:
            crops = dict(batch)
            number = crops.pop("evaluation_batch")
            generator = torch.Generator().manual_seed(seed_at(self.args.seed, rank, EVALUATION_VIEWS, number))
            drawn = torch.get_rng_state()
            try:
                torch.default_generator.manual_seed(seed_at(self.args.seed, rank, EVALUATION, number))
                inputs: dict[str, Any] = self.views.augment(to_device(crops), generator)
                with self.accelerator.autocast():
                    parts = parts_of(model(**inputs))
            finally:
                torch.set_rng_state(drawn)
            count = len(next(iter(inputs.values())))
            images += count
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + count * value
            after_batch()
        if not images:
            return {}
        return {**gathered_means(sums, images, self.accelerator), "images": batches.images}
