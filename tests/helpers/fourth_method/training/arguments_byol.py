"""Training arguments of BYOL."""

from dataclasses import dataclass

from hf_geossl.training.arguments import TeacherStudentTrainingArguments


@dataclass
class BYOLTrainingArguments(TeacherStudentTrainingArguments):
    """Training arguments of BYOL."""
