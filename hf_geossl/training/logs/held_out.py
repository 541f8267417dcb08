"""Losses of held-out images: one pass, from the same draws each time."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_geossl.data.evaluation_batches import EvaluationBatches
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.logs.meter import gathered_means
from hf_geossl.training.seeds import EVALUATION, EVALUATION_VIEWS, seed_at
from hf_geossl.views.base import Views


class HeldOutLosses:
    """Measures losses, their parts and metrics: means over the images of all processes.

    The model takes its final loss weights, so that the losses can be compared over the run, and the generator of the
    training is left as it was.

    Args:
        args (`TeacherStudentTrainingArguments`): The training arguments.
        views (`Views`): The run's.
        accelerator (`Accelerator`): Of the run.
        parts_of (`Callable`): A model's outputs -> scalars by name.
    """

    def __init__(
        self,
        args: TeacherStudentTrainingArguments,
        views: Views,
        accelerator: Accelerator,
        parts_of: Callable[[Any], Mapping[str, torch.Tensor]],
    ) -> None:
        self.args, self.views, self.accelerator, self.parts_of = args, views, accelerator, parts_of

    @torch.no_grad()
    def measure(
        self,
        model: TeacherStudentModel,
        batches: EvaluationBatches,
        to_device: Callable[[dict[str, Any]], dict[str, Any]],
        after_batch: Callable[[], object],
    ) -> dict[str, float]:
        """Measures one pass; all processes must call this.

        Args:
            model (`TeacherStudentModel`): The model, without a wrapper.
            batches (`EvaluationBatches`): The batches.
            to_device (`Callable`): Moves a batch to the device.
            after_batch (`Callable`): Called after each batch.

        Returns:
            `dict[str, float]`: The means by name, and how many `images` there were on all processes; empty without images.
        """
        nn.Module.to(model, self.args.device).eval()
        sums: dict[str, torch.Tensor] = {}
        images, rank = 0, self.args.process_index
        for batch in batches:
            crops = dict(batch)
            number = crops.pop("evaluation_batch")
            generator = torch.Generator().manual_seed(seed_at(self.args.seed, rank, EVALUATION_VIEWS, number))
            drawn = torch.get_rng_state()
            try:
                torch.default_generator.manual_seed(seed_at(self.args.seed, rank, EVALUATION, number))
                inputs: dict[str, Any] = self.views.augment(to_device(crops), generator)
                with self.accelerator.autocast():
                    parts = self.parts_of(model(**inputs))
            finally:
                torch.set_rng_state(drawn)
            count = len(next(iter(inputs.values())))
            images += count
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + count * value
            after_batch()
        if not images:
            return {}
        return {**gathered_means(sums, images, self.accelerator), "images": batches.images}
