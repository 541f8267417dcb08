"""`LOCATrainer`: LOCA pretraining (arXiv 2212.02400)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import nn

from hf_geossl.methods import METHODS
from hf_geossl.modeling.teacher_student import TeacherStudentModel, check_reconstruction_views
from hf_geossl.training.arguments_loca import LOCATrainingArguments
from hf_geossl.training.matching import check_model, fitting_sizes, format_of
from hf_geossl.training.optimization import OptimizerPlan
from hf_geossl.training.progress import count_of, describe_stream
from hf_geossl.training.schedules import linear_warmup_cosine
from hf_geossl.training.trainer import TeacherStudentTrainer
from hf_geossl.views.base import Views
from hf_geossl.views.loca import LOCAViews

# matrices with a row for each head in the authors' code, where everything but vectors is decayed
_ATTENTION_BIASES = tuple(
    f"attention.{name}" for name in ("qkv.bias", "query.bias", "key_value.bias", "query_bias", "value_bias")
)


class LOCAPlan(OptimizerPlan):
    """The authors' schedule and weight decay."""

    args: LOCATrainingArguments

    def lr_lambda(self, step: int, total_steps: int, warmup_steps: int, end: float) -> float:
        """The cosine times a linear warm-up, which reaches the peak at step `warmup_steps`."""
        return linear_warmup_cosine(step, total_steps, warmup_steps, 1.0, end)

    def decayed_parameters(self, model: nn.Module) -> list[str]:
        """Tensors of two or more dimensions, and with `decay_attention_biases` those of queries, keys and values."""
        names = set(super().decayed_parameters(model))
        biases = self.args.decay_attention_biases
        return [
            name
            for name, parameter in model.named_parameters()
            if name in names or (biases and parameter.requires_grad and name.endswith(_ATTENTION_BIASES))
        ]


class LOCATrainer(TeacherStudentTrainer):
    """Trains a `LOCAForPreTraining` on a stream.

    Args:
        model (`LOCAForPreTraining`): The model.
        args (`LOCATrainingArguments`): The training arguments.
        train_dataset, eval_dataset, views, **kwargs: As `TeacherStudentTrainer`; `views` defaults to `LOCAViews()`.

    Example:
        ```python
        from hf_geossl import LOCAConfig, LOCAForPreTraining, LOCATrainer, LOCATrainingArguments, load_stream

        args = LOCATrainingArguments(output_dir="run", max_steps=1000, per_device_train_batch_size=64)
        trainer = LOCATrainer(LOCAForPreTraining(LOCAConfig()), args, train_dataset=load_stream("my/images"))
        trainer.train()
        trainer.save_model()
        ```
    """

    method = "loca"
    arguments_class = LOCATrainingArguments
    plan_class = LOCAPlan
    args: LOCATrainingArguments
    views: LOCAViews
    metrics: ClassVar[tuple[str, ...]] = ("location_accuracy",)

    def default_views(self, model: TeacherStudentModel | None) -> LOCAViews:
        """A reference and a random query of the model's size, nine focal queries of 96 pixels or what the patch divides."""
        if model is None:
            return LOCAViews()
        check_model(METHODS[self.method], model)
        config: Any = model.config
        return LOCAViews(
            reconstruction=config.reconstruction if config.num_decoders else None,
            num_intermediate=config.num_intermediate,
            image_format=format_of(config),
            patch_size=config.patch_size,
            **{
                **fitting_sizes(METHODS[self.method], config.patch_size),
                "reference_size": config.image_height_width[0],
            },
        )

    def check_views(self, model: TeacherStudentModel, views: Views) -> None:
        """As `TeacherStudentTrainer.check_views`; views must fit positions, patches and reconstruction."""
        super().check_views(model, views)
        config: Any = model.config
        own = cast(LOCAViews, views)
        side = own.reference_size
        if config.image_height_width != (side, side):
            raise ValueError(
                f"reference_size of the views must be the model's image_size {config.image_size}, got {side}: "
                "positions are counted in patches of the reference"
            )
        if own.patch_size != config.patch_size:
            raise ValueError(f"patch_size of the views must be the model's, {config.patch_size}, got {own.patch_size}")
        check_reconstruction_views(config, views)

    def chance_losses(self) -> dict[str, float]:
        """All positions as likely, all clusters as likely; the mean entropy's least value is no sign of either."""
        config = self.model.config
        positions = self.model.position_predictor.out_features
        chances = {"location_loss": math.log(positions), "location_accuracy": 1 / positions}
        if config.has_cluster_head:
            chances["cluster_loss"] = math.log(config.num_prototypes)
        return chances

    def probe_targets(self, model: Any, outputs: Any) -> dict[str, torch.Tensor]:
        """What the clusters of all patches are chosen by, and their probabilities before they are balanced."""
        if not model.config.has_cluster_head:
            return {}
        cosines = model.teacher.cluster_head(model.loca.patch_tokens(outputs)).flatten(0, 1)
        return {
            "target_spread": cosines,
            "predictions": torch.softmax(cosines.float() / model.config.teacher_temperature, dim=-1),
        }

    def describe_evaluation(self, measured: Mapping[str, float]) -> str:
        """Position accuracy beside chance."""
        accuracy, chance = measured["eval_location_accuracy"], self.chance_losses()["location_accuracy"]
        images = count_of(int(measured["eval_images"]), "held-out image")
        return (
            f"position accuracy on {images} of {describe_stream(self.eval_dataset)}: {100 * accuracy:.1f} %, "
            f"chance {100 * chance:.1f} %"
        )
