"""`TeacherStudentTrainer`: transformers' Trainer for a student, its momentum teacher, and streams that resume exactly."""

import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hf_geossl.data.evaluation_batches import EvaluationBatches
from hf_geossl.hub.export import make_image_processor
from hf_geossl.methods import METHODS
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training import sharding
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.checkpoints.checkpointer import Resumed
from hf_geossl.training.checkpoints.files import read_optimizer, read_weights, write_json, write_optimizer
from hf_geossl.training.execution.waiting import conditional_adamw
from hf_geossl.training.feed import TrainingFeed, as_stream
from hf_geossl.training.logs import scalars_of
from hf_geossl.training.matching import check_method, record_images
from hf_geossl.training.monitors.instruments import ProbeDataset
from hf_geossl.training.optimization import OptimizerPlan
from hf_geossl.training.outputs.exporter import Exporter, HubPublisher
from hf_geossl.training.outputs.run_description import describe_run
from hf_geossl.training.parts import TrainerParts
from hf_geossl.training.progress import ImagesProgressCallback, describe_evaluation, take_progress
from hf_geossl.training.resources import training_context
from hf_geossl.views.base import Views

Inputs = dict[str, Any]


class TeacherStudentTrainer(Trainer):
    """Base of the methods' trainers. Everything not named here is transformers' `Trainer`.

    Args:
        model (`TeacherStudentModel`): A `...ForPreTraining` model.
        args (`TeacherStudentTrainingArguments`): The training arguments. They are not changed.
        train_dataset (`ImageStream` or dataset): From `load_stream`, or any dataset whose samples hold an `image`.
        eval_dataset (the same, or `FirstImages`, *optional*): Images to measure the losses on, one pass each time.
        views (`Views`, *optional*): Makes the views of an image; the method's own with its defaults if absent.
        command, probe_dataset (*optional*): What started the run, for its card; labelled images to probe. **kwargs: As `Trainer`.

    Raises:
        TypeError: If model, arguments or views are of another kind.
        ValueError: If the views do not fit the model, or the length of the run is not known.
    """

    method: ClassVar[str] = ""  # its row in METHODS
    arguments_class: ClassVar[type[TeacherStudentTrainingArguments]] = TeacherStudentTrainingArguments
    plan_class: ClassVar[type[OptimizerPlan]] = OptimizerPlan
    metrics: ClassVar[tuple[str, ...]] = ()  # outputs of the model that are logged beside the losses: shares,
    quantities: ClassVar[tuple[str, ...]] = ()  # and other numbers

    args: TeacherStudentTrainingArguments
    model: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    optimizer: Any
    lr_scheduler: Any
    hub_model_id: Any
    weights_step: int | None  # of the weights, where they are not those of the last step

    def __init__(
        self,
        model: TeacherStudentModel | None = None,
        args: TeacherStudentTrainingArguments | None = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        views: Views | None = None,
        *,
        command: str | None = None,
        probe_dataset: ProbeDataset | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, self.arguments_class):
            raise TypeError(f"args must be {self.arguments_class.__name__}, got {type(args).__name__}")
        if model is not None and not hasattr(model, "update_teacher"):
            raise TypeError(f"model must be a ...ForPreTraining model, got {type(model).__name__}")
        self.views = self.default_views(model) if views is None else views
        if model is not None:
            self.check_views(model, self.views)
        size, images = (self.views.global_size,) * 2, self.views.image_format
        processor = make_image_processor(size, images.mean, images.std, images)
        kwargs["processing_class"] = kwargs.get("processing_class") or processor
        self.publisher = HubPublisher(args, args.hub_token)
        args = args.for_run(train_dataset)
        kwargs = {**conditional_adamw(args, kwargs.get("optimizers")), **kwargs}
        self.feed, self.plan = TrainingFeed(args, self.views), self.plan_class(args)
        self._resumed: Resumed | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=as_stream(train_dataset, args.seed),
            eval_dataset=as_stream(eval_dataset, 0),
            **kwargs,
        )
        if model is None:  # model_init has made it
            self.check_views(self.model, self.views)
        record_images(self.model.config, self.views)
        self.command, self.weights_step = command, None
        own = (self.feed, self.plan, self.probe_targets, probe_dataset)
        self.parts = TrainerParts(self.model, args, self.accelerator, *own)
        self.pictures = self.parts.pictures(self.method)
        self.exporter = Exporter(args, self.processing_class, self.pictures, self.publisher, lambda: describe_run(self))
        for callback in self.parts.callbacks(self.method_callbacks(), self.chance_losses(), self.callback_handler):
            self.add_callback(callback)
        take_progress(self, ImagesProgressCallback(args, self.metrics, self.quantities))

    # ---- What a method says about itself
    def default_views(self, model: TeacherStudentModel | None) -> Views:
        """The method's views with the paper's settings, for a model (None where `model_init` will make it)."""
        raise TypeError(f"{type(self).__name__} has no views of its own: use a method's trainer, or give views=")

    def check_views(self, model: TeacherStudentModel, views: Views) -> None:
        """Raises a TypeError for another method's model or views, a ValueError where they do not fit each other."""
        if self.method:
            check_method(METHODS[self.method], model, views)

    def model_arguments(self, step: int) -> Inputs:
        """Arguments of the model's forward that follow a schedule."""
        return {}

    def probe_targets(self, model: Any, outputs: Any) -> dict[str, torch.Tensor]:
        """Of the teacher's trunk's outputs: `target_spread (rows, channels)`, `predictions (rows, prototypes)`, or neither."""
        return {}

    def chance_losses(self) -> dict[str, float]:
        """What the logged losses are where nothing has been learned, for the alarm."""
        return {}

    def method_callbacks(self) -> list[TrainerCallback]:
        """What else the method does once per optimizer step."""
        return []

    @property
    def compares_images(self) -> bool:
        """Whether the loss of an image depends on the others of its batch, so that all batches must be whole."""
        return False

    def get_train_dataloader(self) -> DataLoader:
        """The stream's own loader: it knows processes, workers and, after a resume, its position."""
        saved = [state["stream"] for state in self._resumed.states] if self._resumed else None
        return self.feed.open(self.train_dataset, saved)

    def get_eval_dataloader(self, eval_dataset: object = None) -> EvaluationBatches:  # type: ignore[override]
        """Batches of one pass over the evaluation images; each process takes its share."""
        dataset = self.eval_dataset if eval_dataset is None else as_stream(eval_dataset, 0)
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset: load_stream(..., split='validation') makes one")
        size, rank, world_size = self.args.eval_batch_size, self.args.process_index, self.args.world_size
        return EvaluationBatches(dataset, self.views, size, rank, world_size, drop_last=self.compares_images)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        """As transformers', timed: what the step waits for its data."""
        self.feed.begin_step()
        with self.parts.stopwatch.waiting():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    # ---- The step ----

    def training_step(
        self, model: nn.Module, inputs: Inputs, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As transformers', from crops; notes whether the loss is finite, without waiting for the device."""
        step = self.state.global_step
        if self.pictures and step == self.feed.micro_batch == 0:
            self.pictures.store(inputs, self.unsharded_model(), self.eval_dataset)
        self.parts.probes.collect(inputs)
        prepared, keys = self.feed.make_inputs(inputs, step, self.feed.to_device)
        self.parts.observe_inputs(self.model, prepared, keys)
        loss = self.parts.fit_memory(super().training_step, model, prepared, num_items_in_batch)
        self.parts.guard.observe_loss(loss)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's loss at the present step; its parts are added up for the log."""
        with self.accelerator.autocast():  # which accelerate leaves out with FSDP2
            outputs = self.parts.anchor.add_to(model(**inputs, **self.model_arguments(self.state.global_step)))
        self.parts.meter.add(self._scalars_of(outputs), self.current_gradient_accumulation_steps)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _scalars_of(self, outputs: Any) -> dict[str, torch.Tensor]:
        return scalars_of(outputs, (*self.metrics, *self.quantities))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Transformers' optimizer; its groups know whether they are decayed, and have their share of the learning rate."""
        optimizer = super().create_optimizer(model)
        self.plan.split_groups(optimizer, self.model if model is None else model)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Warm-up and cosine to `min_learning_rate`; for another `lr_scheduler_type` transformers' own."""
        if self.lr_scheduler is not None or self.args.lr_scheduler_type != "cosine":
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = self.plan.make_scheduler(optimizer or self.optimizer, num_training_steps)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """See `OptimizerPlan.decayed_parameters`."""
        return self.plan.decayed_parameters(model)

    def floating_point_ops(self, inputs: Inputs) -> int:
        """Not counted: transformers' estimate is made for text."""
        return 0

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        return self.plan.clip_gradients(model, self.accelerator, self.state.global_step)

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        norm = sharding.full_tensor(super()._get_grad_norm(model, grad_norm))
        self.parts.guard.observe_grad_norm(norm)
        return norm

    def evaluation_loop(
        self,
        dataloader: EvaluationBatches,  # type: ignore[override]
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The pretraining loss, its parts and the method's metrics; see `HeldOutLosses`."""
        model = self.accelerator.unwrap_model(self.model)
        self.parts.step.finish(model)  # callbacks behind the step's may ask for this, too
        means = self.parts.held_out.measure(model, dataloader, self._scalars_of, self._prepare_inputs, self._on_batch)
        means |= self.parts.evaluation_probes(model, means, self.state.global_step if self.is_in_train else None)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        return EvalLoopOutput(np.empty(0), None, metrics, dataloader.images)

    def _on_batch(self) -> None:
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def describe_evaluation(self, measured: Mapping[str, float]) -> str:
        """What `evaluate` has returned, in a line."""
        return describe_evaluation(measured, self.metrics, self.quantities, self.eval_dataset)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers', with loss parts, schedules and speed; see `LogLine`."""
        self.parts.extend_log(logs, self.state.global_step)
        super().log(logs, start_time)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Trains; with `resume_from_checkpoint` goes on bit for bit from a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A `checkpoint-N` folder, or True for the newest whole
                one in `args.output_dir`.
            trial, ignore_keys_for_eval: As in transformers' `Trainer`.

        Raises:
            CheckpointError, ValueError: If there is no such checkpoint, it is not whole, or does not fit model, views or data.
            NonFiniteLossError: If loss or gradient is not finite `max_nonfinite_steps` times in a row.
        """
        self._resumed = resumed = self.parts.find(resume_from_checkpoint, self.model.config)
        self.weights_step = None
        if resumed and resumed.trainer_state.global_step >= self.args.max_steps:
            self._load_from_checkpoint(str(resumed.folder))
            self.state = resumed.trainer_state
            return TrainOutput(self.state.global_step, 0.0, {})
        self.parts.start(resumed)
        try:
            with training_context(self.args, self.callback_handler.callbacks), self.parts.compiled_layers():
                result = super().train(str(resumed.folder) if resumed else None, trial, ignore_keys_for_eval)
        finally:
            self.parts.stop()
        return result._replace(training_loss=result.metrics.get("train_loss", result.training_loss))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.parts.begin_checkpoint()
        self.store_flos()
        callbacks = (*self.callback_handler.callbacks, self.control)
        exported: Any = [callback for callback in callbacks if isinstance(callback, ExportableState)]
        self.state.stateful_callbacks = TrainerState(stateful_callbacks=exported).stateful_callbacks
        parts: list[Callable[[Path], object]] = [
            lambda folder: self.save_model(str(folder), _internal_call=True),
            lambda folder: write_json(folder / f"run_state_{self.args.process_index}.json", self.parts.state_dict()),
            self.exporter.write_arguments,
        ]
        if not self.args.save_only_model:
            whole, wanted = self.accelerator.unwrap_model(self.model), self.args.should_save
            parts += [
                lambda folder: write_optimizer(whole, self.optimizer, self.lr_scheduler, folder, wanted),
                lambda folder: self._save_scaler(str(folder)),
                lambda folder: self._save_rng_state(str(folder)),
            ]
        ends = self.control.should_training_stop and self.state.global_step < self.state.max_steps
        checkpoint = self.parts.checkpointer.write(self.state, parts, ends)
        if checkpoint is not None and self.is_world_process_zero():
            self.exporter.push_step(self.accelerator.unwrap_model(self.model), checkpoint, self.state.global_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_weights(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
            self.weights_step = self.state.best_global_step

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            whole = self.accelerator.unwrap_model(self.model)
            read_optimizer(whole, self.optimizer, self.lr_scheduler, Path(checkpoint))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        accelerator = self.accelerator
        if self.is_fsdp_enabled and sharding.is_sharded(self.model):  # trained before
            self.accelerator = sharding.prepared_before(accelerator)
        elif self.is_fsdp_enabled:  # processes start from the first one's weights, as with DDP
            sharding.broadcast_state(self.model, self.args.device)
        try:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        finally:
            self.accelerator = accelerator

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        # transformers would delete the last checkpoint where save_total_limit is 1 and another is better
        args, self.args = self.args, self.args.without_limit()
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.args = args

    def end_processes(self) -> None:
        """Waits for all processes and ends what they share: the last call of a script that trains on several."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        self.model_wrapped = self.model  # whose threads crash a Python that exits before them (pytorch issue 190489)
        self.accelerator.free_memory()
        gc.collect()

    def unsharded_model(self) -> Any:
        """The model with whole weights, None on processes that do not save; all must ask for it at the same time."""
        return sharding.whole_model(self.accelerator.unwrap_model(self.model), self.args.should_save)

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False, weights: str | None = None
    ) -> None:
        """Exports the trunk as a folder that `AutoModel` opens; see `Exporter.save` for what else is in it.

        Args:
            output_dir (`str`, *optional*): The folder; `args.output_dir` by default.
            weights (`"teacher"` or `"student"`, *optional*): Whose trunk; the teacher's by default, where there is one.

        Raises:
            ValueError: For other `weights`, or a teacher that the method does not have.
        """
        model = self.unsharded_model()  # of all processes
        folder = Path(output_dir) if output_dir else self.publisher.run_dir
        if not self.args.should_save:
            return
        if _internal_call:  # a checkpoint holds the whole pretraining model
            model.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)
            return
        self.exporter.save(model, folder, weights, self.weights_step or self.state.global_step)

    def write_card(self) -> None:
        """Writes record and card of the run again, after an evaluation; what fails is a warning."""
        if self.args.should_save:
            self.exporter.write_card(self.publisher.run_dir)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, so that nothing is trained in vain; see `HubPublisher.create_repository`."""
        if self.is_world_process_zero():
            self.hub_model_id = self.publisher.create_repository(token, private)

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs: Any
    ) -> Any:
        """Exports the model to the folder of the run and publishes it; arguments and errors as `HubPublisher.publish`.

        Returns:
            `Publication`, with `blocking=False` a `Future` of it, or None on processes other than the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        model = self.unsharded_model()  # of all processes
        if not self.is_world_process_zero():
            return None
        self.exporter.write_weights(model, self.publisher.run_dir)
        self.exporter.write_card(self.publisher.run_dir)
        return self.publisher.publish(commit_message or "Model save", blocking=blocking, **kwargs)
