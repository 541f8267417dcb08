"""What can be set of a fine-tuning, without importing torch: the command line reads it from here.

`FineTuningArguments` are these settings and transformers' own training arguments.
"""

from dataclasses import dataclass, field
from typing import Any

TASKS = ("classification", "segmentation", "depth", "detection")
DECODERS = {
    "classification": ("linear",),
    "segmentation": ("linear", "upernet"),
    "depth": ("dpt", "linear"),
    "detection": ("rcnn",),
}  # of each task, the default first
# of transformers' training arguments, those that are others here
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "learning_rate": 5e-4,
    "weight_decay": 0.05,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "logging_steps": 0.02,
    "save_steps": 0.1,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "remove_unused_columns": False,
    "train_sampling_strategy": "sequential",
    "ddp_find_unused_parameters": True,  # decoders read layers before the final norm, which then has no gradient
}
MIN_STEPS, EPOCHS = 500, 5  # of a run whose length is not given: the longer of the two


@dataclass(frozen=True)
class HeadSettings:
    """The head, and the size of the images that it is trained on.

    Args:
        decoder (`str`, *optional*): One of `DECODERS` of the task; the first by default.
        decoder_channels (`int`, *optional*): Channels of the decoder's maps; 64 for masks and boxes, 32 for depths by default.
        image_size (`int`, *optional*): Side of the images in pixels; the model's own by default.
        max_depth (`float`): Metres from which on depths do not count, and the largest that is predicted.
        class_names (`list[str]`, *optional*): Names of the classes in the order of their numbers, where the data have none.
    """

    decoder: str | None = field(
        default=None,
        metadata={"help": "linear or upernet (segmentation), dpt or linear (depth); linear, dpt by default."},
    )
    decoder_channels: int | None = field(
        default=None,
        metadata={"help": "Channels of the decoder's maps; 64 for masks and boxes, 32 for depths by default."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the images in pixels; the model's own by default."}
    )
    max_depth: float = field(
        default=80.0, metadata={"help": "Depths from so many metres on do not count, and none larger is predicted."}
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the classes by number, where the data have none."}
    )


@dataclass
class AdaptationSettings:
    """How much of the model is trained, and how images are varied.

    Args:
        train_layers (`str`): What of the trunk is trained beside the head: `"all"`, `"head"` (nothing: a linear probe where the
            head is linear), `"norms"` (layer norms alone) or `"last:4"` (the last four layers and the final norm); with `lora_rank`,
            where the adapters are: `"all"` or `"last:4"`.
        layer_decay (`float`): Learning rate of a layer as a share of that of the next one, in (0, 1].
        lora_rank (`int`): Rank of LoRA adapters, which are trained in the trunk's place; 0 is none. The saved model has them
            merged into its weights. Needs peft.
        lora_alpha (`float`): Adapters are scaled by this / lora_rank.
        min_crop (`float`, *optional*): Smallest share of an image's area that is cut out of it in training, in (0, 1]; 1 cuts
            nothing. By default .3 for classes, .25 for masks, .5 for boxes, and 1 for depth, which a crop would change.
        mirror (`bool`): Whether half of the training images are mirrored.
        curve_images (`int`): How many of the test images the learning curve is measured on while training, at most.
        random_floor (`bool`): Whether the same is trained from random weights too, for comparison, which takes as long again.
    """

    train_layers: str = field(
        default="all",
        metadata={"help": "What of the trunk is trained: all, head (nothing else), norms, or the last layers: last:4."},
    )
    layer_decay: float = field(
        default=0.75, metadata={"help": "Learning rate of a layer as a share of that of the next one."}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Rank of LoRA adapters, trained in the trunk's place; 0 is none. Needs peft."}
    )
    lora_alpha: float = field(default=16.0, metadata={"help": "Adapters are scaled by this / lora_rank."})
    min_crop: float | None = field(
        default=None,
        metadata={
            "help": "Smallest share of an image's area that is cut out in training; .25 to .5 by task, 1 (no crop) for depth."
        },
    )
    mirror: bool = field(default=True, metadata={"help": "Mirror half of the training images."})
    curve_images: int = field(
        default=256, metadata={"help": "Test images that the learning curve is measured on while training, at most."}
    )
    random_floor: bool = field(
        default=False, metadata={"help": "Train from random weights too, for comparison; takes as long again."}
    )
