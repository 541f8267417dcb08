"""What watches over a run: losses and gradients that are not finite, and a teacher that no longer follows its student."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from hf_geossl.training.checkpointing import newest_whole_checkpoint

logger = logging.getLogger(__name__)

STILL_LOOKS = 3
GROWING_LOOKS = 10
FAR = 0.5


class NonFiniteLossError(FloatingPointError):
    """Losses or gradients stay infinite or not a number; the message names the step, the images and the last checkpoint."""


class FiniteGuard:
    """Tells whether loss and gradient of an optimizer step are finite on all processes, and counts the steps that were not.

    Args:
        most_in_a_row (`int`): Steps in a row, at least 1, that end the run.

    Attributes:
        skipped (`int`): Steps left out since the start of the run.
        in_a_row (`int`): Of these, the ones since the last step that was made.
        skips (`bool`): Whether the present step is left out.
        overflows (`bool`): Whether a gradient scaler leaves it out, which then lowers its scale.
    """

    def __init__(self, most_in_a_row: int) -> None:
        self.most_in_a_row = most_in_a_row
        self.skipped = self.in_a_row = 0
        self.begin_step()

    def begin_step(self) -> None:
        """Forgets the step before."""
        self._loss: torch.Tensor | None = None
        self._gradient: torch.Tensor | None = None
        self.skips = self.overflows = False

    def see_loss(self, loss: torch.Tensor) -> None:
        """Notes a micro-batch's loss, without waiting for the device."""
        finite = torch.isfinite(loss)
        self._loss = finite if self._loss is None else self._loss & finite

    def see_gradient(self, norm: Any) -> None:
        """Notes the norm of the step's gradient, without waiting for the device."""
        if self._loss is not None:
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self._gradient = torch.isfinite(torch.as_tensor(norm, device=self._loss.device))

    def judge(self, heard: int, world_size: int, scaled: bool = False) -> int:
        """Decides for all processes together whether the step is left out; waits for the device once.

        Args:
            heard (`int`): The signal that this process was sent, or 0.
            world_size (`int`): How many processes.
            scaled (`bool`): Whether a gradient scaler looks after gradients that are not finite.

        Returns:
            `int`: The signal that any of them was sent, or 0.
        """
        if self._loss is None:
            return heard
        gradient = self._loss if self._gradient is None else self._gradient
        told = torch.stack([(~finite).long().reshape(()) for finite in (self._loss, gradient)])
        if world_size > 1:
            told = torch.cat([told, torch.tensor([heard], device=told.device)])
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        broken_loss, broken_gradient, *signals = told.tolist()
        self.skips = bool(broken_loss or (broken_gradient and not scaled))
        self.overflows = bool(broken_gradient and scaled and not broken_loss)
        return signals[0] if signals else heard

    def count(self, step: int, rank: int, keys: list[str], run_dir: Path) -> None:
        """Counts the present step if it is left out, and writes down its images.

        Args:
            step (`int`): The step.
            rank (`int`): This process.
            keys (`list[str]`): Its images.
            run_dir (`Path`): Where the record goes.

        Raises:
            NonFiniteLossError: If it is the last of `most_in_a_row`.
        """
        if not self.skips:
            return
        self.skipped += 1
        self.in_a_row += 1
        record = run_dir / f"nonfinite_step_{step}_rank_{rank}.json"
        own_loss = self._loss is None or bool(self._loss)
        text = json.dumps({"step": step, "loss_of_this_process_is_finite": own_loss, "keys": keys}, indent=1)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            record.write_text(text)
        except OSError as error:
            logger.warning(f"{record.name} could not be written ({error.strerror})")
        images = f"its images are {', '.join(keys[:4])}{' ...' if len(keys) > 4 else ''} (all in {record.name})"
        if self.in_a_row < self.most_in_a_row:
            logger.warning(
                f"step {step} is left out, its loss or gradient is not finite: weights and teacher stay; {images}. "
                f"The run stops after {self.most_in_a_row} such steps in a row (max_nonfinite_steps)"
            )
            return
        last = newest_whole_checkpoint(run_dir)
        kept = f"{last.name} is kept" if last else "there is no checkpoint yet"
        before = self.in_a_row - 1
        row = f", as {'in the step' if before == 1 else f'in the {before} steps'} before it" if before else ""
        raise NonFiniteLossError(
            f"the loss of step {step} or its gradient is not finite{row}; {images}; the weights did not move and {kept}. "
            "Lower base_learning_rate, lengthen warmup_steps or train in bf16 instead of fp16, then resume."
        )

    def made(self) -> None:
        """Notes that the weights have moved."""
        self.in_a_row = 0

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, int] | None) -> None:
        """Goes on from a checkpoint's `state()`; from 0 without one."""
        self.skipped, self.in_a_row = (state["skipped"], state["in_a_row"]) if state else (0, 0)


class TeacherWatch:
    """Looks now and then whether the teacher follows its student, and says once each what is wrong and what to do."""

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self._distance = 0.0
        self._still = self._equal = self._growing = 0
        self._warned: set[str] = set()

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)

    def begin(self, start: float, end: float) -> None:
        """Says if the momentum, from `start` to `end`, is one that no teacher moves with."""
        if start == end == 1.0:
            self._warn(
                "momentum",
                "teacher_momentum is 1 from the first step to the last: the teacher stays what it was at the start. Set "
                "teacher_momentum below 1 (0.996), unless the teacher is to be frozen.",
            )

    @torch.no_grad()
    def look(self, model: Any, step: int, momentum: float, settled: bool) -> float | None:
        """Compares teacher and student; waits for the device once.

        Args:
            model (`TeacherStudentModel`): The model, between two steps.
            step (`int`): Optimizer steps made.
            momentum (`float`): The teacher's.
            settled (`bool`): Whether the warm-up is over.

        Returns:
            `float` or `None`: Norm of teacher - student as a share of the student's; None without a teacher.
        """
        measured, moved_teacher, moved_student = self._measure(model)
        if measured is None:
            return None
        distance, before = measured, self._distance
        self._distance = distance
        frozen = momentum == 1.0
        self._still = self._still + 1 if moved_student and not moved_teacher and not frozen else 0
        self._equal = self._equal + 1 if moved_student and distance == 0.0 and momentum > 0 else 0
        self._growing = self._growing + 1 if settled and distance > before > 0 else 0
        if self._equal >= STILL_LOOKS:
            self._warn(
                "equal",
                f"at step {step} the teacher equals the student in every weight although teacher_momentum is "
                f"{momentum:g}: they share their tensors, or something copies one into the other. Make the model anew "
                "from its configuration, and leave the teacher to the trainer.",
            )
        elif self._still >= STILL_LOOKS:
            self._warn(
                "still",
                f"at step {step} the teacher has not moved since the last {STILL_LOOKS} looks although the student has "
                f"and teacher_momentum is {momentum:g}: it is detached. Call on_optimizer_step (or update_teacher) if the "
                "trainer or model is your own, and lower teacher_momentum if 1 - teacher_momentum is below 1e-7.",
            )
        if self._growing >= GROWING_LOOKS and distance > FAR:
            self._warn(
                "growing",
                f"at step {step} the teacher is {distance:.2f} of the student's norm away from it, farther at each of "
                f"the last {GROWING_LOOKS} looks: it no longer follows. Lower the learning rate or teacher_momentum "
                f"(now {momentum:g}).",
            )
        return distance

    def _measure(self, model: Any) -> tuple[float | None, bool, bool]:
        """Distance, and whether teacher and student have moved since the last look."""
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
        told = torch.stack([torch.stack(apart).sum(), torch.stack(size).sum(), *moved])
        if sharded:
            torch.distributed.all_reduce(told)
        difference, norm, teacher_moved, student_moved = told.tolist()
        return (difference / norm) ** 0.5 if norm else 0.0, teacher_moved > 0, student_moved > 0
