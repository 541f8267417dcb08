"""The record of a run, in plain values for its card: what it was trained on, how, and what was measured."""

import math
import os
import platform
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from transformers import TrainerState
from transformers.trainer_callback import CallbackHandler

from hf_geossl.hub.run_record import installed_versions, is_hub_id, measured_losses
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.monitors.instruments import INSTRUMENTS
from hf_geossl.training.parts import TrainerParts
from hf_geossl.training.progress import describe_stream
from hf_geossl.views.base import Views

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Run(Protocol):
    """What a description reads of a run; `TeacherStudentTrainer` has it."""

    args: TeacherStudentTrainingArguments
    state: TrainerState
    parts: TrainerParts
    views: Views
    model: Any
    accelerator: Accelerator
    callback_handler: CallbackHandler
    train_dataset: Any
    eval_dataset: Any
    command: str | None
    weights_step: int | None

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is logged beside the losses, as shares."""

    def chance_losses(self) -> Mapping[str, float]:
        """What the losses are where nothing has been learned."""


def describe_run(run: Run) -> dict[str, Any]:
    """Describes a run in plain values, as `hub.run_record.write_record` takes them; None for what is not known."""
    args, state, stream = run.args, run.state, run.train_dataset
    started_from, init_from = getattr(run.model, "name_or_path", None), run.model.config.init_from
    base_model = (started_from or init_from or "").replace("timm:", "timm/")  # where the Hub has timm's weights
    return {
        "data": f"{stream.source.name} ({stream.source.kind})" if stream is not None else None,
        "dataset_id": stream.source.name if stream is not None and stream.source.kind == "hub" else None,
        "base_model": base_model if is_hub_id(base_model) else None,
        "init_from": None if started_from else init_from,
        "trained_of_trunk": run.parts.trained_of_trunk,
        "from_scratch": not (started_from or init_from),
        "steps": state.global_step,
        "weights_step": _weights_step(run),
        "images": state.global_step * args.global_batch_size,
        "seconds": round(run.parts.stopwatch.trained, 1),
        "hardware": _hardware(args),
        "emissions": _emissions(run),
        "global_batch": args.global_batch_size,
        "views": run.views.describe(),
        "learning_rate": f"{args.learning_rate:.3g}",
        "weight_decay": _from_to(args.weight_decay, args.weight_decay_end),
        "teacher_momentum": None
        if run.model.teacher is None
        else _from_to(args.teacher_momentum, args.teacher_momentum_end),
        "precision": _precision(run),
        "seed": args.seed,
        "command": run.command,
        "losses": measured_losses(state.log_history, run.metrics),
        "held_out": _held_out(run),
        "instruments": _instruments(run),
        "versions": installed_versions(),
    }


def _weights_step(run: Run) -> int:
    """The optimizer step that the model's weights are of: an earlier one where the best checkpoint was loaded at the end."""
    return run.state.global_step if run.weights_step is None else run.weights_step


def _precision(run: Run) -> str:
    """The precision that the run really computed in: autocast's where there is one (fp16 has none on a CPU), else the weights'."""
    if run.accelerator.native_amp:
        return str(run.accelerator.mixed_precision)
    return _DTYPES.get(run.model.dtype, str(run.model.dtype))


def _held_out(run: Run) -> dict[str, Any] | None:
    """What the last evaluation of the exported weights measured, or the last of all where they were not evaluated.

    Each value stands with the one at chance level where that is known.
    """
    measured = [entry for entry in run.state.log_history if "eval_loss" in entry and "eval_images" in entry]
    if not measured or run.eval_dataset is None:
        return None
    last = ([entry for entry in measured if entry["step"] == _weights_step(run)] or measured)[-1]
    chances = run.chance_losses()
    names = [name for name in last if name == "eval_loss" or name.endswith("_loss") or name[5:] in run.metrics]
    if "eval_mean_image_loss" in last:  # what the mean image reconstructs
        names.remove("eval_mean_image_loss")
        chances = {**chances, "reconstruction_loss": last["eval_mean_image_loss"]}
    source = run.eval_dataset.source
    return {
        "data": describe_stream(run.eval_dataset),
        "dataset_id": source.name if source.kind == "hub" else None,
        "split": run.eval_dataset.fingerprint["split"],
        "images": int(last["eval_images"]),
        "step": last["step"],
        "values": {name[5:]: {"measured": last[name], "chance": chances.get(name[5:])} for name in names},
    }


def _instruments(run: Run) -> dict[str, Any] | None:
    """The accuracies that the instruments have measured of the exported weights, or last, each with interval and floors."""
    probes = run.parts.probes
    read = [entry for entry in run.state.log_history if "rankme" in entry and entry["step"] <= _weights_step(run)]
    if not read or not probes.floors:
        return None
    last, images = read[-1], probes.count if probes.labelled is None else len(probes.labelled.images)
    return {
        "images": images,
        "data": probes.labelled.name if probes.labelled is not None else None,
        "step": last["step"],
        "values": {
            name: {
                "measured": last[name],
                "interval": wilson_interval(last[name], images),
                "floors": dict(probes.floors[name]),
            }
            for name in INSTRUMENTS
            if name in last and name.endswith("_accuracy")
        },
    }


def wilson_interval(share: float, images: int) -> list[float]:
    """The 95 % interval of a share: Wilson's, over images.

    Where an image has several answers (each square, each turn) it is wider than it need be: no mean of shares varies more than
    that of whole answers.
    """
    z = 1.959964
    center, spread = share + z * z / (2 * images), z * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    return [(center + sign * spread) / (1 + z * z / images) for sign in (-1, 1)]


def _hardware(args: TeacherStudentTrainingArguments) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    processes = f", {args.world_size} processes" if args.world_size > 1 else ""
    return f"{args.device.type.upper()}, {os.cpu_count()} cores ({platform.machine()}){processes}"


def _from_to(start: float, end: float | None) -> str:
    return f"{start:g}" if end is None or end == start else f"{start:g} to {end:g}"


def _emissions(run: Run) -> float | None:
    """Grams of CO2 equivalent that codecarbon measured, where its callback ran."""
    for callback in run.callback_handler.callbacks:
        measured = getattr(getattr(callback, "tracker", None), "final_emissions", None)
        if measured is not None:
            return float(measured) * 1000
    return None
