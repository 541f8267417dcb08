"""How checkpoints are written and read again: whole or absent, also where a disk is full on one of several processes."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from hf_geossl.training.checkpoints.files import (
    STAGING,
    CheckpointError,
    check_checkpoint,
    describe_space,
    is_lack_of_space,
    is_write_failure,
    newest_whole_checkpoint,
    publish_checkpoint,
)
from hf_geossl.views.channels import ChannelJitter
from hf_geossl.views.image_settings import ImageSettings

logger = logging.getLogger(__name__)

FORMAT = 2  # of run_state_N.json; 2: views by their settings, the log line by `LossMeter`


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a run goes on from: its folder, what each process has written, and transformers' record."""

    folder: Path
    states: Sequence[Mapping]
    trainer_state: TrainerState

    def of_rank(self, rank: int) -> Mapping:
        """What a process has written, or the last one where there were fewer."""
        return self.states[min(rank, len(self.states) - 1)]


class Checkpointer:
    """Writes checkpoints of a run beside their place and moves them there when they are whole; finds them again.

    Attributes:
        failed (`int`): Checkpoints that a full disk has prevented.
    """

    def __init__(self, args: TrainingArguments, accelerator: Accelerator) -> None:
        self.args, self.accelerator = args, accelerator
        self.run_dir = Path(args.output_dir or ".")
        self.failed = 0
        self._failure: Exception | None = None  # of the checkpoint that is being written

    def find(
        self, requested: str | bool | None, config: Mapping[str, object], settings: Mapping[str, object]
    ) -> Resumed | None:
        """Finds what to resume from; None where nothing was requested.

        Args:
            requested (`str`, `bool` or `None`): A `checkpoint-N` folder, or True for the newest whole one of the run.
            config (`Mapping`): The model's configuration as plain values.
            settings (`Mapping`): What a run has to go on with, as it was saved.

        Raises:
            CheckpointError: If there is no such checkpoint, it is not whole, or it does not fit model or settings.
        """
        if not requested:
            return None
        chosen = newest_whole_checkpoint(self.run_dir) if requested is True else Path(requested)
        if chosen is None:
            raise CheckpointError("the output folder holds no whole checkpoint: start without resume_from_checkpoint")
        folder = check_checkpoint(chosen, dict(config))
        world_size = len(list(folder.glob("run_state_*.json")))
        states = [json.loads((folder / f"run_state_{rank}.json").read_text()) for rank in range(world_size)]
        _check_settings(folder.name, states[0], settings)
        return Resumed(folder, states, TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)))

    def write(self, state: TrainerState, parts: Sequence[Callable[[Path], object]], last: bool) -> Path | None:
        """Writes a checkpoint; all processes must call this.

        Where the disk is full nothing is left of it, the checkpoints before stay, and the run goes on to its next save.

        Args:
            state (`TrainerState`): transformers' record, which is written last and learns which checkpoint is best.
            parts (`Sequence[Callable[[Path], object]]`): Each writes its files to a folder; all processes call all of them.
            last (`bool`): Whether the run ends with this checkpoint.

        Returns:
            `Path` or `None`: The checkpoint; None where the disk was full.

        Raises:
            CheckpointError: If it could not be written for another reason, or the run was to end with it.
        """
        name, best = f"checkpoint-{state.global_step}", state.best_model_checkpoint
        staging, final = self.run_dir / STAGING, self.run_dir / name
        self._failure = None
        self._attempt(_make_empty, staging, staging / name, only=self.args.should_save)
        self.accelerator.wait_for_everyone()
        for part in parts:
            self._attempt(part, staging / name)
        if self._all_have_written():
            self._attempt(self._publish, state, staging / name, final, only=self.args.should_save)
            if self._all_have_written():
                return final
        state.best_model_checkpoint = best
        self._give_up(staging, name, last)
        return None

    def _attempt(self, action: Callable[..., object], *arguments: object, only: bool = True) -> None:
        """Lets a process whose disk is full go on to where all find out, instead of leaving the others waiting."""
        try:
            if only:
                action(*arguments)
        except Exception as error:
            if not is_write_failure(error):
                raise
            self._failure = self._failure or error

    def _all_have_written(self) -> bool:
        """Whether all processes have come here without a write failure; a barrier too."""
        return not self._any(self._failure is not None)

    def _any(self, flag: bool) -> bool:
        return bool(self.accelerator.reduce(torch.tensor([int(flag)], device=self.args.device), "sum").item())

    def _publish(self, state: TrainerState, staged: Path, final: Path) -> None:
        """Makes what all processes have written a checkpoint, and deletes those that are too many."""
        best = state.best_global_step
        if best and (best == state.global_step or (self.run_dir / f"checkpoint-{best}").is_dir()):
            state.best_model_checkpoint = str(self.run_dir / f"checkpoint-{best}")
        state.save_to_json(str(staged / TRAINER_STATE_NAME))
        publish_checkpoint(staged, final, self.args.world_size)
        shutil.rmtree(staged.parent, ignore_errors=True)
        rotate_checkpoints(
            output_dir=str(self.run_dir),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=state.best_model_checkpoint,
        )

    def _give_up(self, staging: Path, name: str, last: bool) -> None:
        """Cleans up after a save that failed on some process, counts it, and says it; all processes call this."""
        failure = self._failure
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.failed += 1
        if self._any(failure is not None and not is_lack_of_space(failure)):
            here = " ".join(str(failure).split())[:200]
            why = here if failure is not None else "another process could not write its part"
            raise CheckpointError(
                f"{name} could not be written ({why}): see to the output folder, then resume from the checkpoint before"
            ) from failure
        try:
            space = describe_space(self.run_dir)
        except OSError:
            space = "how much is free is not known"
        message = f"{name} was not saved, the disk of the output folder is full: {space}. "
        if last:
            raise CheckpointError(f"{message}Make room, then resume from the checkpoint before") from failure
        logger.warning(
            f"{message}Older checkpoints stay, the run goes on and tries again at its next save. Make room, or set a lower "
            "save_total_limit"
        )


def _make_empty(staging: Path, folder: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _check_settings(name: str, saved: Mapping, settings: Mapping[str, object]) -> None:
    """Refuses a checkpoint of another format, or of other settings than those of now."""
    if saved.get("format") != FORMAT:
        raise CheckpointError(
            f"{name} was written by another version of hf_geossl (format {saved.get('format', 1)}, this one reads "
            f"{FORMAT}): finish the run with that version, or start a new one from its weights with model_name_or_path"
        )
    now = json.loads(json.dumps(settings))
    unsaved = {name: now[name] for name in ("optim",) if name in now}  # of checkpoints from before it was
    for path, before, after in _differences({**unsaved, **_with_images(saved["settings"])}, now):
        raise CheckpointError(
            f"{name} was trained with other settings: {path} was {before!r} and is {after!r}; resume with the same, or "
            "start anew"
        )


def _with_images(saved: Mapping[str, object]) -> dict[str, object]:
    """Saved settings that say what the images are: RGB of 8 bits in checkpoints from before views could have others."""
    views = saved.get("views")
    if not isinstance(views, Mapping) or "normalization" not in views:
        return dict(saved)
    plain = json.loads(json.dumps({"image": asdict(ImageSettings()), "channel_jitter": asdict(ChannelJitter())}))
    return {**saved, "views": {**plain, **views}}


def _differences(before: object, after: object, path: str = "") -> list[tuple[str, object, object]]:
    """Every place in which two nested values differ, as (path, before, after)."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        differences = []
        for key in sorted({*before, *after}, key=str):
            inner = f"{path}.{key}" if path else str(key)
            differences += _differences(before.get(key), after.get(key), inner)
        return differences
    return [] if before == after else [(path, before, after)]
