"""`GTSATrainer`: GTSA pretraining (arXiv 2304.08014)."""

import math
from typing import Any, cast

import torch

from hf_geossl.methods import METHODS
from hf_geossl.modeling.teacher_student import TeacherStudentModel, check_reconstruction_views
from hf_geossl.training.arguments_gtsa import GTSATrainingArguments
from hf_geossl.training.matching import check_model, fitting_sizes, format_of
from hf_geossl.training.optimization import OptimizerPlan
from hf_geossl.training.schedules import from_step, steps_of
from hf_geossl.training.trainer import TeacherStudentTrainer
from hf_geossl.views.base import Views
from hf_geossl.views.gtsa import GTSAViews


class GTSAPlan(OptimizerPlan):
    """The authors' schedules."""

    def teacher_momentum_at(self, step: int) -> float:
        """The momentum of the step after `step`.

        The original moves the teacher before the optimizer step, with that step's momentum. Moving it after the step
        with the next step's momentum is the same sequence.
        """
        return super().teacher_momentum_at(step + 1)


class GTSATrainer(TeacherStudentTrainer):
    """Trains a `GTSAForPreTraining` on a stream.

    Args:
        model (`GTSAForPreTraining`): The model.
        args (`GTSATrainingArguments`): The training arguments; loss weights given there replace the model's.
        train_dataset, eval_dataset, views, **kwargs: As `TeacherStudentTrainer`; `views` defaults to `GTSAViews()`.

    Example:
        ```python
        from hf_geossl import GTSAConfig, GTSAForPreTraining, GTSATrainer, GTSATrainingArguments, load_stream

        args = GTSATrainingArguments(output_dir="run", max_steps=1000, per_device_train_batch_size=64)
        trainer = GTSATrainer(GTSAForPreTraining(GTSAConfig()), args, train_dataset=load_stream("my/images"))
        trainer.train()
        trainer.save_model()
        ```
    """

    method = "gtsa"
    arguments_class = GTSATrainingArguments
    plan_class = GTSAPlan
    args: GTSATrainingArguments
    views: GTSAViews

    def __init__(
        self,
        model: TeacherStudentModel | None = None,
        args: GTSATrainingArguments | None = None,
        *positional: object,
        **kwargs: object,
    ) -> None:
        super().__init__(model, args, *positional, **kwargs)  # type: ignore[arg-type]
        weights = {name: getattr(self.args, name) for name in ("correspondence_weight", "rotation_weight")}
        self.model.config.update({name: value for name, value in weights.items() if value is not None})

    def default_views(self, model: TeacherStudentModel | None) -> GTSAViews:
        """Two global views of 224 pixels and eight local ones of 96, or what the patch divides; and what is reconstructed."""
        if model is None:
            return GTSAViews()
        check_model(METHODS[self.method], model)
        config: Any = model.config
        return GTSAViews(
            reconstruction=config.reconstruction if config.num_decoders else None,
            num_intermediate=config.num_intermediate,
            image_format=format_of(config),
            **fitting_sizes(METHODS[self.method], config.patch_size),
        )

    def check_views(self, model: TeacherStudentModel, views: Views) -> None:
        """As `TeacherStudentTrainer.check_views`; views must fit the patches and the reconstruction."""
        super().check_views(model, views)
        for name in ("global_size", "local_size"):
            size, patch_size = getattr(views, name), model.config.patch_size
            if size % patch_size and not (name == "local_size" and cast(GTSAViews, views).num_local == 0):
                raise ValueError(f"{name} of the views must be a multiple of the patch size {patch_size}, got {size}")
        config: Any = model.config
        check_reconstruction_views(config, cast(GTSAViews, views))

    def chance_losses(self) -> dict[str, float]:
        """Four turns, all as likely."""
        return {"rotation_loss": math.log(4)}

    def model_arguments(self, step: int) -> dict[str, Any]:
        """The weight of the correspondence loss, 0 until `correspondence_start`."""
        first = steps_of(self.args.correspondence_start, self.state.max_steps)
        return {"correspondence_weight": from_step(step, first, self.model.config.correspondence_weight)}

    def probe_targets(self, model: Any, outputs: Any) -> dict[str, torch.Tensor]:
        """The targets of all patches."""
        targets = model.teacher.projector(model.gtsa.patch_tokens(outputs))  # (B, C, side, side)
        return {"target_spread": targets.transpose(0, 1).flatten(1).T}
