"""Base of the pretraining classes of all methods: a student, and a momentum teacher with the same submodules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .modeling_vit import GeometricViTPreTrainedModel


class Teacher(nn.Module):
    """The momentum copy of what is trained, under the student's names; it gets no gradient."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.requires_grad_(False)


class TeacherStudentModel(GeometricViTPreTrainedModel):
    """Base of the pretraining classes.

    A subclass sets `teacher`, a module whose weights have the names of the student's, after its own submodules, and
    ends its `__init__` with `post_init()` and `copy_student_to_teacher()`. A method without a teacher sets it to None.
    """

    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = ["teacher"]
    teacher: Any  # a module, or None

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers'. From a checkpoint without a teacher (an exported trunk) the teacher starts as the student."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        model.freeze_untrained()  # transformers makes every weight that it loads trainable
        if all(key in info["missing_keys"] for key in model.state_dict() if key.startswith("teacher.")):
            model.copy_student_to_teacher()
        return (model, info) if output_loading_info else model

    def freeze_untrained(self) -> None:
        """Keeps gradients from the teacher; a subclass adds what else its objective does not train."""
        if self.teacher is not None:
            self.teacher.requires_grad_(False)

    def on_optimizer_step(self, momentum: float) -> None:
        """Moves what moves once per optimizer step, after the student: here the teacher, see `update_teacher`."""
        self.update_teacher(momentum)

    def reset_accumulated(self) -> None:
        """Drops what the forward passes of an optimizer step that was skipped have accumulated."""

    def teacher_pairs(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Pairs the teacher's weights with the student's of the same names; two empty lists without a teacher."""
        if self.teacher is None:
            return [], []
        student = dict(self.named_parameters())
        teacher = dict(self.teacher.named_parameters())
        return list(teacher.values()), [student[name] for name in teacher]

    @torch.no_grad()
    def copy_student_to_teacher(self) -> None:
        """Makes the teacher equal to the student."""
        for teacher, student in zip(*self.teacher_pairs(), strict=True):
            if not teacher.is_meta:
                teacher.copy_(student)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Moves the teacher once: teacher <- momentum * teacher + (1 - momentum) * student, in the teacher's float32.

        Raises:
            ValueError: If `momentum` is outside [0, 1], or the teacher is in less than float32.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        teachers, students = self.teacher_pairs()
        if other := {teacher.dtype for teacher in teachers} - {torch.float32, torch.float64}:
            raise ValueError(
                f"the teacher must be in float32, where small steps are not rounded away, got {other.pop()}; train with "
                "bf16=True (autocast) instead of moving the model to another dtype"
            )
        students = [student.to(teacher.dtype) for teacher, student in zip(teachers, students, strict=True)]
        move: Callable[..., None] = get_ema_multi_avg_fn(momentum)
        move(teachers, students, None)  # one operation for all weights; the third argument, a count, is not used
