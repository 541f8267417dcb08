"""Training arguments: transformers', with what teacher-student pretraining adds and other defaults."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

_LEARNING_RATE = TrainingArguments.__dataclass_fields__["learning_rate"].default


@dataclass
class TeacherStudentTrainingArguments(TrainingArguments):
    """`TrainingArguments` for teacher-student pretraining on streams. Defaults that differ from transformers': AdamW with
    weight decay 0.04, warm-up over a tenth of the run and a cosine (`lr_scheduler_type="cosine"`, which here ends at
    `min_learning_rate`; any other type is transformers' own), clipping at 3, a log line every 10 steps.

    Args:
        base_learning_rate (`float` or `None`): Learning rate for a global batch of 256; the peak is this times the
            global batch / 256. None uses `learning_rate` as it is, and so does a `learning_rate` given without this.
        min_learning_rate (`float` or `None`): Learning rate that the cosine ends at; None is 1 % of the peak.
        weight_decay_end (`float` or `None`): Weight decay at the end of the run; a cosine from `weight_decay`, which
            None keeps as it is.
        teacher_momentum (`float`): Share of the teacher that stays at the first step, in [0, 1].
        teacher_momentum_end (`float`): The same at the end of the run; a cosine between them.
        clip_mode (`str`): `"tensor"` clips each parameter tensor to `max_grad_norm`, `"global"` all of them together.
        num_streams (`int` or `None`): Logical streams that the data is read in; a multiple of the processes and of the
            workers of each. None takes one a worker (or the checkpoint's). More streams let a run be resumed with
            other numbers of processes and workers, for more memory; images, crops and colours stay the same, but not what
            a process draws for itself (stochastic depth, tokens of LOCA).
        probe_every_steps (`int`): Steps between two measurements of the spread of features; 0 turns them off.
        max_nonfinite_steps (`int`): Optimizer steps in a row, at least 1, whose loss or gradient is not finite before
            the run stops. Fewer are left out: weights and teacher stay, the data go on.
        picture (`bool`): Whether to make pictures of what is learned, at the end of the run.

    Raises:
        ValueError: If a value is out of its range.
    """

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the run: checkpoints and the model."})
    weight_decay: float = field(default=0.04, metadata={"help": "Weight decay at the first step."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of linear warm-up; below 1 it is a share of the run."}
    )
    lr_scheduler_type: str = field(
        default="cosine",
        metadata={"help": "'cosine' is warm-up and cosine to min_learning_rate; others are transformers' own."},
    )
    max_grad_norm: float = field(default=3.0, metadata={"help": "Norm that gradients are clipped to; 0 turns it off."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines; below 1 a share."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: views have keys of their own."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off: steps that are not finite are left out and counted."}
    )
    ignore_data_skip: bool = field(
        default=True, metadata={"help": "Must stay on: a checkpoint holds the position of the stream."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Off: every trained parameter gets a gradient in every step."}
    )
    base_learning_rate: float | None = field(
        default=5e-4,
        metadata={"help": "Learning rate for a global batch of 256, scaled linearly; 'none' uses learning_rate."},
    )
    min_learning_rate: float | None = field(
        default=1e-6, metadata={"help": "Learning rate that the cosine ends at; 'none' is 1 %% of the peak."}
    )
    weight_decay_end: float | None = field(
        default=0.4, metadata={"help": "Weight decay at the end of the run; 'none' keeps it constant."}
    )
    teacher_momentum: float = field(default=0.996, metadata={"help": "Teacher momentum at the first step."})
    teacher_momentum_end: float = field(default=1.0, metadata={"help": "Teacher momentum at the end of the run."})
    clip_mode: str = field(
        default="tensor",
        metadata={"help": "'tensor' clips each parameter tensor by itself, 'global' all together."},
    )
    num_streams: int | None = field(
        default=None, metadata={"help": "Logical streams of the data; by default one for each worker."}
    )
    probe_every_steps: int = field(
        default=50, metadata={"help": "Steps between two measurements of the spread of features; 0 is never."}
    )
    max_nonfinite_steps: int = field(
        default=3,
        metadata={
            "help": "Steps in a row whose loss or gradient is not finite before the run stops; fewer are left out."
        },
    )
    picture: bool = field(default=True, metadata={"help": "Make pictures of what is learned, at the end of the run."})

    def __post_init__(self) -> None:
        for name in ("teacher_momentum", "teacher_momentum_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.clip_mode not in ("tensor", "global"):
            raise ValueError(f"clip_mode must be 'tensor' or 'global', got {self.clip_mode!r}")
        for name in ("base_learning_rate", "num_streams"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, or left out, got {getattr(self, name)}")
        if self.max_nonfinite_steps < 1:
            raise ValueError(f"max_nonfinite_steps must be 1 or more, got {self.max_nonfinite_steps}")
        if self.probe_every_steps < 0:
            raise ValueError(f"probe_every_steps must be 0 or more, got {self.probe_every_steps}")
        if self.base_learning_rate is not None and self.learning_rate != _LEARNING_RATE:
            if self.base_learning_rate != type(self).__dataclass_fields__["base_learning_rate"].default:
                raise ValueError(
                    f"learning_rate={self.learning_rate:g} and base_learning_rate={self.base_learning_rate:g} (for a "
                    "global batch of 256) were both given: give one of them, learning_rate with base_learning_rate=None"
                )
            self.base_learning_rate = None  # a learning rate that was given is the learning rate
        for name in ("logging_strategy", "save_strategy", "eval_strategy"):
            if getattr(getattr(self, name), "value", getattr(self, name)) == "epoch":
                raise ValueError(f"{name} must be 'steps' or 'no', got 'epoch': a stream has no end, count in steps")
        if self.remove_unused_columns or not self.ignore_data_skip:
            raise ValueError("remove_unused_columns must stay off and ignore_data_skip on: streams resume by position")
        super().__post_init__()

    @property
    def scaled_learning_rate(self) -> float:
        """`base_learning_rate` for this run's global batch: linear in it, and meant for 256 images."""
        assert self.base_learning_rate is not None
        return self.base_learning_rate * self.global_batch_size / 256

    @property
    def global_batch_size(self) -> int:
        """Images of one optimizer step, over all processes and accumulation."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size


@dataclass
class GTSATrainingArguments(TeacherStudentTrainingArguments):
    """Training arguments of GTSA; the defaults are the authors' recipe `gtsa_small` (arXiv 2304.08014).

    Args:
        correspondence_weight (`float` or `None`): Weight of the patch-correspondence loss; None takes the model's.
        correspondence_start (`float`): Step from which that loss counts; below 1 a share of the run. The authors' code
            starts with the twelfth of 100 epochs.
        rotation_weight (`float` or `None`): Weight of the rotation loss; None takes the model's.
    """

    correspondence_weight: float | None = field(
        default=None, metadata={"help": "Weight of the patch-correspondence loss; the model's by default (0.5)."}
    )
    correspondence_start: float = field(
        default=0.11, metadata={"help": "Step from which the correspondence loss counts; below 1 a share of the run."}
    )
    rotation_weight: float | None = field(
        default=None, metadata={"help": "Weight of the rotation loss; the model's by default (0.5)."}
    )

    def __post_init__(self) -> None:
        if self.correspondence_start < 0:
            raise ValueError(f"correspondence_start must be 0 or more, got {self.correspondence_start}")
        super().__post_init__()


@dataclass
class LOCATrainingArguments(TeacherStudentTrainingArguments):
    """Training arguments of LOCA; the defaults are the authors' ViT-B/16 configuration (arXiv 2212.02400): a peak of 1e-3
    at a global batch of 1024 that ends at 1 % of itself, constant weight decay, all gradients clipped together.

    Args:
        decay_attention_biases (`bool`): Whether weight decay reaches the biases of queries, keys and values, as in the
            authors' code, where they are matrices (a row for each head).
    """

    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay at the first step."})
    warmup_steps: float = field(
        default=0.15, metadata={"help": "Steps of linear warm-up; below 1 it is a share of the run."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm that gradients are clipped to; 0 turns it off."})
    base_learning_rate: float | None = field(
        default=2.5e-4,
        metadata={"help": "Learning rate for a global batch of 256, scaled linearly; 'none' uses learning_rate."},
    )
    min_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate that the cosine ends at; 'none' is 1 %% of the peak."}
    )
    weight_decay_end: float | None = field(
        default=None, metadata={"help": "Weight decay at the end of the run; 'none' keeps it constant."}
    )
    clip_mode: str = field(
        default="global",
        metadata={"help": "'tensor' clips each parameter tensor by itself, 'global' all together."},
    )
    decay_attention_biases: bool = field(
        default=True,
        metadata={"help": "Decay the biases of queries, keys and values too, as the authors' code does."},
    )


@dataclass
class EquiCoherentTrainingArguments(TeacherStudentTrainingArguments):
    """Training arguments of EquiCoherent and of its hosts; the defaults are iBOT's recipe for a ViT-S (arXiv 2111.07832).
    Schedules that the papers give in epochs are shares of the run here.

    Args:
        learning_rate_scaling (`str`): `"linear"`: `base_learning_rate` is for a global batch of 256 and grows with it;
            `"sqrt"`, DINOv2's: it is for 1024 and grows with the root of the batch.
        teacher_temperature_start (`float`): Temperature of the teacher's softmax at the first step; the model's
            `teacher_temperature` after the warm-up.
        teacher_temperature_warmup (`float`): Steps of the linear way between them; below 1 a share of the run.
        freeze_last_layer (`float`): Steps in which the prototypes stay; below 1 a share of the run.
        layer_decay (`float`): Learning rate of a layer as a share of that of the next one, in (0, 1].
        patch_embed_learning_rate (`float`): Learning rate of the patch embedding, as a share of what it would be.
    """

    learning_rate_scaling: str = field(
        default="linear",
        metadata={"help": "'linear' (base_learning_rate is for a batch of 256) or 'sqrt' (for 1024, DINOv2's)."},
    )
    teacher_temperature_start: float = field(
        default=0.04, metadata={"help": "Teacher temperature at the first step; the model's after the warm-up."}
    )
    teacher_temperature_warmup: float = field(
        default=0.3, metadata={"help": "Steps of the teacher temperature's warm-up; below 1 a share of the run."}
    )
    freeze_last_layer: float = field(
        default=0.05, metadata={"help": "Steps in which the prototypes stay; below 1 a share of the run."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Learning rate of a layer as a share of that of the next one."}
    )
    patch_embed_learning_rate: float = field(
        default=1.0, metadata={"help": "Learning rate of the patch embedding, as a share of what it would be."}
    )

    def __post_init__(self) -> None:
        if self.learning_rate_scaling not in ("linear", "sqrt"):
            raise ValueError(f"learning_rate_scaling must be 'linear' or 'sqrt', got {self.learning_rate_scaling!r}")
        if not self.teacher_temperature_start > 0:
            raise ValueError(f"teacher_temperature_start must be above 0, got {self.teacher_temperature_start}")
        for name in ("teacher_temperature_warmup", "freeze_last_layer"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("layer_decay", "patch_embed_learning_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        super().__post_init__()

    @property
    def scaled_learning_rate(self) -> float:
        """`base_learning_rate` for this run's global batch, as `learning_rate_scaling` says."""
        if self.learning_rate_scaling == "linear":
            return super().scaled_learning_rate
        assert self.base_learning_rate is not None
        return self.base_learning_rate * math.sqrt(self.global_batch_size / 1024)
