"""What watches over a run: losses that are not finite, the teacher's distance, collapse, and the spread of features."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.checkpoints.files import newest_whole_checkpoint
from hf_geossl.training.sharding import unshard

logger = logging.getLogger(__name__)


class NonFiniteLossError(FloatingPointError):
    """Losses or gradients stay infinite or not a number; the message names the step, the images and the last checkpoint."""


class NonFiniteGuard:
    """Decides on all processes together whether an optimizer step is left out, and counts the steps that were.

    Attributes:
        skipped, in_a_row (`int`): Steps left out since the start of the run, and since the last step that was made.
        skips (`bool`): Whether the present step is left out.
        overflows (`bool`): Whether a gradient scaler leaves it out, which then lowers its scale.
        keys (`list[str]`): The images of the present step.
    """

    def __init__(self, max_in_a_row: int, run_dir: Path, rank: int = 0, world_size: int = 1) -> None:
        self.max_in_a_row, self.run_dir, self.rank, self.world_size = max_in_a_row, run_dir, rank, world_size
        self.skipped = self.in_a_row = 0
        self.begin_step()

    def begin_step(self) -> None:
        """Forgets the step before."""
        self._loss: torch.Tensor | None = None
        self._gradient: torch.Tensor | None = None
        self.skips = self.overflows = False
        self.keys: list[str] = []

    def observe_images(self, keys: list[str]) -> None:
        """Notes the images of a micro-batch."""
        self.keys = [*self.keys, *keys]

    def observe_loss(self, loss: torch.Tensor) -> None:
        """Notes whether a micro-batch's loss is finite, without waiting for the device."""
        finite = torch.isfinite(loss)
        self._loss = finite if self._loss is None else self._loss & finite

    def observe_grad_norm(self, norm: torch.Tensor | float) -> None:
        """Notes whether the norm of the step's gradient is finite, without waiting for the device."""
        if self._loss is not None:
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self._gradient = torch.isfinite(torch.as_tensor(norm, device=self._loss.device))

    def decide(self, received_signal: int, scaled: bool = False) -> int:
        """Decides for all processes together whether the step is left out; waits for the device once.

        Takes the signal that this process has received and returns the one that any has, or 0. With `scaled` a gradient
        scaler handles gradients that are not finite.
        """
        if self._loss is None:
            return received_signal
        gradient = self._loss if self._gradient is None else self._gradient
        flags = torch.stack([(~finite).long().reshape(()) for finite in (self._loss, gradient)])
        if self.world_size > 1:
            flags = torch.cat([flags, torch.tensor([received_signal], device=flags.device)])
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        broken_loss, broken_gradient, *signals = flags.tolist()
        self.skips = bool(broken_loss or (broken_gradient and not scaled))
        self.overflows = bool(broken_gradient and scaled and not broken_loss)
        return signals[0] if signals else received_signal

    def skip_overflow(self) -> None:
        """Counts the present step as left out although the gradient scaler can lower its scale no further."""
        self.skips = True

    def count_skipped(self, step: int) -> None:
        """Counts the present step as left out and writes down its images; raises at the last of `max_in_a_row`."""
        self.skipped += 1
        self.in_a_row += 1
        record = self.run_dir / f"nonfinite_step_{step}_rank_{self.rank}.json"
        own_loss = self._loss is None or bool(self._loss)
        text = json.dumps({"step": step, "loss_of_this_process_is_finite": own_loss, "keys": self.keys}, indent=1)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            record.write_text(text)
        except OSError as error:
            logger.warning(f"{record.name} could not be written ({error.strerror})")
        more = " ..." if len(self.keys) > 4 else ""
        images = f"its images are {', '.join(self.keys[:4])}{more} (all in {record.name})"
        if self.in_a_row < self.max_in_a_row:
            logger.warning(
                f"step {step} is left out, its loss or gradient is not finite: weights and teacher stay; {images}. "
                f"The run stops after {self.max_in_a_row} such steps in a row (max_nonfinite_steps)"
            )
            return
        last = newest_whole_checkpoint(self.run_dir)
        kept = f"{last.name} is kept" if last else "there is no checkpoint yet"
        before = self.in_a_row - 1
        row = f", as {'in the step' if before == 1 else f'in the {before} steps'} before it" if before else ""
        raise NonFiniteLossError(
            f"the loss of step {step} or its gradient is not finite{row}; {images}; the weights did not move and {kept}. "
            "Lower base_learning_rate, lengthen warmup_steps or train in bf16 instead of fp16, then resume."
        )

    def count_made(self) -> None:
        """Notes that the weights have moved."""
        self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint holds of the guard."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int] | None) -> None:
        """Goes on from a checkpoint's `state_dict()`; from 0 without one."""
        state = state or {"skipped": 0, "in_a_row": 0}
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


STILL_MEASUREMENTS = 3
GROWING_MEASUREMENTS = 10
FAR = 0.5


class TeacherMonitor:
    """Compares teacher and student now and then, and warns once each where the teacher does not follow."""

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self._distance = 0.0
        self._still = self._equal = self._growing = 0
        self._warned: set[str] = set()

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)

    def check_momentum(self, start: float, end: float) -> None:
        """Says if the momentum, from `start` to `end`, is one that no teacher moves with."""
        if start == end == 1.0:
            self._warn(
                "momentum",
                "teacher_momentum is 1 from the first step to the last: the teacher stays what it was at the start. Set "
                "teacher_momentum below 1 (0.996), unless the teacher is to be frozen.",
            )

    @torch.no_grad()
    def measure(self, model: TeacherStudentModel, step: int, momentum: float, settled: bool) -> float | None:
        """Norm of teacher - student as a share of the student's, None without a teacher; waits for the device once.

        `step` optimizer steps were made, the last with `momentum`; `settled` is whether the warm-up is over.
        """
        measured, moved_teacher, moved_student = self._compare(model)
        if measured is None:
            return None
        distance, before = measured, self._distance
        self._distance = distance
        frozen = momentum == 1.0
        self._still = self._still + 1 if moved_student and not moved_teacher and not frozen else 0
        self._equal = self._equal + 1 if moved_student and distance == 0.0 and momentum > 0 else 0
        self._growing = self._growing + 1 if settled and distance > before > 0 else 0
        if self._equal >= STILL_MEASUREMENTS:
            self._warn(
                "equal",
                f"at step {step} the teacher equals the student in every weight although teacher_momentum is "
                f"{momentum:g}: they share their tensors, or something copies one into the other. Make the model anew "
                "from its configuration, and leave the teacher to the trainer.",
            )
        elif self._still >= STILL_MEASUREMENTS:
            self._warn(
                "still",
                f"at step {step} the teacher has not moved since the last {STILL_MEASUREMENTS} measurements although the student has "
                f"and teacher_momentum is {momentum:g}: it is detached. Call on_optimizer_step (or update_teacher) if the "
                "trainer or model is your own, and lower teacher_momentum if 1 - teacher_momentum is below 1e-7.",
            )
        if self._growing >= GROWING_MEASUREMENTS and distance > FAR:
            self._warn(
                "growing",
                f"at step {step} the teacher is {distance:.2f} of the student's norm away from it, farther at each of "
                f"the last {GROWING_MEASUREMENTS} measurements: it no longer follows. Lower the learning rate or teacher_momentum "
                f"(now {momentum:g}).",
            )
        return distance

    def _compare(self, model: TeacherStudentModel) -> tuple[float | None, bool, bool]:
        """Distance, and whether teacher and student have moved since the last measurement."""
        teachers, students = model.teacher_pairs()
        if not teachers:
            return None, False, False
        sharded = any(isinstance(tensor, DTensor) for tensor in teachers)
        apart, size, sums = [], [], []
        for pair in zip(teachers, students, strict=True):
            teacher, student = (
                (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().float() for tensor in pair
            )
            apart.append((teacher - student).square().sum())
            size.append(student.square().sum())
            sums += [teacher.sum(), student.sum()]
        now = torch.stack(sums).view(-1, 2)
        moved = (now != (now if self._sums is None else self._sums)).any(dim=0).float()
        self._sums = now
        totals = torch.stack([torch.stack(apart).sum(), torch.stack(size).sum(), *moved])
        if sharded:
            torch.distributed.all_reduce(totals)
        difference, norm, teacher_moved, student_moved = totals.tolist()
        return (difference / norm) ** 0.5 if norm else 0.0, teacher_moved > 0, student_moved > 0


COLLAPSED_SPREAD = 0.05
LOST_SPREAD = 0.3  # share of the largest spread of the run: images of little contrast have a small one from the start
LITTLE_CONTRAST = 0.25  # deviation of the normalised values inside a view; photographs have about 1
STUCK_TOLERANCE = 0.005
STUCK_LOGS = 20


class CollapseCallback(TrainerCallback):
    """Warns, once each, where features lose their spread or a loss stays at chance level.

    Args:
        chance_losses (`dict[str, float]`): What the logged losses are where nothing has been learned.
        contrast (`Callable`, *optional*): Gives the contrast of the images, where it has been measured. Features of images
            that hardly differ are alike whatever the model, which is no collapse.
    """

    def __init__(self, chance_losses: dict[str, float], contrast: Callable[[], float | None] = lambda: None) -> None:
        self.chance_losses, self.contrast = chance_losses, contrast
        self.logs_at_chance = dict.fromkeys(chance_losses, 0)
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
        **kwargs: object,
    ) -> None:
        """Compares the logged values with those of collapse and of chance."""
        logs = logs or {}
        for name, subject in (
            ("feature_spread", "features for all images"),
            ("target_spread", "targets for all patches"),
        ):
            largest = max((entry[name] for entry in state.log_history if name in entry), default=1.0)
            lost, contrast = logs.get(name, 1.0) < min(COLLAPSED_SPREAD, LOST_SPREAD * largest), self.contrast()
            if lost and contrast is not None and contrast < LITTLE_CONTRAST:
                self._warn(
                    "contrast",
                    f"the images have little contrast (a deviation of {contrast:.2f} inside a view after normalisation; "
                    f"photographs have about 1), so that the {subject} are nearly the same ({name} {logs[name]:.4f}). Mean and "
                    "deviation that `geossl inspect` measures, given as --mean and --std, bring out what differs.",
                )
            elif lost:
                self._warn(
                    name,
                    f"collapse: at step {state.global_step} the model gives nearly the same {subject} ({name} "
                    f"{logs[name]:.4f}, {largest:.4f} before; 1 is even, 0 the same). Lower the learning rate, raise teacher_momentum or "
                    "lengthen the warm-up; going on is unlikely to help.",
                )
        if state.global_step < args.get_warmup_steps(max(state.max_steps, 1)):
            return
        for name, chance in self.chance_losses.items():
            at_chance = name in logs and math.isclose(logs[name], chance, rel_tol=STUCK_TOLERANCE)
            self.logs_at_chance[name] = self.logs_at_chance[name] + 1 if at_chance else 0
            if self.logs_at_chance[name] >= STUCK_LOGS:
                self._warn(
                    name,
                    f"{name} has stayed at {chance:.4f}, its chance level, for {STUCK_LOGS} log lines up to step "
                    f"{state.global_step}: that part is not learning. Raise the learning rate or its weight, or check "
                    "that the images show what it predicts (a place in the image, an orientation).",
                )


Inputs = Mapping[str, torch.Tensor]
Features = Callable[[TeacherStudentModel, Inputs], dict[str, torch.Tensor]]


def spread(features: torch.Tensor) -> float | None:
    """How evenly normalised features of shape `(rows, channels)` point in all directions; None for a single row.

    It is the norm of the channels' standard deviations: 0 where all features are the same, 1 where they are even.
    """
    if len(features) < 2:
        return None
    return F.normalize(features.float(), dim=-1).std(dim=0, correction=0).norm().item()


class Probes:
    """Measures every few steps (0 is never) the spread of features, `(rows, channels)` by its name."""

    def __init__(self, every: int, features: Features) -> None:
        self.every, self.features = every, features
        self.contrast: float | None = None  # of the images that were last measured

    def is_due(self, step: int) -> bool:
        """Whether step `step` is measured."""
        return bool(self.every) and step % self.every == 0

    @torch.no_grad()
    def measure(self, model: TeacherStudentModel, inputs: Inputs) -> dict[str, float]:
        """The spreads of a batch by name, of each kind of features that has more than one row."""
        unshard(model)
        network = model if model.teacher is None else model.teacher
        training = network.training
        network.eval()  # stochastic depth would draw numbers that the run needs
        measured = {name: spread(features) for name, features in self.features(model, inputs).items()}
        network.train(training)
        views = next((value for name, value in inputs.items() if name.endswith("pixel_values")), None)
        self.contrast = None if views is None else views.float().std(dim=(-2, -1)).mean().item()
        return {name: value for name, value in measured.items() if value is not None}
