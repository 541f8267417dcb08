"""What `log` adds to a log line of transformers."""

import math

from accelerate import Accelerator

from hf_geossl.training.checkpoints.checkpointer import Checkpointer
from hf_geossl.training.logs.meter import LossMeter, Stopwatch
from hf_geossl.training.monitors.non_finite import NonFiniteGuard
from hf_geossl.training.optimization import OptimizerPlan


class LogLine:
    """Completes log lines: loss parts (means over accumulation, steps and processes), schedules, spreads and speed.

    Args:
        plan (`OptimizerPlan`), meter (`LossMeter`), stopwatch (`Stopwatch`), guard (`NonFiniteGuard`),
        checkpointer (`Checkpointer`): The parts of the run that know the numbers.
        accelerator (`Accelerator`): Of the run.

    Attributes:
        first_step (`int`): The step that the present call of `train` began with.
    """

    def __init__(
        self,
        plan: OptimizerPlan,
        meter: LossMeter,
        stopwatch: Stopwatch,
        guard: NonFiniteGuard,
        checkpointer: Checkpointer,
        accelerator: Accelerator,
    ) -> None:
        self.plan, self.meter, self.stopwatch, self.guard = plan, meter, stopwatch, guard
        self.checkpointer, self.accelerator = checkpointer, accelerator
        self.first_step = 0

    def begin(self, step: int) -> None:
        """Begins a call of `train` at a step."""
        self.first_step = step

    def extend(self, logs: dict[str, float], step: int, has_teacher: bool, skipped_images: int) -> None:
        """Adds to a line, in place, what it is a line of; all processes must call this.

        Args:
            logs (`dict[str, float]`): The line.
            step (`int`): Optimizer steps made.
            has_teacher (`bool`): Whether there is a teacher.
            skipped_images (`int`): Broken images that this process has skipped.
        """
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
