"""What a run leaves behind about itself, in plain values: what a card tells of it, and its arguments."""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import TrainingArguments

from hf_geossl.hub.redaction import redact, redact_values

if TYPE_CHECKING:
    from hf_geossl.training.trainer import TeacherStudentTrainer

RECORD, ARGUMENTS = "training_run.json", "training_args.yaml"
_PACKAGES = ("hf_geossl", "torch", "transformers", "datasets", "accelerate")
# of the machine, of the person, or of what is printed; none changes what is learned
_NOT_SHARED = {
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "deepspeed",
    "fsdp_config",
    "accelerator_config",
    "local_rank",
    "report_to",
    "project",
}


def installed_versions() -> dict[str, str]:
    """Versions of this library and of those under it, by name."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def is_hub_id(name: Any) -> bool:
    """Whether a text has the form `user/name` of a Hub repository and is no path that exists here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists() and redact(name) == name


def weights_digest(folder: Path) -> str | None:
    """Args:
        folder (`Path`): Of a model.

    Returns:
        `str`: A hash of its weights' files, `model*.safetensors`; None where there are none.
    """
    files = sorted(folder.glob("model*.safetensors"))
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return total.hexdigest()[:16] if files else None


def measured_losses(history: list[dict[str, Any]], metrics: Sequence[str], lines: int = 8) -> list[dict[str, float]]:
    """Evenly spread log lines of a run.

    Args:
        history (`list[dict]`): The Trainer's `log_history`.
        metrics (`Sequence[str]`): What is taken beside the losses.
        lines (`int`): How many at most, the first and the last among them.

    Returns:
        `list[dict[str, float]]`: Each with `step` and the values logged there.
    """
    logged = [entry for entry in history if "loss" in entry]
    if not logged:
        return []
    names = [name for name in logged[-1] if name == "loss" or name.endswith("_loss") or name in metrics]
    chosen = sorted({round(index * (len(logged) - 1) / max(lines - 1, 1)) for index in range(lines)})
    return [{"step": logged[i]["step"], **{n: logged[i][n] for n in names if n in logged[i]}} for i in chosen]


def _held_out(run: "TeacherStudentTrainer") -> dict[str, Any] | None:
    """What the last evaluation measured, each value with the one of knowing nothing where that is known."""
    measured = [entry for entry in run.state.log_history if "eval_loss" in entry and "eval_images" in entry]
    if not measured or run.eval_dataset is None:
        return None
    last, chances = measured[-1], run.chance_levels()
    names = [name for name in last if name == "eval_loss" or name.endswith("_loss") or name[5:] in run.metrics]
    if "eval_mean_image_loss" in last:  # what knowing nothing reconstructs
        names.remove("eval_mean_image_loss")
        chances = {**chances, "reconstruction_loss": last["eval_mean_image_loss"]}
    source = run.eval_dataset.source
    return {
        "data": run.describe_data(run.eval_dataset),
        "dataset_id": source.name if source.kind == "hub" else None,
        "split": run.eval_dataset.fingerprint["split"],
        "images": int(last["eval_images"]),
        "step": last["step"],
        "values": {name[5:]: {"measured": last[name], "chance": chances.get(name[5:])} for name in names},
    }


def _hardware(args: Any) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    processes = f", {args.world_size} processes" if args.world_size > 1 else ""
    return f"{args.device.type.upper()}, {os.cpu_count()} cores ({platform.machine()}){processes}"


def _from_to(start: float, end: float | None) -> str:
    return f"{start:g}" if end is None or end == start else f"{start:g} to {end:g}"


def _emissions(run: "TeacherStudentTrainer") -> float | None:
    """Grams of CO2 equivalent that codecarbon measured, where its callback ran."""
    for callback in run.callback_handler.callbacks:
        measured = getattr(getattr(callback, "tracker", None), "final_emissions", None)
        if measured is not None:
            return float(measured) * 1000
    return None


def run_record(run: "TeacherStudentTrainer", weights: str) -> dict[str, Any]:
    """What is known of a run; nothing that was not measured or set, no token and no path of the machine.

    Args:
        run (`TeacherStudentTrainer`): The run.
        weights (`str`): Whose trunk is saved, "teacher" or "student".

    Returns:
        `dict[str, Any]`: Plain values for JSON; what is not known is missing.
    """
    args, state, stream = run.args, run.state, run.train_dataset
    started_from = getattr(run.model, "name_or_path", None)
    record = {
        "weights": weights,
        "data": f"{stream.source.name} ({stream.source.kind})" if stream is not None else None,
        "dataset_id": stream.source.name if stream is not None and stream.source.kind == "hub" else None,
        "base_model": started_from if started_from and is_hub_id(started_from) else None,
        "from_scratch": not started_from,
        "steps": state.global_step,
        "images": state.global_step * args.global_batch_size,
        "seconds": round(run.seconds_trained, 1),
        "hardware": _hardware(args),
        "emissions": _emissions(run),
        "global_batch": args.global_batch_size,
        "views": run.views.describe(),
        "learning_rate": f"{args.learning_rate:.3g}",
        "weight_decay": _from_to(args.weight_decay, args.weight_decay_end),
        "teacher_momentum": None
        if run.model.teacher is None
        else _from_to(args.teacher_momentum, args.teacher_momentum_end),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
        "command": run.command,
        "losses": measured_losses(state.log_history, run.metrics),
        "held_out": _held_out(run),
        "versions": installed_versions(),
    }
    return redact_values({name: value for name, value in record.items() if value not in (None, [])})


def shared_arguments(args: Any) -> dict[str, Any]:
    """The training arguments that others may read: those that differ from transformers' defaults, and this library's own.

    Args:
        args (`TrainingArguments`): The arguments.

    Returns:
        `dict[str, Any]`: Plain values without tokens, and without folders and names of the machine.
    """
    defaults = {entry.name: entry.default for entry in dataclasses.fields(TrainingArguments)}
    masked = json.loads(json.dumps(args.to_dict(), default=str))
    chosen = {
        name: value
        for name, value in masked.items()
        if name not in _NOT_SHARED and not name.startswith("hub_") and value != defaults.get(name, dataclasses.MISSING)
    }
    return redact_values(
        {name: value for name, value in chosen.items() if not (value is None and name not in defaults)}
    )


def write_arguments(args: Any, folder: Path) -> None:
    """Writes `training_args.yaml` to a folder."""
    arguments = yaml.safe_dump(shared_arguments(args), sort_keys=True, allow_unicode=True)
    (folder / ARGUMENTS).write_text(arguments, encoding="utf-8")


def write_record(run: "TeacherStudentTrainer", weights: str, folder: Path) -> None:
    """Writes `training_run.json` and `training_args.yaml` (never a pickle) to a folder."""
    record = json.dumps(run_record(run, weights), indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(record + "\n", encoding="utf-8")
    write_arguments(run.args, folder)
