"""Training arguments of GTSA (arXiv 2304.08014)."""

from dataclasses import dataclass

from hf_geossl.training.arguments import TeacherStudentTrainingArguments


@dataclass
class GTSATrainingArguments(TeacherStudentTrainingArguments):
    """Training arguments of GTSA; the defaults are the authors' recipe `gtsa_small` (arXiv 2304.08014).

    Args:
        correspondence_weight (`float` or `None`): Weight of the patch-correspondence loss; None takes the model's.
        correspondence_start (`float`): Step from which that loss counts; below 1 a share of the run. The authors' code
            starts with the twelfth of 100 epochs.
        rotation_weight (`float` or `None`): Weight of the rotation loss; None takes the model's.
    """

    correspondence_weight: float | None = None
    correspondence_start: float = 0.11
    rotation_weight: float | None = None

    def __post_init__(self) -> None:
        if self.correspondence_start < 0:
            raise ValueError(f"correspondence_start must be 0 or more, got {self.correspondence_start}")
        super().__post_init__()
