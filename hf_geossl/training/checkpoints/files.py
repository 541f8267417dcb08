"""Checkpoints, whole or absent, of whole tensors by name, so that one process, DDP and FSDP2 read each other's."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from hf_geossl.hub.run_folder import MANIFEST, file_sizes, list_checkpoints, why_not_whole
from hf_geossl.training.adaptation.adapters import ADAPTED, adapted_part, scaling_of, unmerge_state
from hf_geossl.training.sharding import (
    gather_optimizer_state,
    gather_state,
    load_optimizer_state,
    load_state,
    read_state,
)

logger = logging.getLogger(__name__)

STAGING = ".staging"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TORCH_WRITER = (
    "PytorchStreamWriter",
    "inline_container.cc",
    "iostream error",
)  # what torch.save says, always without why
_NOT_THE_MODEL = {
    *("architectures", "auto_map", "dtype", "init_from", "transformers_version", "use_cache", "_name_or_path"),
}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be resumed from; the message says why and what to do."""


def is_write_failure(error: BaseException) -> bool:
    """Whether an error says that a file could not be written: the system's, safetensors' or that of `torch.save`."""
    return isinstance(error, (OSError, SafetensorError)) or any(part in str(error) for part in _TORCH_WRITER)


def is_lack_of_space(error: BaseException) -> bool:
    """Whether a write failure comes from a full disk, a quota or a limit on the size of files."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    # what else could stop torch.save would have stopped it when it opened the file
    said = (*_TORCH_WRITER, *(f"{before}{number}" for before in ("os error ", "code: ") for number in _NO_SPACE))
    return any(part in str(error) for part in said)


def describe_space(run_dir: Path) -> str:
    """How much room there is and how much a checkpoint takes, as part of a sentence."""
    free = f"{shutil.disk_usage(run_dir).free / 1e6:.1f} MB are free"
    whole = next((path for path in list_checkpoints(run_dir) if why_not_whole(path) is None), None)
    if whole is None:
        return f"{free}, and no checkpoint has been saved yet"
    return f"{free}, {whole.name}, which is whole, takes {sum(file_sizes(whole).values()) / 1e6:.1f} MB"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_checkpoint(staged: Path, final: Path, world_size: int) -> None:
    """Makes a staged folder a checkpoint in one step: writes the list of its files, flushes all to disk and renames it.

    `final` is on the same file system; what lies there is replaced. The files of `world_size` processes must be there.
    """
    sizes = file_sizes(staged)
    missing = [name for rank in range(world_size) if (name := f"run_state_{rank}.json") not in sizes]
    if missing:
        raise CheckpointError(f"{final.name} was not saved: {', '.join(missing)} did not arrive from their processes")
    (staged / MANIFEST).write_text(json.dumps({"world_size": world_size, "files": sizes}, indent=1))
    for path in staged.rglob("*.safetensors"):
        shutil.copymode(staged / MANIFEST, path)  # safetensors lets nobody else read
    for path in [*staged.rglob("*"), staged]:
        _sync(path)
    replaced = final.with_name(f"{STAGING}-replaced-{final.name}")
    for left in final.parent.glob(f"{STAGING}-replaced-*"):  # by a save that was killed between the two renames
        shutil.rmtree(left, ignore_errors=True)
    if final.exists():
        os.replace(final, replaced)
    os.replace(staged, final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def newest_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """Finds the newest whole checkpoint of a run's folder; damaged ones are passed over with a warning."""
    for checkpoint in list_checkpoints(output_dir):
        wrong = why_not_whole(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning(f"{checkpoint.name} is passed over: {wrong}")
    return None


def check_checkpoint(checkpoint: str | Path, config: dict[str, Any]) -> Path:
    """Returns the folder of a checkpoint that can be resumed from with a model of this `config.to_dict()`.

    Raises:
        CheckpointError: If it does not exist, is not whole, holds weights alone, or is of another method or model.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no checkpoint {folder.name!r}: give a checkpoint-N folder, or true for the newest"
        )
    wrong = why_not_whole(folder)
    if wrong is not None:
        raise CheckpointError(
            f"{folder.name} is not whole: {wrong}; resume from another, or true for the newest whole one"
        )
    for pattern in ("optimizer*", "scheduler.pt", "rng_state*.pth"):
        if not any(folder.glob(pattern)):
            raise CheckpointError(
                f"{folder.name} holds no {pattern.rstrip('*')}, so a run cannot go on from it; it was saved with "
                "save_only_model=True: start anew from its weights"
            )
    try:
        saved: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder.name} has no readable config.json") from error
    if saved.get("model_type") != config["model_type"]:
        raise CheckpointError(
            f"{folder.name} is a checkpoint of {saved.get('model_type')!r}, and the model to train is "
            f"{config['model_type']!r}"
        )
    ours = json.loads(json.dumps(config, default=str))
    for name in sorted(saved.keys() & ours.keys() - _NOT_THE_MODEL):
        if saved[name] != ours[name]:
            raise CheckpointError(
                f"{folder.name} is of another model: {name} was {saved[name]!r} and is {ours[name]!r}; resume with the same"
            )
    return folder


def write_json(path: Path, values: object) -> None:
    """Writes plain values to a file."""
    path.write_text(json.dumps(values), encoding="utf-8")


def read_weights(model: nn.Module, checkpoint: Path) -> None:
    """Gives a model the weights of a checkpoint."""
    try:
        load_state(model, unmerge_state(model, read_state(checkpoint), checkpoint))
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name} does not fit: {error}") from error


def write_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, folder: Path, wanted: bool
) -> None:
    """Writes optimizer, learning-rate schedule and adapters where they are `wanted`; all processes must call this."""
    state = gather_optimizer_state(model, optimizer, wanted)
    adapted = {} if scaling_of(model) is None else adapted_part(gather_state(model, wanted))
    if adapted:
        save_file(adapted, folder / ADAPTED)
    if wanted:
        torch.save(state, folder / OPTIMIZER_NAME)
        torch.save(scheduler.state_dict(), folder / SCHEDULER_NAME)


def read_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, checkpoint: Path
) -> None:
    """Puts optimizer and schedule back, and says which settings of this run the checkpoint's replace."""
    given = _settings(optimizer, scheduler)
    # mapped, so that a process reads the pages of its own parts alone
    saved = torch.load(checkpoint / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
    try:
        load_optimizer_state(model, optimizer, saved)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name} does not fit: {error}") from error
    scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER_NAME, weights_only=True))
    for name, values in _settings(optimizer, scheduler).items():
        changed = [(ours, theirs) for ours, theirs in zip(given[name], values, strict=False) if ours != theirs]
        if changed:
            logger.warning(
                f"the {name} stays that of {checkpoint.name}, {changed[0][1]}, and {changed[0][0]} is left out: a run goes on "
                "with its own; start a new one from its weights by --model_name_or_path"
            )


def _settings(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> dict[str, list[Any]]:
    """Settings of each group that do not change in the course of a run."""
    own = getattr(scheduler, "scheduler", scheduler)  # accelerate may have wrapped it
    betas = [tuple(group["betas"]) for group in optimizer.param_groups if "betas" in group]
    return {"learning_rate": list(getattr(own, "base_lrs", ())), "betas": betas}
