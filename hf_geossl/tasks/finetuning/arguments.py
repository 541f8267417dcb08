"""`FineTuningArguments`: transformers' training arguments, and what of a trunk is trained."""

import copy
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hf_geossl.data.wording import counted
from hf_geossl.tasks.finetuning.settings import DEFAULTS, EPOCHS, MIN_STEPS, AdaptationSettings
from hf_geossl.training.arguments import RecomputationNames

logger = logging.getLogger(__name__)
OWN_METRIC = "the task's own"  # the best checkpoint's metric where none is named


@dataclass
class FineTuningArguments(AdaptationSettings, RecomputationNames, TrainingArguments):
    """`TrainingArguments` for fine-tuning, with the defaults of `settings.DEFAULTS` and the fields of `AdaptationSettings`.

    Raises:
        ValueError: If a value is out of its range.
    """

    per_device_train_batch_size: int = DEFAULTS["per_device_train_batch_size"]
    per_device_eval_batch_size: int = DEFAULTS["per_device_eval_batch_size"]
    learning_rate: float = DEFAULTS["learning_rate"]
    weight_decay: float = DEFAULTS["weight_decay"]
    warmup_steps: float = DEFAULTS["warmup_steps"]
    lr_scheduler_type: str = DEFAULTS["lr_scheduler_type"]
    logging_steps: float = DEFAULTS["logging_steps"]
    save_steps: float = DEFAULTS["save_steps"]
    save_total_limit: int | None = DEFAULTS["save_total_limit"]
    eval_strategy: str = DEFAULTS["eval_strategy"]
    eval_steps: float | None = DEFAULTS["eval_steps"]
    remove_unused_columns: bool = DEFAULTS["remove_unused_columns"]
    train_sampling_strategy: str = DEFAULTS["train_sampling_strategy"]
    ddp_find_unused_parameters: bool | None = DEFAULTS["ddp_find_unused_parameters"]
    num_train_epochs: float = -1  # not transformers' 3, which looks the same as a 3 that was asked for

    def __post_init__(self) -> None:
        if not re.fullmatch(r"all|head|norms|last:[1-9]\d*", self.train_layers):
            raise ValueError(
                f"train_layers must be 'all', 'head', 'norms' or such as 'last:4', got {self.train_layers!r}"
            )
        if self.lora_rank < 0 or (self.lora_rank and self.train_layers in ("head", "norms")):
            raise ValueError(
                f"lora_rank must be 0 or more, and 0 with train_layers {self.train_layers!r}, got {self.lora_rank}"
            )
        if not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha must be above 0, got {self.lora_alpha}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if self.min_crop is not None and not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop must be above 0 and at most 1, got {self.min_crop}")
        if self.curve_images < 1:
            raise ValueError(f"curve_images must be at least 1, got {self.curve_images}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps must be above 0, or -1 for num_train_epochs, got {self.max_steps}")
        if self.num_train_epochs <= 0 and self.num_train_epochs != -1:
            raise ValueError(f"num_train_epochs must be above 0, or -1 for the default, got {self.num_train_epochs}")
        if self.remove_unused_columns or self.train_sampling_strategy != "sequential":
            raise ValueError(
                "remove_unused_columns must stay off and train_sampling_strategy 'sequential': images are read in an order of "
                "their own, by which a run resumes"
            )
        if self.ignore_data_skip:
            raise ValueError("ignore_data_skip must stay off: a resumed run goes on with the images that come next")
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = OWN_METRIC
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # without one torch warns, and pins nothing
        self.name_recomputation()
        super().__post_init__()

    def for_run(self, images: int, metrics: Mapping[str, bool] = MappingProxyType({"loss": False})) -> Self:
        """A copy with `max_steps`, which says how long a run on so many training images is, and without a token.

        Without `max_steps` and `num_train_epochs` it is the longer of `EPOCHS` passes and `MIN_STEPS` steps. The best
        checkpoint, where it is asked for, is chosen by the first of the `metrics` where none is named; they say too whether a
        greater one is better, whatever `greater_is_better` is.

        Raises:
            ValueError: If the best checkpoint is to be chosen by a number that is not measured.
        """
        args = copy.copy(self)
        args.hub_token = None  # checkpoints hold the arguments
        if self.metric_for_best_model is not None:
            name = self.metric_for_best_model.removeprefix("eval_")
            name = next(iter(metrics)) if name == OWN_METRIC else name
            if name not in metrics:
                raise ValueError(f"metric_for_best_model must be one of {', '.join(metrics)}, got {name!r}")
            args.metric_for_best_model, args.greater_is_better = name, metrics[name]
        if args.max_steps <= 0:
            given = self.num_train_epochs > 0
            epochs = self.num_train_epochs if given else EPOCHS
            steps = math.ceil(epochs * images / self.global_batch_size)
            args.max_steps = max(steps, 1 if given else MIN_STEPS)
        epoch = math.ceil(images / self.global_batch_size)
        for name in ("logging", "save", "eval"):
            if getattr(self, f"{name}_strategy") == "epoch":  # runs are counted in steps
                setattr(args, f"{name}_strategy", IntervalStrategy.STEPS)
                setattr(args, f"{name}_steps", epoch)
                logger.warning("%s_strategy epoch: every %s", name, counted(epoch, "step"))
        return args

    @property
    def global_batch_size(self) -> int:
        """Images of one optimizer step, over all processes and accumulation."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size
