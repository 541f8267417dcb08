"""What `TeacherStudentTrainer` is composed of."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, is_dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedConfig, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from hf_geossl.methods import METHODS
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.adaptation.adapters import adapt_trunk
from hf_geossl.training.adaptation.anchor import Anchor
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.callbacks import (
    FreezeTrunkCallback,
    MeterCallback,
    PreemptionCallback,
    ProbeCallback,
    ProcessSeedCallback,
    StepCallback,
    TeacherMonitorCallback,
    WeightDecayCallback,
)
from hf_geossl.training.checkpoints.checkpointer import FORMAT, Checkpointer, Resumed
from hf_geossl.training.feed import TrainingFeed
from hf_geossl.training.logs import HeldOutLosses, LogLine, LossMeter, Stopwatch
from hf_geossl.training.monitors.alarms import AlarmCallback
from hf_geossl.training.monitors.instruments import INSTRUMENTS, ProbeDataset
from hf_geossl.training.monitors.nonfinite import NonFiniteGuard
from hf_geossl.training.monitors.probes import Probes, Targets
from hf_geossl.training.monitors.teacher import TeacherMonitor
from hf_geossl.training.optimization import OptimizerPlan
from hf_geossl.training.outputs.trackers import TrackerPicturesCallback
from hf_geossl.training.pictures.base import PictureBook
from hf_geossl.training.pictures.learning_curve import LearningCurve
from hf_geossl.training.resources import MatrixRate, fit_memory
from hf_geossl.views.base import Views
from hf_geossl.views.photometric import jitter_kernel

logger = logging.getLogger(__name__)


class TrainerParts:
    """The parts of a trainer; those with state in checkpoints have a `state_dict()`.

    `targets` and `probe_dataset` are those of `Probes`. What the arguments say of the trunk is done to `model` here: a copy of its trunk is
    made for the anchor, then parameters are frozen or adapters added.
    """

    def __init__(
        self,
        model: TeacherStudentModel,
        args: TeacherStudentTrainingArguments,
        accelerator: Accelerator,
        feed: TrainingFeed,
        plan: OptimizerPlan,
        targets: Targets,
        probe_dataset: ProbeDataset | None = None,
    ) -> None:
        if args.fsdp_plugin_args is not None and getattr(accelerator.state, "fsdp_plugin", None) is None:
            raise ValueError(
                "FSDP2 was asked for, and accelerate uses it on GPUs only: on CPUs launch with "
                "hf_geossl/training/accelerate/ddp.yaml, or set ACCELERATE_USE_FSDP=false"
            )
        self.model, self.args, self.accelerator, self.feed, self.plan = model, args, accelerator, feed, plan
        self.anchor = Anchor(model, args.anchor_weight, args.device)
        self.trained_of_trunk = adapt_trunk(model, args.train_layers, args.lora_rank, args.lora_alpha)
        self.checkpointer = Checkpointer(args, accelerator)
        self.meter, self.stopwatch, self.matrix_rate = LossMeter(args.device), Stopwatch(), MatrixRate(args)
        self.guard = NonFiniteGuard(
            args.max_nonfinite_steps, self.checkpointer.run_dir, args.process_index, args.world_size
        )
        self.probes = Probes(args, feed.views, self.checkpointer.run_dir, targets, probe_dataset)
        self.preemption = PreemptionCallback()
        self.step = StepCallback(
            self.guard, self.meter, self.preemption, accelerator, plan, is_measured=self.probes.schedule.is_candidate
        )
        measured = (self.meter, self.stopwatch, self.guard, self.checkpointer)
        self.log_line = LogLine(plan, *measured, accelerator, self.matrix_rate)
        self.picture_book = PictureBook(())
        self.held_out = HeldOutLosses(args, feed.views, accelerator)

    def callbacks(
        self, own: Sequence[TrainerCallback], chance_losses: Mapping[str, float], handler: CallbackHandler
    ) -> list[TrainerCallback]:
        """The callbacks of a run in their order, with the method's own; `handler` has those of the trackers."""
        every, run_dir = self.args.probe_every_steps, self.checkpointer.run_dir
        shown = (LearningCurve(run_dir, self.probes), TrackerPicturesCallback(self.picture_book, run_dir, handler))
        return [
            ProcessSeedCallback(),
            WeightDecayCallback(self.plan),
            self.step,
            FreezeTrunkCallback(self.plan),
            TeacherMonitorCallback(TeacherMonitor(), self.plan, self.meter, every),
            *own,
            MeterCallback(self.stopwatch),
            ProbeCallback(self.probes, self.meter, self.stopwatch),
            AlarmCallback(dict(chance_losses), self.probes),
            *(shown if self.args.picture else ()),
            self.preemption,
        ]

    def evaluation_probes(
        self, model: TeacherStudentModel, losses: Mapping[str, float], step: int | None
    ) -> dict[str, float]:
        """What the instruments add to an evaluation's numbers where the best checkpoint is chosen by one of them.

        All processes must call this; `step` is None outside of training.

        Raises:
            ValueError: If it is chosen by what is not measured.
        """
        wanted = self.probes.chosen_by
        if step is None or not wanted or wanted in losses:
            return {}
        numbers = self.probes.read(model, step) if wanted in INSTRUMENTS else {}
        if wanted not in numbers:
            labels = " (of which knn_accuracy and linear_accuracy need a probe_dataset)"
            raise ValueError(
                f"metric_for_best_model must be one of {', '.join(losses)}, or of the instruments {', '.join(INSTRUMENTS)}"
                f"{labels}, got {wanted!r}"
            )
        return numbers

    def pictures(self, method: str) -> PictureBook:
        """The pictures of a method's row."""
        row = METHODS.get(method)
        rows = row.pictures if row is not None and self.args.picture else ()
        pictures = [each.load()(self.feed.views, self.checkpointer.run_dir) for each in rows]
        self.picture_book = PictureBook(pictures, self.args.process_index == 0)
        return self.picture_book

    def find(self, requested: str | bool | None, config: PreTrainedConfig) -> Resumed | None:
        """Finds the checkpoint to resume from; see `Checkpointer.find`."""
        checkpoint = self.checkpointer.find(requested, config.to_dict(), self.settings())
        if checkpoint and checkpoint.trainer_state.global_step >= self.args.max_steps:
            end = f"the end of the run (max_steps={self.args.max_steps})"
            logger.warning(f"{checkpoint.folder.name} is {end}: nothing to train")
        return checkpoint

    def settings(self) -> dict[str, object]:
        """What a run has to go on with, beside its data."""
        batches = self.args.gradient_accumulation_steps * self.args.world_size
        optimizer = str(getattr(self.args.optim, "value", self.args.optim)).removesuffix("_fused")  # of the same state
        settings: dict[str, object] = {
            "views": views_settings(self.feed.views),
            "batches of a step": batches,
            "optim": optimizer,
        }
        adapted = {name: getattr(self.args, name) for name in ("train_layers", "lora_rank", "lora_alpha")}
        adapted |= {"anchor": self.anchor.digest()}
        return settings | ({"adaptation": adapted} if self.trained_of_trunk or adapted["anchor"] else {})

    def observe_inputs(
        self, model: TeacherStudentModel, inputs: Mapping[str, torch.Tensor | None], images: list[str]
    ) -> None:
        """Notes the names of a micro-batch's images; what the first of a call of `train` takes to compute.

        The device has the images to prepare: that is when the host reads how the step before has ended.
        """
        self.step.finish(model, begins=True)
        self.guard.observe_images(images)
        self.matrix_rate.observe(model, inputs)
        self.anchor.forget()  # what the student has encoded to be counted

    def extend_log(self, logs: dict[str, float], step: int) -> None:
        """Ends the step before a line of the log, and makes that; see `LogLine.extend`."""
        self.step.finish(self.model)
        self.log_line.extend(logs, step, self.model.teacher is not None, self.feed.skipped_images)

    def begin_checkpoint(self) -> None:
        """Ends the step before a checkpoint, during training only."""
        self.feed.opened()
        self.step.finish(self.model)

    def fit_memory(self, training_step: Callable[..., torch.Tensor], model: nn.Module, *inputs: object) -> torch.Tensor:
        """A micro-batch's loss and gradients by transformers; see `fit_memory` for what happens where memory is short.

        Not where other processes wait for this one's part of an exchange, nor where gradients of the step are there already.
        """
        compute = partial(training_step, model, *inputs)
        if self.args.world_size > 1 or self.feed.micro_batch != 1:
            return compute()
        whole = self.accelerator.unwrap_model(model)

        def forget() -> None:
            self.anchor.forget()
            self.meter.discard_step()
            whole.reset_accumulated()

        return fit_memory(compute, whole, self.args, forget)

    def state_dict(self) -> dict[str, object]:
        """What this process adds to a checkpoint, in plain values."""
        return {
            "format": FORMAT,
            "settings": self.settings(),
            "stream": self.feed.opened().state_dict(),
            "meter": self.meter.state_dict(),
            "guard": self.guard.state_dict(),
            "probes": self.probes.state_dict(),
            "seconds": self.stopwatch.trained,
        }

    def start(self, resumed: Resumed | None) -> None:
        """Goes on from a checkpoint, or begins a run without one."""
        state = resumed.of_rank(self.args.process_index) if resumed else {}
        self.log_line.begin(resumed.trainer_state.global_step if resumed else 0)
        self.meter.load_state_dict(state.get("meter"))
        self.guard.load_state_dict(state.get("guard"))
        self.probes.start(state.get("probes"))
        self.matrix_rate.reset()
        self.stopwatch.start(state.get("seconds", 0.0))

    def compiled_layers(self) -> AbstractContextManager[None]:
        """A context with compiled layers, where the arguments ask for them; elsewhere a GPU's colours are not compiled either."""
        compilation = self.args.block_compilation
        return compilation.compiled(self.model, self.anchor.trunk) if compilation else jitter_kernel.left_out()

    def stop(self) -> None:
        """Ends a call of `train`."""
        self.stopwatch.stop()
        self.feed.log_notes()
        self.preemption.restore_handlers()


def views_settings(views: Views) -> dict[str, object]:
    """All settings of views as plain values: what a checkpoint is compared by."""
    values = asdict(views) if is_dataclass(views) else {"description": views.describe()}
    return {"class": type(views).__name__, **values}
