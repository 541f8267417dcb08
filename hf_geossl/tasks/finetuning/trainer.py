"""`FineTuningTrainer`: transformers' Trainer for a model with a head; its runs resume exactly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_utils import TrainOutput

from hf_geossl.hub.headlines import metric_words
from hf_geossl.tasks.finetuning.arguments import FineTuningArguments
from hf_geossl.tasks.finetuning.examples import Collator, TrainingExamples, vary
from hf_geossl.tasks.finetuning.kinds import FineTuningTask
from hf_geossl.tasks.finetuning.layers import choose_layers
from hf_geossl.tasks.finetuning.measuring import measure
from hf_geossl.tasks.finetuning.splits import Split
from hf_geossl.training.adaptation.adapters import merge_state, scaling_of
from hf_geossl.training.adaptation.trunk import lr_multiplier
from hf_geossl.training.callbacks import PreemptionCallback
from hf_geossl.training.checkpoints.checkpointer import FORMAT, Checkpointer, Resumed
from hf_geossl.training.checkpoints.files import read_optimizer, read_weights, write_json, write_optimizer
from hf_geossl.training.progress import ImagesProgressCallback, count_of, take_progress
from hf_geossl.training.sharding import gather_state


class FineTuningProgress(ImagesProgressCallback):
    """The bar and the log lines of pretraining, for a model with a head."""

    doing = "fine-tuning"

    def describe(self, step: int, logs: Mapping[str, float]) -> str | None:
        """A log line in words; of a measurement all numbers."""
        if "eval_images" not in logs:
            return super().describe(step, logs)
        numbers = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        images = count_of(int(numbers.pop("images")), "test image")
        return f"step {step}, {images}: " + ", ".join(f"{metric_words(n)} {v:.3f}" for n, v in numbers.items())


# training arguments that say what the weights become: a run goes on with its own
_OF_THE_RUN = (
    "max_steps",
    "seed",
    "data_seed",
    "mirror",
    "train_layers",
    "lora_rank",
    "lora_alpha",
    "layer_decay",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "max_grad_norm",
    "label_smoothing_factor",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)


class FineTuningTrainer(Trainer):
    """Trains a model with a head on labelled images. Everything not named here is transformers' `Trainer`.

    Args:
        model (`PreTrainedModel`): With a head, as `Start.build` makes it; what `args` do not train is frozen in it.
        args (`FineTuningArguments`): The training arguments. They are not changed.
        task (`FineTuningTask`): What is learned.
        train, test (`Split`): The images that are trained on, and those that are measured.
        **kwargs: As `Trainer`.

    Raises:
        ValueError: If the arguments name a metric that is not measured, or smooth labels that are no classes of images; or
            the decoder cannot be trained on one image at a time.

    Attributes:
        trained (`str`): How much of the model is trained, in a line.
        preemption (`PreemptionCallback`): Knows which signal the run has stopped for.
    """

    args: FineTuningArguments
    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: PreTrainedModel,
        args: FineTuningArguments,
        task: FineTuningTask,
        train: Split,
        test: Split,
        **kwargs: Any,
    ) -> None:
        args = args.for_run(len(train), task.metrics)
        if args.label_smoothing_factor and task.name != "classification":  # transformers' is over the last dimension
            raise ValueError(
                f"label_smoothing_factor is of classification alone, got {args.label_smoothing_factor} for {task.name}"
            )
        if args.per_device_train_batch_size == 1 and getattr(model.config, "decoder_type", None) == "upernet":
            raise ValueError(
                "the decoder upernet has batch norms over maps of one pixel, which need two images at a time: give "
                "--per_device_train_batch_size 2, or --decoder linear"
            )
        self.task, self.train_split, self.test_split = task, train, test
        images = model.config.get_image_format()
        self.collate = Collator(images.mean, images.std, task.labels)
        self.trained = choose_layers(model, args.train_layers, args.lora_rank, args.lora_alpha)
        size, min_crop = model.config.image_height_width[0], task.min_crop if args.min_crop is None else args.min_crop
        chosen = {name: getattr(args, name) for name in _OF_THE_RUN}
        self.settings = {
            "task": task.name,
            "training data": f"{train.name}, {train.samples.fingerprint[:16]}",
            "images": len(train),
            "global_batch": args.global_batch_size,
            "min_crop": min_crop,
            **{name: getattr(value, "value", value) for name, value in chosen.items()},
        }
        examples = TrainingExamples(
            train,
            args.max_steps * args.global_batch_size,
            lambda sample, generator: vary(sample, size, min_crop, args.mirror, generator),
            args.seed if args.data_seed is None else args.data_seed,
        )
        super().__init__(
            model=model, args=args, train_dataset=examples, eval_dataset=test, data_collator=self.collate, **kwargs
        )
        take_progress(self, FineTuningProgress(args))
        self.preemption = PreemptionCallback()
        self.add_callback(self.preemption)
        self.checkpointer = Checkpointer(args, self.accelerator)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Transformers' optimizer, whose groups have the learning rate of their layer."""
        optimizer = super().create_optimizer(model)
        if any("multiplier" in group for group in optimizer.param_groups):
            return optimizer
        whole = self.accelerator.unwrap_model(self.model)
        multipliers = {id(p): lr_multiplier(n, whole, self.args.layer_decay, 1.0) for n, p in whole.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            for multiplier in sorted({multipliers[id(p)] for p in group["params"]}, reverse=True):
                chosen = [p for p in group["params"] if multipliers[id(p)] == multiplier]
                groups.append({**group, "params": chosen, "lr": group["lr"] * multiplier, "multiplier": multiplier})
        optimizer.param_groups[:] = groups
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights of two or more dimensions, but for tokens and positions, as families call them."""
        undecayed = ("_token", "_tokens", "position_embeddings", "pos_embed", "relative_position_bias_table")
        return [
            name for name, parameter in model.named_parameters() if parameter.ndim > 1 and not name.endswith(undecayed)
        ]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As transformers'; several processes tell each other whether one has received a signal."""
        if self.args.world_size > 1:
            number = torch.tensor([self.preemption.received_signal or 0], device=self.args.device)
            self.preemption.sync_signal(int(self.accelerator.gather(number).max()))
        return super().training_step(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing: the repository is made when the folder is published."""

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not counted: transformers' estimate is made for text."""
        return 0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measures the model as it is, on a part of the test images while it is trained; for the learning curve."""
        split = self.test_split if eval_dataset is None else eval_dataset
        if self.is_in_train and len(split) > self.args.curve_images:
            step = len(split) / self.args.curve_images
            split = split.choose([int(place * step) for place in range(self.args.curve_images)])
        model = self.accelerator.unwrap_model(self.model)
        measured = measure(model, self.task, split, self.collate, self.args.eval_batch_size, with_loss=True)
        numbers = {**measured.numbers, "loss": measured.loss, "images": float(len(split))}
        known = {name: float(value) for name, value in numbers.items() if value == value}  # not NaN
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in known.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- Checkpoints, whole or absent

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Trains; with `resume_from_checkpoint` goes on bit for bit from a checkpoint.

        Raises:
            CheckpointError: If there is no such checkpoint, it is not whole, or does not fit model, data or settings.
        """
        resumed = self.find_checkpoint(resume_from_checkpoint)
        if resumed and resumed.trainer_state.global_step >= self.args.max_steps:
            self._load_from_checkpoint(str(resumed.folder))
            self.state = resumed.trainer_state
            if self.args.load_best_model_at_end:
                self._load_best_model()
            return TrainOutput(self.state.global_step, 0.0, {})
        set_seed(self.args.seed)  # a checkpoint's generators are loaded after this
        try:
            return super().train(str(resumed.folder) if resumed else None, trial, ignore_keys_for_eval)
        finally:
            self.preemption.restore_handlers()

    def find_checkpoint(self, requested: str | bool | None) -> Resumed | None:
        """The checkpoint that is asked for, if it is one of this run."""
        return self.checkpointer.find(requested, self.model.config.to_dict(), self.settings)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        whole, wanted = self.accelerator.unwrap_model(self.model), self.args.should_save
        state = {"format": FORMAT, "settings": self.settings}
        self.store_flos()
        self.checkpointer.write(
            self.state,
            [
                lambda folder: self.save_model(str(folder), _internal_call=True),
                lambda folder: write_json(folder / f"run_state_{self.args.process_index}.json", state),
                lambda folder: write_optimizer(whole, self.optimizer, self.lr_scheduler, folder, wanted),
                lambda folder: self._save_scaler(str(folder)),
                lambda folder: self._save_rng_state(str(folder)),
            ],
            self.control.should_training_stop and self.state.global_step < self.state.max_steps,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model, adapters merged into its weights, as a folder that transformers opens."""
        whole = self.accelerator.unwrap_model(self.model)
        state = gather_state(whole, self.args.should_save)
        if self.args.should_save:
            folder = output_dir or str(self.args.output_dir)
            whole.save_pretrained(folder, state_dict=merge_state(state, scaling_of(whole)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_weights(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            whole = self.accelerator.unwrap_model(self.model)
            read_optimizer(whole, self.optimizer, self.lr_scheduler, Path(checkpoint))
