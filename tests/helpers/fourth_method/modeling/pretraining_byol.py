"""BYOL pretraining (arXiv 2006.07733), without its batch norms."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_byol import BYOLConfig
from .modeling_byol import BYOLModel, BYOLPreTrainedModel
from .teacher_student import TeacherStudentModel


@dataclass
class BYOLForPreTrainingOutput(ModelOutput):
    """Args:
    loss (`torch.Tensor` of shape `()`): 2 - 2 cos of prediction and target, the mean over images and directions.
    prediction_loss (`torch.Tensor` of shape `()`): The same.
    """

    loss: torch.Tensor | None = None
    prediction_loss: torch.Tensor | None = None


def _mlp(size: int, hidden_size: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, hidden_size), nn.LayerNorm(hidden_size), nn.GELU(), nn.Linear(hidden_size, out)
    )


class BYOLTeacher(nn.Module):
    """The momentum copy of trunk and projector."""

    def __init__(self, config: BYOLConfig) -> None:
        super().__init__()
        self.byol = BYOLModel(config)
        self.projector = _mlp(config.hidden_size, config.predictor_hidden_size, config.projection_size)
        self.requires_grad_(False)


class BYOLForPreTraining(BYOLPreTrainedModel, TeacherStudentModel):
    """Student, teacher and predictor; the student trunk is `byol`, the teacher's `teacher.byol`."""

    auto_map: ClassVar[dict[str, str]] = {
        **BYOLPreTrainedModel.auto_map,
        "AutoModelForPreTraining": "pretraining_byol.BYOLForPreTraining",
    }
    main_input_name = "global_pixel_values"
    teacher: BYOLTeacher

    def __init__(self, config: BYOLConfig) -> None:
        super().__init__(config)
        self.byol = BYOLModel(config)
        self.projector = _mlp(config.hidden_size, config.predictor_hidden_size, config.projection_size)
        self.predictor = _mlp(config.projection_size, config.predictor_hidden_size, config.projection_size)
        self.teacher = BYOLTeacher(config)
        self.post_init()
        self.copy_student_to_teacher()

    @can_return_tuple
    def forward(self, global_pixel_values: torch.Tensor, **kwargs: object) -> BYOLForPreTrainingOutput:
        """Args:
            global_pixel_values (`torch.Tensor` of shape `(batch, 2, channels, S, S)`): Two crops of each image.

        Returns:
            `BYOLForPreTrainingOutput`.
        """
        views = global_pixel_values.flatten(0, 1)
        predicted = self.predictor(self.projector(self.byol(views).pooler_output))
        with torch.no_grad():
            target = self.teacher.projector(self.teacher.byol(views).pooler_output)
        with torch.autocast(global_pixel_values.device.type, enabled=False):
            predicted, target = (F.normalize(x.float().unflatten(0, (-1, 2)), dim=-1) for x in (predicted, target))
            loss = (2 - 2 * (predicted * target.flip(1)).sum(-1)).mean()
        return BYOLForPreTrainingOutput(loss=loss, prediction_loss=loss.detach())


__all__ = ["BYOLForPreTraining", "BYOLForPreTrainingOutput"]
