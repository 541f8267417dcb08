"""Callbacks of teacher-student training; each acts once per optimizer step and holds no state that a run depends on."""

import logging
import math
import signal
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from hf_geossl.training.trainer import TeacherStudentTrainer

logger = logging.getLogger(__name__)

COLLAPSED_SPREAD = 0.05
STUCK_TOLERANCE = 0.005
STUCK_LOGS = 20
SAME_SIGNAL = 2.0


class TeacherCallback(TrainerCallback):
    """Moves the teacher and the weight decay, once per optimizer step, as functions of the step."""

    def __init__(self, trainer: "TeacherStudentTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts back what a checkpoint's unfinished log line had gathered; processes draw apart from here on."""
        self.trainer.restore_run_state()
        self.trainer.draw_apart()  # a checkpoint's own generators come after this
        if self.trainer.model.teacher is not None:
            self.trainer.teacher_watch.begin(self.trainer.args.teacher_momentum, self.trainer.args.teacher_momentum_end)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the decayed parameter groups this step's weight decay."""
        for group in kwargs["optimizer"].param_groups:
            if group.get("decayed"):
                group["weight_decay"] = self.trainer.weight_decay_at(state.global_step)
        self.trainer.begin_step()
        self.trainer.watch_teacher()
        self.trainer.accelerator.unwrap_model(self.trainer.model).reset_accumulated()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the step out, or stops the run, before a loss that is not finite can reach the weights."""
        self.trainer.check_finite()
        if not self.trainer.finite.skips:
            self.trainer.before_optimizer_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves teacher and centers after the student has moved; not where the step was left out."""
        if self.trainer.finite.skips:
            return
        # accelerate does not see that a fused optimizer has skipped
        if self.trainer.finite.overflows or self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.check_scale()
            return
        self.trainer.finite.made()
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        model.on_optimizer_step(self.trainer.teacher_momentum_at(state.global_step))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Counts the step for the log line, before it is written."""
        self.trainer.count_step()
        state.epoch = state.global_step / state.max_steps  # transformers counts from the resume on


class CollapseCallback(TrainerCallback):
    """Warns, once each, where features lose their spread or a loss stays at the value of knowing nothing."""

    def __init__(self, chance_levels: dict[str, float]) -> None:
        self.chance_levels = chance_levels
        self.logs_at_chance = dict.fromkeys(chance_levels, 0)
        self.warned: set[str] = set()

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning(message)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Looks at the logged values."""
        logs = logs or {}
        for name, what in (("feature_spread", "features for all images"), ("target_spread", "targets for all patches")):
            if logs.get(name, 1.0) < COLLAPSED_SPREAD:
                self._warn(
                    name,
                    f"collapse: at step {state.global_step} the model gives nearly the same {what} ({name} "
                    f"{logs[name]:.4f}; 1 is even, 0 the same). Lower the learning rate, raise teacher_momentum or "
                    "lengthen the warm-up; going on is unlikely to help.",
                )
        if state.global_step < args.get_warmup_steps(max(state.max_steps, 1)):
            return
        for name, chance in self.chance_levels.items():
            at_chance = name in logs and math.isclose(logs[name], chance, rel_tol=STUCK_TOLERANCE)
            self.logs_at_chance[name] = self.logs_at_chance[name] + 1 if at_chance else 0
            if self.logs_at_chance[name] >= STUCK_LOGS:
                self._warn(
                    name,
                    f"{name} has stayed at {chance:.4f}, the value of knowing nothing, for {STUCK_LOGS} log lines up to "
                    f"step {state.global_step}: that part is not learning. Raise the learning rate or its weight, or "
                    "check that the images hold what it is to be told from (a place in the image, an orientation).",
                )


class PauseCallback(TrainerCallback):
    """Lets Ctrl-C (or SIGTERM) end a run after its current step, with a checkpoint; a second Ctrl-C ends it at once.

    A launcher passes on to its processes what they have been sent already: SIGTERM again, and Ctrl-C again within
    `SAME_SIGNAL` seconds, are the same request.

    Attributes:
        heard (`int` or `None`): The signal that this process was sent.
        signal (`int` or `None`): The signal that the run has stopped for, the same on all processes.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self.signal: int | None = None
        self._agreed: int | None = None
        self._heard_at = 0.0
        self._previous: dict[int, Any] = {}

    def _request(self, number: int, frame: Any) -> None:
        if self.heard is None:
            self.heard, self._heard_at = number, time.monotonic()
            logger.warning("stopping after this step with a checkpoint; Ctrl-C once more stops at once")
        elif number == signal.SIGINT and time.monotonic() - self._heard_at > SAME_SIGNAL:
            raise KeyboardInterrupt

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listens, where this is the main thread."""
        self.heard = self.signal = self._agreed = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)
            }

    def agree(self, number: int) -> None:
        """Takes the signal (or 0) that any of the processes has heard before they decided on this step."""
        self._agreed = number or None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for a checkpoint and the end of the run; of all processes at the same step."""
        asked = self._agreed if args.world_size > 1 else self.heard
        if asked is not None and state.global_step < state.max_steps:
            self.signal = asked
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listens no more: from here on Ctrl-C ends at once whatever is waited for."""
        self.stop_listening()

    def stop_listening(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class ImagesProgressCallback(ProgressCallback):
    """transformers' progress bar, with the loss and images a second beside it."""

    def __init__(self, images_per_step: int, metrics: Sequence[str] = (), quantities: Sequence[str] = ()) -> None:
        super().__init__()
        self.images_per_step = images_per_step
        self.metrics, self.quantities = metrics, quantities
        self.loss = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar at the step that the run goes on from."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("pretraining")
            self.current_step = state.global_step
            self.training_bar.initial = self.training_bar.n = self.training_bar.last_print_n = state.global_step
            self.training_bar.unit = " steps"
            # tqdm asks a clock that may be set in between
            self.training_bar._time = time.monotonic
            self.training_bar.start_t = self.training_bar.last_print_t = time.monotonic()
            self.training_bar.refresh()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the bar."""
        if self.training_bar is not None:
            rate = self.training_bar.format_dict["rate"]
            speed = f"{rate * self.images_per_step:.1f} images/s" if rate else ""
            self.training_bar.set_postfix_str(", ".join(part for part in (self.loss, speed) if part), refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prints one short line; `report_to` and `trainer_state.json` have all of it."""
        if logs and self.training_bar is not None and "loss" not in logs and "skipped_steps" in logs:
            self.training_bar.write(
                f"step {state.global_step}: {logs['skipped_steps']} steps left out, none made since"
            )
            return
        if not logs or self.training_bar is None or not ("loss" in logs or "eval_loss" in logs):
            super().on_log(args, state, control, logs=logs, **kwargs)
            return
        if "loss" not in logs:
            line = ", ".join(describe_losses(logs, self.metrics, self.quantities, prefix="eval_"))
            self.training_bar.write(f"step {state.global_step}, {logs['eval_images']} held-out images: {line}")
            return
        self.loss = f"loss {logs['loss']:.3f}"
        parts = describe_losses(logs, self.metrics, self.quantities)
        spreads = [f"{name.replace('_', ' ')} {value:.2f}" for name, value in logs.items() if name.endswith("_spread")]
        speed = [f"{logs['images_per_second']:.1f} images/s"] if "images_per_second" in logs else []
        skipped = [f"{logs['skipped_images']} images skipped"] if logs.get("skipped_images") else []
        skipped += [f"{logs['skipped_steps']} steps left out"] if logs.get("skipped_steps") else []
        rate = [f"learning rate {logs['learning_rate']:.2e}"]
        line = ", ".join([*parts, *rate, *spreads, *speed, *skipped])
        self.training_bar.write(f"step {state.global_step}: {line}")


def describe_losses(
    logs: dict[str, float], metrics: Sequence[str], quantities: Sequence[str] = (), prefix: str = ""
) -> list[str]:
    """Losses and metrics of a log line in words.

    Args:
        logs (`dict[str, float]`): The log line.
        metrics, quantities (`Sequence[str]`): Names of what stands beside the losses: shares, and other numbers.
        prefix (`str`): What their names in `logs` begin with.

    Returns:
        `list[str]`: "loss 1.234", the parts, the quantities, the metrics in percent.
    """
    named = {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
    parts = [f"{name.removesuffix('_loss')} {value:.3f}" for name, value in named.items() if name.endswith("_loss")]
    shares = [f"{name.replace('_', ' ')} {100 * named[name]:.1f} %" for name in metrics if name in named]
    parts += [f"{name} {named[name]:.3f}" for name in quantities if name in named]
    return [f"loss {named['loss']:.3f}", *(part.replace("_", " ") for part in parts), *shares]
