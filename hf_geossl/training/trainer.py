"""`TeacherStudentTrainer`: transformers' Trainer for a student, its momentum teacher, and streams that resume exactly."""

import gc
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F
from transformers import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from hf_geossl.hub.export import make_image_processor
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.callbacks import (
    CollapseCallback,
    ImagesProgressCallback,
    PauseCallback,
    TeacherCallback,
    describe_losses,
)
from hf_geossl.training.hub_trainer import HubTrainer
from hf_geossl.training.monitors.guards import FiniteGuard, NonFiniteLossError, TeacherWatch
from hf_geossl.training.pictures.features import PictureCallback
from hf_geossl.training.sharding import is_sharded
from hf_geossl.views.base import Views

__all__ = ["NonFiniteLossError", "TeacherStudentTrainer"]

logger = logging.getLogger(__name__)


class TeacherStudentTrainer(HubTrainer):
    """Base of the methods' trainers; use `GTSATrainer` or `LOCATrainer`. Everything not named here is transformers' `Trainer`.

    Args:
        model (`PreTrainedModel`): A `...ForPreTraining` model.
        args (`TeacherStudentTrainingArguments`): The training arguments. They are not changed.
        train_dataset (`ImageStream` or dataset): A stream from `load_stream`, a `datasets` dataset, or any dataset
            whose samples hold an `image`.
        eval_dataset (the same, or `FirstImages`, *optional*): Images to measure the losses on, one pass each time.
        views (`Views`, *optional*): Makes the views of an image; the method's own with its defaults if absent.
        **kwargs: As `Trainer`.

    Raises:
        TypeError: If model or arguments are of another kind.
        ValueError: If the views do not fit the model, or the length of the run is not known.
    """

    arguments_class: ClassVar[type[TeacherStudentTrainingArguments]] = TeacherStudentTrainingArguments
    metrics: ClassVar[tuple[str, ...]] = ()  # outputs of the model that are logged beside the losses: shares,
    quantities: ClassVar[tuple[str, ...]] = ()  # and other numbers

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        views: Views | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, self.arguments_class):
            raise TypeError(f"args must be {self.arguments_class.__name__}, got {type(args).__name__}")
        if model is not None and not hasattr(model, "update_teacher"):
            raise TypeError(f"model must be a ...ForPreTraining model, got {type(model).__name__}")
        views = self.default_views(model) if views is None else views
        if model is not None:
            self.check_views(model, views)
        size = (views.global_size, views.global_size)
        kwargs.setdefault("processing_class", make_image_processor(size, views.mean, views.std))
        super().__init__(model, args, train_dataset, eval_dataset, views, **kwargs)
        if model is None:  # model_init has made it
            self.check_views(self.model, views)
        self._parts: dict[str, torch.Tensor] = {}
        self._keys: list[str] = []
        self.finite = FiniteGuard(self.args.max_nonfinite_steps)
        self.teacher_watch = TeacherWatch()
        self._before_step: tuple[torch.Tensor, dict[str, torch.Tensor]] | None = None  # of the log line
        self._micro_batch = 0
        self._steps_since_log = self._skipped_since_log = self._steps_timed = 0
        self._wait = self._since = 0.0
        self._spreads: dict[str, float] = {}
        self._evaluated: list[tuple[int, dict[str, torch.Tensor]]] = []  # images of a batch, and what it gave
        self.command: str | None = None  # what started the run, for its card
        self._seconds = self._began = 0.0  # trained before this call of train, and when that began (0 outside of it)
        self.pause = PauseCallback()
        self._pictures = self.make_pictures() if self.args.picture else []
        for callback in (TeacherCallback(self), CollapseCallback(self.chance_levels()), self.pause, *self._pictures):
            self.add_callback(callback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ImagesProgressCallback(self.args.global_batch_size, self.metrics, self.quantities))

    # ---- What a method says about itself ----

    def default_views(self, model: Any) -> Views:
        """The method's views with the paper's settings, for a model (None where `model_init` will make it)."""
        raise TypeError(f"{type(self).__name__} has no views of its own: use a method's trainer, or give views=")

    def check_views(self, model: Any, views: Views) -> None:
        """Raises a ValueError where the views do not fit the model."""

    def model_arguments(self, step: int) -> dict[str, Any]:
        """Arguments of the model's forward that follow a schedule."""
        return {}

    def probe_features(self, model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Features `(rows, channels)` whose spread tells collapse, by the name that their spread is logged under."""
        raise TypeError(f"{type(self).__name__} does not say which features to probe")

    def before_optimizer_step(self) -> None:
        """What happens to clipped gradients before they move the weights."""

    def chance_levels(self) -> dict[str, float]:
        """What the logged losses are where nothing has been learned, for the alarm."""
        return {}

    def make_pictures(self) -> list[PictureCallback]:
        """What draws the pictures that a run ends with."""
        return [PictureCallback(self)]

    # ---- Data ----

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> Any:
        """As transformers', timed: what the step waits for its data."""
        start = time.perf_counter()
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._wait += time.perf_counter() - start
        return samples

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Moves a batch to the device and makes its colours, blur and quarter turns there, from a seed of the step."""
        inputs = dict(inputs)
        if "evaluation_batch" in inputs:
            entropy: tuple[int, ...] = (self.args.process_index, 1, inputs.pop("evaluation_batch"))
        else:
            if self._batches is None:
                raise ValueError("batches come from get_train_dataloader")
            self._keys += self._batches.advance(inputs)
            # the batch's place among those of its step, however many processes share them
            place = self._micro_batch * self.args.world_size + self.args.process_index
            entropy = (0, 0, self.state.global_step, place)
            self._micro_batch += 1
            if self.state.global_step == 0 and self._micro_batch == 1:
                for picture in self._pictures:
                    picture.keep(inputs)
        generator = torch.Generator().manual_seed(self._seed(*entropy))
        return self.views.augment(super()._prepare_inputs(inputs), generator)

    def _seed(self, *position: int) -> int:
        """A seed for what is drawn at a position of the run."""
        seed = np.random.SeedSequence((self.args.seed, *position)).generate_state(1, np.uint64)
        return int(seed[0] >> np.uint64(1))

    def _seed_of(self, *position: int) -> int:
        """A seed for what this process draws at a position of the run."""
        return self._seed(self.args.process_index, *position)

    def draw_apart(self) -> None:
        """Lets each process draw its own stochastic depth and tokens; the first draws what it would draw alone."""
        if self.args.process_index:
            torch.manual_seed(self._seed_of(2, self.state.global_step))

    # ---- The step ----

    def begin_step(self) -> None:
        """Forgets what belongs to the last optimizer step."""
        self._micro_batch, self._keys = 0, []
        self.finite.begin_step()
        self._before_step = (self._tr_loss.clone(), dict(self._parts))

    def watch_teacher(self) -> None:
        """Now and then, before a step: how far the teacher is from its student, and whether it follows."""
        step, every = self.state.global_step, self.args.probe_every_steps
        if every and step % every == 0:
            settled = step >= self.args.get_warmup_steps(self.state.max_steps)
            model = self.accelerator.unwrap_model(self.model)
            distance = self.teacher_watch.look(model, step, self.teacher_momentum_at(max(step - 1, 0)), settled)
            if distance is not None:
                self._spreads["teacher_distance"] = distance

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """As transformers', and notes whether the loss is finite, without waiting for the device."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.finite.see_loss(loss)
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss; its parts are added up for the log."""
        # evaluation takes the final weights, so that its losses can be compared over the run
        outputs = model(**inputs, **(self.model_arguments(self.state.global_step) if model.training else {}))
        if model.training:
            for name, value in self._parts_of(outputs).items():
                part = value / self.current_gradient_accumulation_steps
                self._parts[name] = self._parts[name] + part if name in self._parts else part
            every = self.args.probe_every_steps
            if every and self.state.global_step % every == 0 and self._micro_batch == 1:
                self._probe(inputs)
        else:
            images = len(next(iter(inputs.values())))
            self._evaluated.append((images, {"loss": outputs.loss.detach().float(), **self._parts_of(outputs)}))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _parts_of(self, outputs: Any) -> dict[str, torch.Tensor]:
        """Losses, metrics and quantities among a model's outputs and their `components`."""
        return {
            name: value.detach().float()
            for name, value in (*outputs.items(), *(outputs.get("components") or {}).items())
            if name.endswith("_loss") or name in self.metrics or name in self.quantities
        }

    @torch.no_grad()
    def _probe(self, inputs: dict[str, Any]) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if is_sharded(model):
            model.unshard()  # what the model's forward holds; its backward divides it again
        probed = model if model.teacher is None else model.teacher
        training = probed.training
        probed.eval()  # stochastic depth would draw numbers that the run needs
        for name, features in self.probe_features(model, inputs).items():
            if len(features) > 1:
                deviations = F.normalize(features.float(), dim=-1).std(dim=0, correction=0)
                self._spreads[name] = deviations.norm().item()  # 0 where all are the same, 1 where they are even
        probed.train(training)

    def check_finite(self) -> None:
        """Leaves an optimizer step out, on all processes, where loss or gradient is not finite on any: without gradients
        the optimizer moves nothing. Asks the processes in the same message whether to stop after the step.

        Raises:
            NonFiniteLossError: If that was the last of `max_nonfinite_steps` in a row.
        """
        args = self.args
        scaled = self.accelerator.scaler is not None
        self.pause.agree(self.finite.judge(self.pause.heard or 0, args.world_size, scaled))
        if self.finite.skips:
            self.model.zero_grad(set_to_none=True)
            self._count_skipped()

    def _count_skipped(self) -> None:
        """Takes a step that was left out from the log line, and counts it."""
        if self._before_step is not None:
            self._tr_loss.copy_(self._before_step[0])
            self._parts = self._before_step[1]
        self.finite.count(self.state.global_step, self.args.process_index, self._keys, self.run_dir)

    def check_scale(self) -> None:
        """Counts a step that the gradient scaler has skipped, where smaller scales have not helped."""
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < 1.0:
            self.finite.skips = True
            self._count_skipped()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As transformers'; a norm that is not finite counts too, or tells that a gradient scaler will skip the step."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.finite.see_gradient(norm)
        return norm

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, None, None]:
        """The pretraining loss of an evaluation batch, from the same draws each time; training's stay untouched."""
        drawn = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(self._seed_of(3, inputs["evaluation_batch"]))
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
        finally:
            torch.set_rng_state(drawn)
        return loss.detach(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As transformers', with loss, its parts and the method's metrics; means over images and processes."""
        self._evaluated = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if output.metrics is not None and self._evaluated:
            names = list(self._evaluated[0][1])
            sums = {
                name: torch.stack([images * parts[name] for images, parts in self._evaluated]).sum() for name in names
            }
            means = self._means(sums, sum(images for images, _ in self._evaluated))
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
            output.metrics[f"{metric_key_prefix}_images"] = dataloader.images
        return output

    def describe_evaluation(self, measured: dict[str, float]) -> str:
        """What `evaluate` has returned, in a line."""
        losses = ", ".join(describe_losses(measured, self.metrics, self.quantities, prefix="eval_"))
        return (
            f"losses on {measured['eval_images']} held-out images of {self.describe_data(self.eval_dataset)}: {losses}"
        )

    @staticmethod
    def describe_data(stream: Any) -> str:
        """Name and split of a stream."""
        split = stream.fingerprint["split"]
        return stream.source.name.removesuffix(f"/{split}") + (f" ({split})" if split else "")

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers' estimate is made for text."""
        return 0

    # ---- The log ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds loss parts (means over accumulation, steps and processes), schedules and speed to the log line."""
        if "loss" in logs and self._steps_since_log + self._skipped_since_log:
            if self._steps_since_log:
                logs["loss"] *= 1 + self._skipped_since_log / self._steps_since_log  # the mean over the steps made
                logs.update(self._means(self._parts, self._steps_since_log))
            else:
                del logs["loss"]
            if not math.isfinite(logs.get("grad_norm", 0.0)):
                del logs["grad_norm"]
            step = max(self.state.global_step - 1, 0)
            logs["weight_decay"] = self.weight_decay_at(step)
            if self.model.teacher is not None:
                logs["teacher_momentum"] = self.teacher_momentum_at(step)
            logs.update(self._spreads)
            if self._batches is not None:
                logs["skipped_images"] = self._batches.skipped_images
            logs["skipped_steps"] = self.finite.skipped
            if self.failed_saves:
                logs["failed_saves"] = self.failed_saves
            elapsed = time.perf_counter() - self._since
            logs["images_per_second"] = self._steps_timed * self.args.global_batch_size / elapsed
            logs["data_wait"] = self._wait / elapsed
            self.reset_log()
        if "train_loss" in logs:  # of the whole run, also where a part of it was trained before a resume
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self.finite.skipped, 1)
            if self._began:  # transformers asks a clock that may be set in between
                seconds = time.perf_counter() - self._began
                steps = self.state.global_step - self._initial_global_step
                logs["train_runtime"], logs["train_steps_per_second"] = round(seconds, 4), round(steps / seconds, 3)
                logs["train_samples_per_second"] = round(steps * self.args.global_batch_size / seconds, 3)
        super().log(logs, start_time)

    def _means(self, sums: dict[str, torch.Tensor], count: int) -> dict[str, float]:
        """Means over `count` steps and all processes."""
        means = self.accelerator.gather((torch.stack(list(sums.values())) / count)[None]).mean(dim=0)
        return dict(zip(sums, means.tolist(), strict=True))

    def reset_log(self) -> None:
        """Starts a new log line."""
        self._parts, self._steps_since_log, self._skipped_since_log, self._spreads = {}, 0, 0, {}
        self._steps_timed, self._wait, self._since = 0, 0.0, time.perf_counter()

    # ---- Checkpoints ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `StreamTrainer.train`.

        Raises:
            NonFiniteLossError: If loss or gradient is not finite `max_nonfinite_steps` times in a row.
        """
        try:
            return super().train(*args, **kwargs)
        finally:
            self._seconds, self._began = self.seconds_trained, 0.0
            self.pause.stop_listening()

    @property
    def seconds_trained(self) -> float:
        """Seconds that the run has trained, over all resumes."""
        return self._seconds + (time.perf_counter() - self._began if self._began else 0.0)

    def end_processes(self) -> None:
        """Ends what the processes of this run share, the last call of a script that trains on several: waits for all,
        then frees the wrapped model, for its threads crash a Python that exits before them (pytorch issue 190489).
        """
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        gc.collect()

    def run_state(self) -> dict[str, Any]:
        """What the unfinished log line has gathered, and how long the run has trained."""
        return {
            "log": {
                "loss": self._tr_loss.item(),
                "total_loss": self._total_loss_scalar,
                "last_logged_step": self._globalstep_last_logged,
                "parts": {name: value.item() for name, value in self._parts.items()},
                "steps": self._steps_since_log,
                "skipped": self._skipped_since_log,
                "spreads": self._spreads,
            },
            "seconds": self.seconds_trained,
            "nonfinite": self.finite.state(),
        }

    def restore_run_state(self) -> None:
        """Puts back what a log line had gathered when the checkpoint was saved."""
        self.reset_log()
        self._seconds, self._began = 0.0, time.perf_counter()
        self.finite.restore(self._resume[0].get("nonfinite") if self._resume else None)
        if not self._resume:
            return
        self._seconds = self._resume[0].get("seconds", 0.0)
        rank = min(self.args.process_index, len(self._resume) - 1)
        state, device = self._resume[rank]["log"], self.args.device
        self._tr_loss = torch.tensor(state["loss"], device=device)
        self._total_loss_scalar = state["total_loss"]
        self._globalstep_last_logged = state["last_logged_step"]
        self._parts = {name: torch.tensor(value, device=device) for name, value in state["parts"].items()}
        self._steps_since_log, self._skipped_since_log = state["steps"], state.get("skipped", 0)
        self._spreads = state["spreads"]

    def count_step(self) -> None:
        """Counts an optimizer step for the log line."""
        self._steps_since_log += not self.finite.skips
        self._skipped_since_log += self.finite.skips
        self._steps_timed += 1

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False, weights: str | None = None
    ) -> None:
        """Exports the trunk as a folder that `AutoModel` opens, with image processor, code and model card.

        Args:
            output_dir (`str`, *optional*): The folder; `args.output_dir` by default.
            weights (`"teacher"` or `"student"`, *optional*): Whose trunk; the teacher's by default, where there is one.

        Raises:
            ValueError: For other `weights`, or a teacher that the method does not have.
        """
        if _internal_call:  # a checkpoint holds the whole pretraining model
            super().save_model(output_dir, _internal_call=True)
            return
        self.export(Path(output_dir) if output_dir else self.run_dir, weights)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")
