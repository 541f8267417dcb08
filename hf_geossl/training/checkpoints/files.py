"""Checkpoints that are whole or absent, and the choice of the one to resume from."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_geossl.hub.run_folder import MANIFEST, file_sizes, list_checkpoints, why_not_whole

logger = logging.getLogger(__name__)

STAGING = ".staging"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TORCH_WRITER = (
    "PytorchStreamWriter",
    "inline_container.cc",
    "iostream error",
)  # what torch.save says, always without why
_NOT_THE_MODEL = {"architectures", "auto_map", "dtype", "transformers_version", "use_cache", "_name_or_path"}


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

    Args:
        staged (`Path`): Folder that all processes have finished writing.
        final (`Path`): The checkpoint's place, on the same file system. One that lies there is replaced.
        world_size (`int`): Processes whose files must be there.

    Raises:
        CheckpointError: If a process's file is missing.
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
    """Finds where a run can be resumed.

    Args:
        output_dir (`str` or `Path`): Folder of the run.

    Returns:
        `Path` or `None`: The newest whole checkpoint. Damaged ones are passed over with a warning.
    """
    for checkpoint in list_checkpoints(output_dir):
        wrong = why_not_whole(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning(f"{checkpoint.name} is passed over: {wrong}")
    return None


def check_checkpoint(checkpoint: str | Path, config: dict[str, Any]) -> Path:
    """Makes sure that a checkpoint can be resumed from with this model.

    Args:
        checkpoint (`str` or `Path`): The folder.
        config (`dict`): The configuration of the model to train, from `config.to_dict()`.

    Returns:
        `Path`: The folder.

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
