"""`EquiCoherentTrainer`: pretraining of a host method with the reconstruction of intermediate images (arXiv 2503.18753)."""

import logging
import math
from typing import Any, ClassVar

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_geossl.methods import METHODS
from hf_geossl.modeling.modeling_equicoherent import PrototypeLinear
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.arguments_equicoherent import EquiCoherentTrainingArguments
from hf_geossl.training.callbacks import model_of
from hf_geossl.training.matching import check_model, fitting_sizes, format_of
from hf_geossl.training.schedules import steps_of
from hf_geossl.training.trainer import TeacherStudentTrainer
from hf_geossl.views.base import Views
from hf_geossl.views.equicoherent import EquiCoherentViews

logger = logging.getLogger(__name__)


class FreezeLastLayerCallback(TrainerCallback):
    """Leaves the prototypes as they are at the start of a run, as DINO does for its first epoch."""

    def __init__(self, args: EquiCoherentTrainingArguments) -> None:
        self.args = args

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Takes their gradients away, so that the optimizer does not move them."""
        if state.global_step < steps_of(self.args.freeze_last_layer, state.max_steps):
            for module in model_of(kwargs).modules():
                if isinstance(module, PrototypeLinear):
                    module.zero_grad(set_to_none=True)


class EquiCoherentTrainer(TeacherStudentTrainer):
    """Trains an `EquiCoherentForPreTraining` on a stream.

    Args:
        model (`EquiCoherentForPreTraining`): The model.
        args (`EquiCoherentTrainingArguments`): The training arguments.
        train_dataset, eval_dataset, views, **kwargs: As `TeacherStudentTrainer`; `views` defaults to those of the model's
            host and transformation.

    Raises:
        TypeError: As `TeacherStudentTrainer`.
        ValueError: As `TeacherStudentTrainer`, or if the host compares the images of a batch and a batch, of training or
            evaluation, holds one, or `eval_dataset` is known to hold less than a batch.

    Example:
        ```python
        from hf_geossl import (
            EquiCoherentConfig,
            EquiCoherentForPreTraining,
            EquiCoherentTrainer,
            EquiCoherentTrainingArguments,
            load_stream,
        )

        args = EquiCoherentTrainingArguments(output_dir="run", max_steps=1000, per_device_train_batch_size=64)
        model = EquiCoherentForPreTraining(EquiCoherentConfig(host="ibot", transformation="se2"))
        trainer = EquiCoherentTrainer(model, args, train_dataset=load_stream("my/images"))
        trainer.train()
        trainer.save_model()
        ```
    """

    method = "equicoherent"
    arguments_class = EquiCoherentTrainingArguments
    args: EquiCoherentTrainingArguments
    views: EquiCoherentViews
    quantities: ClassVar[tuple[str, ...]] = ("teacher_entropy", "prediction_diversity")

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        if not self.compares_images:
            return
        host = self.model.config.host
        processes = 1 if host == "dinov2" else self.args.world_size  # KoLeo compares the images of a process
        for name, size, dataset in (
            ("per_device_train_batch_size", self.args.train_batch_size, self.train_dataset),
            ("per_device_eval_batch_size", self.args.eval_batch_size, self.eval_dataset),
        ):
            if dataset is None or size * processes >= 2:
                continue
            if host == "simclr" and name.startswith("per_device_train") and self.model.config.num_decoders:
                logger.warning(
                    "a batch of one image holds nothing to contrast: of host 'simclr' only the reconstruction learns"
                )
            else:
                raise ValueError(f"{name} must be 2 or more, host {host!r} compares the images of a batch; got {size}")
        if self.eval_dataset is not None:
            self.get_eval_dataloader().check_size()  # before training, not after

    @property
    def compares_images(self) -> bool:
        """KoLeo's neighbours, VICReg's statistics and SimCLR's contrast are the batch's."""
        return self.model.config.host in ("dinov2", "vicreg", "simclr")

    def default_views(self, model: TeacherStudentModel | None) -> EquiCoherentViews:
        """The host's own views, the second global one transformed as the model says."""
        if model is None:
            return EquiCoherentViews()
        check_model(METHODS[self.method], model)
        config: Any = model.config
        return EquiCoherentViews(
            host=config.host,
            transformation=config.transformation,
            num_intermediate=config.num_intermediate,
            patch_size=config.patch_size,
            image_format=format_of(config),
            **fitting_sizes(METHODS[self.method], config.patch_size),
        )

    def check_views(self, model: TeacherStudentModel, views: Views) -> None:
        """As `TeacherStudentTrainer.check_views`; views must be of the model's host and reconstruction."""
        super().check_views(model, views)
        for name in ("host", "transformation", "num_intermediate", "patch_size"):
            ours, theirs = getattr(views, name), getattr(model.config, name)
            if ours != theirs:
                raise ValueError(f"{name} of the views must be the model's, {theirs!r}, got {ours!r}")

    def model_arguments(self, step: int) -> dict[str, Any]:
        """The teacher's temperature."""
        return {"teacher_temperature": self.teacher_temperature_at(step)} if self.model.config.has_teacher else {}

    def teacher_temperature_at(self, step: int) -> float:
        """Linear from `teacher_temperature_start` to the model's, then constant."""
        warmup = steps_of(self.args.teacher_temperature_warmup, self.state.max_steps)
        start, end = self.args.teacher_temperature_start, self.model.config.teacher_temperature
        return end if step >= warmup else start + (end - start) * step / warmup

    def method_callbacks(self) -> list[TrainerCallback]:
        """See `FreezeLastLayerCallback`."""
        return [FreezeLastLayerCallback(self.args)]

    def chance_losses(self) -> dict[str, float]:
        """All prototypes as likely: a class loss or a teacher's entropy that stays there has never started."""
        if not self.model.config.has_teacher:
            return {}
        uniform = math.log(self.model.config.num_prototypes)
        return {"class_loss": uniform, "teacher_entropy": uniform}

    def probe_targets(self, model: Any, outputs: Any) -> dict[str, torch.Tensor]:
        """What class tokens are compared with the prototypes by; entropy and diversity are logged of every step."""
        if model.teacher is None:
            return {}
        return {"target_spread": model.teacher.head.bottleneck(model.invariant(model.teacher, outputs.pooler_output))}
