"""`BYOLTrainer`: BYOL pretraining."""

from hf_geossl.training.arguments_byol import BYOLTrainingArguments
from hf_geossl.views.byol import BYOLViews

from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.trainer import TeacherStudentTrainer


class BYOLTrainer(TeacherStudentTrainer):
    """Trains a `BYOLForPreTraining` on a stream."""

    method = "byol"
    arguments_class = BYOLTrainingArguments

    def default_views(self, model: TeacherStudentModel | None) -> BYOLViews:
        """Two crops of 224 pixels."""
        return BYOLViews()
