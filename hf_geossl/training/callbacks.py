"""Callbacks of teacher-student training: each does one job, once per optimizer step."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import ClassVar, cast

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.execution.waiting import ConditionalAdamW
from hf_geossl.training.feed import PROCESS, seed_at
from hf_geossl.training.logs import LossMeter, Stopwatch
from hf_geossl.training.monitors.nonfinite import NonFiniteGuard
from hf_geossl.training.monitors.probes import Probes
from hf_geossl.training.monitors.teacher import TeacherMonitor
from hf_geossl.training.optimization import OptimizerPlan
from hf_geossl.training.sharding import is_sharded

logger = logging.getLogger(__name__)

SAME_SIGNAL = 2.0


def model_of(kwargs: Mapping[str, object]) -> TeacherStudentModel:
    """The model, without a wrapper, among what transformers gives a callback."""
    return cast(TeacherStudentModel, kwargs["model"])


class ProcessSeedCallback(TrainerCallback):
    """Lets each process draw its own stochastic depth and tokens; the first draws what it would draw alone."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Seeds the process; the generators of a checkpoint are loaded after this."""
        if args.process_index:
            torch.manual_seed(seed_at(args.seed, args.process_index, PROCESS, state.global_step))


class WeightDecayCallback(TrainerCallback):
    """Gives the decayed parameter groups each step's weight decay."""

    def __init__(self, plan: OptimizerPlan) -> None:
        self.plan = plan

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Sets the weight decay of the step."""
        for group in cast(torch.optim.Optimizer, kwargs["optimizer"]).param_groups:
            if group.get("decayed"):
                group["weight_decay"] = self.plan.weight_decay_at(state.global_step)


class FreezeTrunkCallback(TrainerCallback):
    """Leaves the trunk as it is in the first steps, while the heads are trained."""

    def __init__(self, plan: OptimizerPlan) -> None:
        self.plan = plan

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Takes its gradients away, where clipping has not done that."""
        self.plan.drop_frozen_gradients(model_of(kwargs), state.global_step)


class PreemptionCallback(TrainerCallback):
    """Lets Ctrl-C (or SIGTERM) end a run after its current step, with a checkpoint; a second Ctrl-C ends it at once.

    A launcher passes on to its processes what they have received already: SIGTERM again, and Ctrl-C again within
    `SAME_SIGNAL` seconds, are the same request.

    Attributes:
        received_signal (`int` or `None`): The signal that this process has received.
        signal (`int` or `None`): The signal that the run has stopped for, the same on all processes.
    """

    def __init__(self) -> None:
        self.received_signal: int | None = None
        self.signal: int | None = None
        self._synced: int | None = None
        self._received_at = 0.0
        self._previous: dict[int, signal.Handlers | Callable | int | None] = {}

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handles a signal: the first asks for the end of the run, a second Ctrl-C raises `KeyboardInterrupt`."""
        if self.received_signal is None:
            self.received_signal, self._received_at = number, time.monotonic()
            logger.warning("stopping after this step with a checkpoint; Ctrl-C once more stops at once")
        elif number == signal.SIGINT and time.monotonic() - self._received_at > SAME_SIGNAL:
            raise KeyboardInterrupt

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Takes over the handlers of the signals, where this is the main thread."""
        self.received_signal = self.signal = self._synced = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def sync_signal(self, number: int) -> None:
        """Takes the signal (or 0) that any of the processes has received before they decided on this step."""
        self._synced = number or None

    def is_requested(self, world_size: int) -> bool:
        """Whether the end of the run has been asked for, as all processes know."""
        return (self._synced if world_size > 1 else self.received_signal) is not None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Asks for a checkpoint and the end of the run; of all processes at the same step."""
        if self.is_requested(args.world_size) and state.global_step < state.max_steps:
            self.signal = self._synced if args.world_size > 1 else self.received_signal
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Gives the handlers back: from here on Ctrl-C ends at once whatever is waited for."""
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Gives the handlers of the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class StepCallback(TrainerCallback):
    """Leaves an optimizer step out, on all processes, where loss or gradient is not finite on any; or moves the teacher.

    The processes ask each other in the same message whether one has received a signal.

    On a GPU the device tells a fused AdamW, and the host reads the decision later, in `finish`: once the device has the next
    step's images to work on, so that neither waits for the other, or at the end of a step that is logged or saved. Teacher
    and centers move then, and the step is counted; what depends on that before the next forward pass must call `finish`.
    """

    not_waited_for: ClassVar[tuple[str, ...]] = ("cuda",)  # kinds of devices

    def __init__(
        self,
        guard: NonFiniteGuard,
        meter: LossMeter,
        preemption: PreemptionCallback,
        accelerator: Accelerator,
        plan: OptimizerPlan,
        is_measured: Callable[[int], bool],
    ) -> None:
        self.guard, self.meter, self.preemption, self.accelerator = guard, meter, preemption, accelerator
        self.plan, self.is_measured = plan, is_measured

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Forgets the step before, unless its decision is still to be read."""
        if not self.guard.pending:
            self._begin(model_of(kwargs))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Decides; without gradients the optimizer moves nothing."""
        optimizer, model = getattr(kwargs["optimizer"], "optimizer", None), model_of(kwargs)
        made = self.guard.ask(state.global_step, self.preemption.received_signal or 0)
        if made is None:
            return
        scaled = self.accelerator.scaler is not None
        if isinstance(optimizer, ConditionalAdamW) and optimizer.is_conditional and not (scaled or is_sharded(model)):
            late = made.device.type in self.not_waited_for
            optimizer.make_step_where(made if late else None)
            if late:
                return
        self.preemption.sync_signal(self.guard.read(scaled))
        if self.guard.skips:
            model.zero_grad(set_to_none=True)
            self._skip()

    def finish(self, model: TeacherStudentModel, begins: bool = False) -> None:
        """Does what waits for the decision on the last step, where that is still to be read: the teacher, and the counts.

        With `begins` the next step has begun.
        """
        if not self.guard.pending:
            return
        self.preemption.sync_signal(self.guard.read())
        if self.guard.skips:
            self._skip()
        else:
            self.guard.count_made()
            model.on_optimizer_step(self.plan.teacher_momentum_at(self.guard.step))
        self.meter.count_step(self.guard.skips)
        if begins:
            self._begin(model)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Moves teacher and centers after a step that was made; counts one that the gradient scaler skips in vain."""
        if self.guard.skips or self.guard.pending:
            return
        # accelerate does not notice when a fused optimizer has skipped
        if self.guard.overflows or self.accelerator.optimizer_step_was_skipped:
            scaler = self.accelerator.scaler
            if scaler is not None and scaler.get_scale() < 1.0:
                self.guard.skip_overflow()
                self._skip()
            return
        self.guard.count_made()
        model_of(kwargs).on_optimizer_step(self.plan.teacher_momentum_at(state.global_step))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Reads the decision where something follows that needs it; counts the step where it has been read at once."""
        follows = control.should_log or control.should_save or control.should_evaluate or control.should_training_stop
        if not self.guard.pending:
            self.meter.count_step(self.guard.skips)
        elif follows or self.is_measured(state.global_step) or self.preemption.is_requested(args.world_size):
            self.finish(model_of(kwargs))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Reads the decision on the last step of a run that another callback has ended."""
        self.finish(model_of(kwargs))

    def _begin(self, model: TeacherStudentModel) -> None:
        self.guard.begin_step()
        self.meter.begin_step()
        model.reset_accumulated()  # what a step that was not made has accumulated

    def _skip(self) -> None:
        self.meter.discard_step()
        self.guard.count_skipped(self.guard.step)


class TeacherMonitorCallback(TrainerCallback):
    """Measures every few steps (0 is never) how far the teacher is from its student, for the log."""

    def __init__(self, monitor: TeacherMonitor, plan: OptimizerPlan, meter: LossMeter, every: int) -> None:
        self.monitor, self.plan, self.meter, self.every = monitor, plan, meter, every

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Warns of a momentum that no teacher moves with."""
        if model_of(kwargs).teacher is not None:
            self.monitor.check_momentum(self.plan.args.teacher_momentum, self.plan.args.teacher_momentum_end)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measures before the step."""
        model = model_of(kwargs)
        step = state.global_step
        if self.every and step % self.every == 0:
            settled = step >= args.get_warmup_steps(state.max_steps)
            momentum = self.plan.teacher_momentum_at(max(step - 1, 0))
            distance = self.monitor.measure(model, step, momentum, settled)
            if distance is not None:
                self.meter.spreads["teacher_distance"] = distance


class MeterCallback(TrainerCallback):
    """Counts steps for the log line, before it is written."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Counts the step, made or left out."""
        self.stopwatch.count_step()
        state.epoch = state.global_step / state.max_steps  # transformers counts from the resume on


class ProbeCallback(TrainerCallback):
    """Measures what the features are good for after the steps that are due; each is a line of the log."""

    def __init__(self, probes: Probes, meter: LossMeter, stopwatch: Stopwatch) -> None:
        self.probes, self.meter, self.stopwatch = probes, meter, stopwatch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measures the weights that the step has left."""
        numbers = self.probes.on_step(model_of(kwargs), state.global_step, self.stopwatch.trained)
        if numbers is not None:
            self.meter.spreads.update(numbers)
            control.should_log = True
