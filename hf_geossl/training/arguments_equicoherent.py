"""Training arguments of EquiCoherent and its hosts (arXiv 2503.18753)."""

import math
from dataclasses import dataclass

from hf_geossl.training.arguments import TeacherStudentTrainingArguments


@dataclass
class EquiCoherentTrainingArguments(TeacherStudentTrainingArguments):
    """Training arguments of EquiCoherent and of its hosts; the defaults are iBOT's recipe for a ViT-S (arXiv 2111.07832).

    Schedules that the papers give in epochs are shares of the run here.

    Args:
        learning_rate_scaling (`str`): `"linear"`: `base_learning_rate` is for a global batch of 256 and grows with it;
            `"sqrt"`, DINOv2's: it is for 1024 and grows with the root of the batch.
        teacher_temperature_start (`float`): Temperature of the teacher's softmax at the first step; the model's
            `teacher_temperature` after the warm-up.
        teacher_temperature_warmup (`float`): Steps of the linear way between them; below 1 a share of the run.
        freeze_last_layer (`float`): Steps in which the prototypes stay; below 1 a share of the run.
    """

    learning_rate_scaling: str = "linear"
    teacher_temperature_start: float = 0.04
    teacher_temperature_warmup: float = 0.3
    freeze_last_layer: float = 0.05

    def __post_init__(self) -> None:
        if self.learning_rate_scaling not in ("linear", "sqrt"):
            raise ValueError(f"learning_rate_scaling must be 'linear' or 'sqrt', got {self.learning_rate_scaling!r}")
        if not self.teacher_temperature_start > 0:
            raise ValueError(f"teacher_temperature_start must be above 0, got {self.teacher_temperature_start}")
        for name in ("teacher_temperature_warmup", "freeze_last_layer"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        super().__post_init__()

    @property
    def scaled_learning_rate(self) -> float:
        """`base_learning_rate` for this run's global batch, as `learning_rate_scaling` says."""
        if self.learning_rate_scaling == "linear":
            return super().scaled_learning_rate
        assert self.base_learning_rate is not None
        return self.base_learning_rate * math.sqrt(self.global_batch_size / 1024)
