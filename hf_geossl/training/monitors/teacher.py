"""How far the teacher is from its student, and whether it follows."""

import logging

import torch
from torch.distributed.tensor import DTensor

from hf_geossl.modeling.teacher_student import TeacherStudentModel

logger = logging.getLogger(__name__)

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
