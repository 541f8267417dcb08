"""Training arguments: transformers', with what teacher-student pretraining adds and other defaults."""

import copy
import math
import re
from collections.abc import Sized
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from transformers import TrainingArguments

from hf_geossl.training.execution.compilation import BlockCompilation
from hf_geossl.training.sharding import check_divisible_optimizer, fsdp_plugin_settings

# the smallest values that make sense, here or in transformers' own arguments, which checks few of them
_LOWEST = {
    "weight_decay": 0,
    "weight_decay_end": 0,
    "min_learning_rate": 0,
    "learning_rate": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "eval_delay": 0,
    "dataloader_num_workers": 0,
    "seed": 0,
    "data_seed": 0,
    "probe_every_steps": 0,
    "probe_images": 2,
    "correspondence_weight": 0,
    "rotation_weight": 0,
    "adam_epsilon": 0,
    "max_nonfinite_steps": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_accumulation_steps": 1,
    "save_total_limit": 1,
    "dataloader_prefetch_factor": 1,
}
_ABOVE_0 = ("base_learning_rate", "num_streams", "num_train_epochs")
_STEPS = {"logging_steps": "logging_strategy", "save_steps": "save_strategy", "eval_steps": "eval_strategy"}
# of text and of classes, which pretraining on images has none of
_OF_OTHERS = ("label_smoothing_factor", "neftune_noise_alpha", "use_liger_kernel")
_LEARNING_RATE = TrainingArguments.__dataclass_fields__["learning_rate"].default


class RecomputationNames:
    """Training arguments that call recomputed layers as users do and as transformers does."""

    def name_recomputation(self) -> None:
        """Gives `gradient_checkpointing` the name that transformers has for it from 5.24 on, which warns of the old one."""
        for old, new in (
            ("gradient_checkpointing", "activation_checkpointing"),
            ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        ):
            if getattr(self, new, False) is None:
                setattr(self, new, getattr(self, old))


@dataclass
class TeacherStudentTrainingArguments(RecomputationNames, TrainingArguments):
    """`TrainingArguments` for teacher-student pretraining on streams.

    Defaults that differ from transformers': AdamW with weight decay 0.04, warm-up over a tenth of the run and a cosine,
    clipping at 3, a log line every 10 steps.

    Args:
        output_dir (`str`): Folder of the run: checkpoints and the model.
        weight_decay (`float`): Weight decay at the first step.
        warmup_steps (`float`): Steps of linear warm-up; below 1 a share of the run.
        lr_scheduler_type (`str`): `"cosine"` is warm-up and a cosine to `min_learning_rate`; others are transformers' own.
        max_grad_norm (`float`): Norm that gradients are clipped to; 0 turns it off.
        logging_steps (`float`): Steps between two log lines; below 1 a share of the run.
        remove_unused_columns (`bool`): Must stay off: views have keys of their own.
        logging_nan_inf_filter (`bool`): Off: steps that are not finite are left out and counted.
        ignore_data_skip (`bool`): Must stay on: a checkpoint holds the position of the stream.
        ddp_find_unused_parameters (`bool`): Off: every trained parameter gets a gradient in every step.
        torch_compile (`bool` or `None`): Whether the trunk's layers are compiled, one compilation for all of them and for
            all sizes of views; None does it on a GPU.
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
        probe_every_steps (`int`): Steps between two measurements of what the teacher's features are good for, where
            `probe_time_share` allows that; 0 turns them off.
        probe_time_share (`float`): Largest share of the run's time that these measurements take, in (0, 1]; they are made
            less often where they would take more. 1 is no limit.
        probe_images (`int` or `None`): Images that they are made on, at least 2. None takes 64 to 512, more in longer runs.
        max_nonfinite_steps (`int`): Optimizer steps in a row, at least 1, whose loss or gradient is not finite before
            the run stops. Fewer are left out: weights and teacher stay, the data go on.
        picture (`bool`): Whether to make pictures of what is learned, at the end of the run.
        freeze_trunk_steps (`float`): Steps in which the heads are trained alone; below 1 a share of the run. Teacher and
            student trunk stay, to the bit, what the run starts from.
        trunk_warmup_steps (`float`): Steps after these in which the learning rate of the trunk rises from 0 to what it
            would be; below 1 a share of the run.
        layer_decay (`float`): Learning rate of a layer as a share of that of the next one, in (0, 1].
        patch_embed_learning_rate (`float`): Learning rate of the patch embedding, as a share of what it would be.
        train_layers (`str`): What of the trunk is trained: `"all"`, `"norms"` (layer norms alone), or `"last:4"` (the last
            four layers and the final norm); with `lora_rank`, where the adapters are: `"all"` or `"last:4"`.
        lora_rank (`int`): Rank of the LoRA adapters of the trunk's linear layers, which are trained in its place (arXiv
            2106.09685); 0 is none. Exports have them merged into the weights. Needs peft.
        lora_alpha (`float`): Adapters are scaled by this / lora_rank.
        anchor_weight (`float`): Weight of the cosine distance between the student's patch tokens and those of the trunk
            that the run starts from, on the first views that the student encodes; 0 is off.

    Raises:
        ValueError: If a value is out of its range.
    """

    output_dir: str | None = None
    weight_decay: float = 0.04
    warmup_steps: float = 0.1
    lr_scheduler_type: str = "cosine"
    max_grad_norm: float = 3.0
    logging_steps: float = 10
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    ignore_data_skip: bool = True
    ddp_find_unused_parameters: bool | None = False
    torch_compile: bool | None = None  # type: ignore[assignment]
    base_learning_rate: float | None = 5e-4
    min_learning_rate: float | None = 1e-6
    weight_decay_end: float | None = 0.4
    teacher_momentum: float = 0.996
    teacher_momentum_end: float = 1.0
    clip_mode: str = "tensor"
    num_streams: int | None = None
    probe_every_steps: int = 50
    probe_time_share: float = 0.02
    probe_images: int | None = None
    max_nonfinite_steps: int = 3
    picture: bool = True
    freeze_trunk_steps: float = 0
    trunk_warmup_steps: float = 0
    layer_decay: float = 1.0
    patch_embed_learning_rate: float = 1.0
    train_layers: str = "all"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    anchor_weight: float = 0.0

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.clip_mode not in ("tensor", "global"):
            raise ValueError(f"clip_mode must be 'tensor' or 'global', got {self.clip_mode!r}")
        if not 0 < self.probe_time_share <= 1:
            raise ValueError(f"probe_time_share must be above 0 and at most 1, got {self.probe_time_share}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps must be above 0, or -1 for num_train_epochs, got {self.max_steps}")
        self._check_adaptation()
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
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size must stay off: it would start over with fewer images a step, which learn at another rate "
                "and cannot be resumed; a run that does not fit says which per_device_train_batch_size, "
                "gradient_accumulation_steps and gradient_checkpointing do"
            )
        if self.deepspeed is not None:
            raise ValueError("deepspeed must be left out: models that do not fit one GPU are trained with FSDP2")
        if self.fp16_full_eval or self.bf16_full_eval:
            raise ValueError("fp16_full_eval and bf16_full_eval must stay off: teachers are kept in float32")
        self._init_with_blocks()
        self.fsdp_plugin_args = fsdp_plugin_settings(self.fsdp_plugin_args, self.mixed_precision)
        if self.fsdp_plugin_args is not None:
            check_divisible_optimizer(str(getattr(self.optim, "value", self.optim)))

    def _init_with_blocks(self) -> None:
        """Leaves compilation to `BlockCompilation`: transformers' compiles the whole model, for minutes and each size of views."""
        backend, mode = self.torch_compile_backend, self.torch_compile_mode
        compiles = self.torch_compile or backend is not None or mode is not None
        if self.torch_compile is None and not compiles:
            compiles = torch.cuda.is_available() and not self.use_cpu
        self.torch_compile, self.torch_compile_backend, self.torch_compile_mode = False, None, None
        self.name_recomputation()
        super().__post_init__()
        self.torch_compile, self.torch_compile_backend, self.torch_compile_mode = bool(compiles), backend, mode
        self.block_compilation = BlockCompilation(backend or "inductor", mode) if compiles else None

    def _check_adaptation(self) -> None:
        """Checks what says how much of the trunk is trained, and when."""
        for name in ("freeze_trunk_steps", "trunk_warmup_steps", "lora_rank", "anchor_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("layer_decay", "patch_embed_learning_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha must be above 0, got {self.lora_alpha}")
        if not re.fullmatch(r"all|norms|last:[1-9]\d*", self.train_layers):
            raise ValueError(f"train_layers must be 'all', 'norms' or such as 'last:4', got {self.train_layers!r}")
        if self.lora_rank and self.train_layers == "norms":
            raise ValueError("train_layers must be 'all' or such as 'last:4' with lora_rank, norms have no adapters")
        scheduler = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        if self.trunk_warmup_steps and scheduler != "cosine":
            raise ValueError(f"trunk_warmup_steps needs lr_scheduler_type 'cosine', got {scheduler!r}")

    def _check_numbers(self) -> None:
        """Refuses numbers that make no sense, before anything is computed with them."""
        values = {field.name: getattr(self, field.name, None) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
            if not isinstance(value, int | float):
                continue
            if name in ("teacher_momentum", "teacher_momentum_end") and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
            if name in ("adam_beta1", "adam_beta2") and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
            if name in _ABOVE_0 and value <= 0:
                raise ValueError(f"{name} must be above 0, or left out, got {value}")
            if value < _LOWEST.get(name, value):
                raise ValueError(f"{name} must be {_LOWEST[name]} or more, or left out, got {value}")
            if name in ("seed", "data_seed") and value >= 2**32:
                raise ValueError(f"{name} must be below 2^32, got {value}")
            if name in _STEPS and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}; {_STEPS[name]}='no' turns it off")
            if name in _OF_OTHERS and value:
                raise ValueError(f"{name} means nothing in pretraining without labels, got {value}: leave it out")

    def for_run(self, train_dataset: object) -> Self:
        """A copy for a run: without a token, with the peak of the learning rate, and with `max_steps`.

        Args:
            train_dataset (*optional*): What epochs are counted by where `max_steps` is not given: its `num_images`, or
                its length.

        Raises:
            ValueError: If the length of the run is not known.
        """
        args = copy.copy(self)
        args.run_name = self.run_name or Path(self.output_dir or ".").absolute().name  # what trackers call it
        args.hub_token = None  # checkpoints hold the arguments
        args.torch_compile_backend = args.torch_compile_mode = None  # accelerate would compile the whole model by them
        if args.base_learning_rate is not None:
            args.learning_rate = args.scaled_learning_rate
        if train_dataset is not None and args.max_steps <= 0:
            images = getattr(train_dataset, "num_images", None)
            if images is None and isinstance(train_dataset, Sized):
                images = len(train_dataset)
            if images is None:
                raise ValueError(
                    "how many images an epoch has is not known before they are read: set max_steps (--max_steps) instead"
                )
            steps = math.ceil(args.num_train_epochs * images / args.global_batch_size)
            args.max_steps = max(steps, 1)
        return args

    def to_dict(self) -> dict[str, Any]:
        """As transformers', with the compiler that `for_run` hides from accelerate."""
        values, compilation = super().to_dict(), self.block_compilation
        if compilation is not None:
            values |= {"torch_compile_backend": compilation.backend, "torch_compile_mode": compilation.mode}
        return values

    def without_limit(self) -> Self:
        """A copy that does not limit how many checkpoints there are."""
        args = copy.copy(self)
        args.save_total_limit = None
        return args

    def recompute_layers(self) -> dict[str, Any]:
        """Turns `gradient_checkpointing` on, for the rest of a run; gives its settings."""
        self.gradient_checkpointing = True
        if hasattr(self, "activation_checkpointing"):  # else saved arguments would say both yes and no, and mean no
            self.activation_checkpointing = True
        given = self.gradient_checkpointing_kwargs
        return given if isinstance(given, dict) else {"use_reentrant": False}

    @property
    def scaled_learning_rate(self) -> float:
        """`base_learning_rate` for this run's global batch: linear in it, and meant for 256 images."""
        assert self.base_learning_rate is not None
        return self.base_learning_rate * self.global_batch_size / 256

    @property
    def global_batch_size(self) -> int:
        """Images of one optimizer step, over all processes and accumulation."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size
