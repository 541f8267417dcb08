"""What a checkpoint holds of model and optimizer: whole tensors by name, so that one process, DDP and FSDP2 read each other's."""

import json
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from hf_geossl.training.checkpoints.files import CheckpointError
from hf_geossl.training.sharding import gather_optimizer_state, load_optimizer_state, load_state, read_state


def write_json(path: Path, values: object) -> None:
    """Writes plain values to a file."""
    path.write_text(json.dumps(values), encoding="utf-8")


def read_weights(model: nn.Module, checkpoint: Path) -> None:
    """Gives a model the weights of a checkpoint.

    Raises:
        CheckpointError: If they are of another model.
    """
    try:
        load_state(model, read_state(checkpoint))
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name} does not fit: {error}") from error


def write_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, folder: Path, wanted: bool
) -> None:
    """Writes optimizer and learning-rate schedule; all processes must call this.

    Args:
        model (`nn.Module`): The model, without a wrapper.
        optimizer, scheduler: Of the run.
        folder (`Path`): The folder.
        wanted (`bool`): Whether this process writes.
    """
    state = gather_optimizer_state(model, optimizer, wanted)
    if wanted:
        torch.save(state, folder / OPTIMIZER_NAME)
        torch.save(scheduler.state_dict(), folder / SCHEDULER_NAME)


def read_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, checkpoint: Path
) -> None:
    """Puts optimizer and schedule back.

    Raises:
        CheckpointError: If the state is of other parameters.
    """
    # mapped, so that a process reads the pages of its own parts alone
    saved = torch.load(checkpoint / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
    try:
        load_optimizer_state(model, optimizer, saved)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name} does not fit: {error}") from error
    scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER_NAME, weights_only=True))
