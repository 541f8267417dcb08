"""`StreamTrainer`: transformers' Trainer on streams, with checkpoints that are whole or absent and resume bit for bit."""

import copy
import json
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.evaluation_batches import EvaluationBatches, FirstImages
from hf_geossl.data.streams import ImageStream
from hf_geossl.hub.run_record import shared_arguments, write_arguments
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.checkpointing import (
    STAGING,
    CheckpointError,
    check_checkpoint,
    describe_space,
    is_lack_of_space,
    is_write_failure,
    newest_whole_checkpoint,
    publish_checkpoint,
)
from hf_geossl.training.sharded_trainer import ShardedTrainer
from hf_geossl.views.base import Views

logger = logging.getLogger(__name__)


class StreamTrainer(ShardedTrainer):
    """Where the data come from and where the run stands; what is learned from them is `TeacherStudentTrainer`'s.

    Args:
        model (`PreTrainedModel`): The model.
        args (`TeacherStudentTrainingArguments`): The training arguments. They are not changed.
        train_dataset, eval_dataset (`ImageStream` or dataset, *optional*): Streams from `load_stream`, or any dataset
            whose samples hold an `image`.
        views (`Views`): Makes the views of an image.
        **kwargs: As `Trainer`.

    Raises:
        ValueError: If the length of the run is not known.
    """

    args: TeacherStudentTrainingArguments
    model: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self, model: Any, args: Any, train_dataset: Any, eval_dataset: Any, views: Views, **kwargs: Any
    ) -> None:
        args = copy.copy(args)
        self._hub_token, args.hub_token = args.hub_token, None  # checkpoints hold the arguments
        if train_dataset is not None and args.max_steps <= 0:
            args.max_steps = _steps_of_epochs(args, train_dataset)
        if args.base_learning_rate is not None:
            args.learning_rate = args.scaled_learning_rate
        self.views = views
        self._batches: StreamBatches | None = None
        self._resume: list[dict[str, Any]] | None = None
        self._staging: Path | None = None
        self._write_failure: BaseException | None = None  # of the checkpoint that is being saved
        self.failed_saves = 0
        super().__init__(
            model=model,
            args=args,
            train_dataset=_as_stream(train_dataset, args.seed),
            eval_dataset=_as_stream(eval_dataset, 0),
            **kwargs,
        )

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.args.output_dir or ".")

    @property
    def compares_images(self) -> bool:
        """Whether the loss of an image depends on the others of its batch, so that all batches must be whole."""
        return False

    def run_state(self) -> dict[str, Any]:
        """What this process adds to a checkpoint beside its position: plain values."""
        return {}

    # ---- Data ----

    def get_train_dataloader(self) -> Any:
        """The stream's own loader: it knows processes, workers and, after a resume, its position."""
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset: load_stream(...) makes one")
        args = self.args
        saved = [rank["stream"] for rank in self._resume] if self._resume else None
        self._batches = StreamBatches(
            self.train_dataset,
            self.views,
            args.train_batch_size,
            rank=args.process_index,
            world_size=args.world_size,
            num_streams=args.num_streams or (saved[0]["num_streams"] if saved else None),
            num_workers=args.dataloader_num_workers,
        )
        if saved:
            self._batches.load_state_dict(saved)
        generator = torch.Generator().manual_seed(args.seed)  # the loader's own: the global generator stays untouched
        return self._batches.loader(
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            generator=generator,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Batches of one pass over the evaluation images; each process takes its share."""
        dataset = self.eval_dataset if eval_dataset is None else _as_stream(eval_dataset, 0)
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset: load_stream(..., split='validation') makes one")
        args = self.args
        return EvaluationBatches(
            dataset, self.views, args.eval_batch_size, args.process_index, args.world_size, drop_last=self.compares_images
        )

    # ---- Checkpoints ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains; with `resume_from_checkpoint` goes on bit for bit from a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A `checkpoint-N` folder, or True for the newest whole
                one in `args.output_dir`.

        Raises:
            CheckpointError: If there is no such checkpoint, it is not whole, or it does not fit model or data.
            ValueError: If the position in the checkpoint belongs to other data or another batch size.
        """
        checkpoint = None
        if resume_from_checkpoint is True:
            checkpoint = newest_whole_checkpoint(self.run_dir)
            if checkpoint is None:
                raise CheckpointError(
                    "the output folder holds no whole checkpoint: start without resume_from_checkpoint"
                )
        elif resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
        self._resume = None
        if checkpoint is not None:
            checkpoint = check_checkpoint(checkpoint, self.model.config.to_dict())
            world_size = len(list(checkpoint.glob("run_state_*.json")))
            self._resume = [
                json.loads((checkpoint / f"run_state_{rank}.json").read_text()) for rank in range(world_size)
            ]
            self._check_settings(checkpoint.name, self._resume[0]["settings"])
            done = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if done.global_step >= self.args.max_steps:
                logger.warning(
                    f"{checkpoint.name} is the end of the run (max_steps={self.args.max_steps}): nothing to train"
                )
                self._load_from_checkpoint(str(checkpoint))
                self.state = done
                return TrainOutput(done.global_step, 0.0, {})
            logger.info(f"resuming from {checkpoint.name}")
        result = super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)
        return result._replace(training_loss=result.metrics.get("train_loss", result.training_loss))

    def _settings(self) -> dict[str, Any]:
        """What a run has to go on with, beside its data."""
        return {
            "views": self.views.describe(),
            "batches of a step": self.args.gradient_accumulation_steps * self.args.world_size,
        }

    def _check_settings(self, name: str, saved: dict[str, Any]) -> None:
        for key, value in self._settings().items():
            if saved[key] != value:
                raise CheckpointError(
                    f"{name} was trained with other {key} ({saved[key]}; now {value}): resume with the same, or start anew"
                )

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    @contextmanager
    def _noting_write_failures(self) -> Iterator[None]:
        """Lets a process whose disk is full go on to where all find out, instead of leaving the others waiting."""
        try:
            yield
        except Exception as error:
            if self._staging is None or not is_write_failure(error):
                raise
            self._write_failure = self._write_failure or error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers'."""
        with self._noting_write_failures():
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._noting_write_failures():
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_scaler(self, output_dir: str) -> None:
        with self._noting_write_failures():
            super()._save_scaler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        with self._noting_write_failures():
            super()._save_rng_state(output_dir)

    def _all_have_written(self) -> bool:
        """Whether all processes have come here without a write failure; a barrier too."""
        failed = torch.tensor(self._write_failure is not None, device=self.args.device)
        return not bool(self.accelerator.reduce(failed.long().reshape(1), "sum").item())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes the checkpoint beside its place and moves it there when it is whole. Where the disk is full nothing is left
        of it, the checkpoints before stay, and the run goes on to its next save.

        Raises:
            CheckpointError: If it could not be written for another reason, or is the one that a signal asked for.
        """
        if self._batches is None:
            raise ValueError("a checkpoint is saved during training")
        run_dir = Path(super()._get_output_dir(trial))
        staging, name = run_dir / STAGING, f"checkpoint-{self.state.global_step}"
        best, best_before = self.state.best_global_step, self.state.best_model_checkpoint
        self._write_failure = None
        try:
            self._staging = staging
            with self._noting_write_failures():
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
                    (staging / name).mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            with self._noting_write_failures():
                state = {"settings": self._settings(), "stream": self._batches.state_dict(), **self.run_state()}
                (staging / name / f"run_state_{self.args.process_index}.json").write_text(json.dumps(state))
            with self._noting_write_failures():
                super()._save_checkpoint(model, trial)
            written = self._all_have_written()
            if written and self.args.should_save:
                with self._noting_write_failures():
                    self._publish(staging / name, run_dir / name, best)
            written = written and self._all_have_written()
        finally:
            self._staging = None
        if not written:
            self.state.best_model_checkpoint = best_before
            self._give_up_saving(staging, name, run_dir)
            return
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / name))

    def _publish(self, staged: Path, final: Path, best: int | None) -> None:
        """Makes what all processes have written a checkpoint, and deletes those that are too many."""
        run_dir = final.parent
        (staged / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle
        write_arguments(shared_arguments(self.args), staged)
        if best and ((run_dir / f"checkpoint-{best}").is_dir() or best == self.state.global_step):
            self.state.best_model_checkpoint = str(run_dir / f"checkpoint-{best}")
            self.state.save_to_json(str(staged / "trainer_state.json"))
        publish_checkpoint(staged, final, self.args.world_size)
        shutil.rmtree(staged.parent, ignore_errors=True)
        rotate_checkpoints(
            output_dir=str(run_dir),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )

    def _give_up_saving(self, staging: Path, name: str, run_dir: Path) -> None:
        """Cleans up after a save that failed on some process, counts it, and says it; all processes call this."""
        failure = self._write_failure
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.failed_saves += 1
        other = failure is not None and not is_lack_of_space(failure)
        other = bool(self.accelerator.reduce(torch.tensor([int(other)], device=self.args.device), "sum").item())
        why = (
            " ".join(str(failure).split())[:200] if failure is not None else "another process could not write its part"
        )
        if other:
            raise CheckpointError(
                f"{name} could not be written ({why}): see to the output folder, then resume from the checkpoint before"
            ) from failure
        try:
            space = describe_space(run_dir)
        except OSError:
            space = "how much is free cannot be told"
        message = f"{name} was not saved, the disk of the output folder is full: {space}. "
        if self.control.should_training_stop and self.state.global_step < self.state.max_steps:
            raise CheckpointError(f"{message}Make room, then resume from the checkpoint before") from failure
        logger.warning(
            f"{message}Older checkpoints stay, the run goes on and tries again at its next save. Make room, or set a lower "
            "save_total_limit"
        )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', which would delete the last checkpoint where save_total_limit is 1 and another is better."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit


def _steps_of_epochs(args: Any, dataset: Any) -> int:
    if not hasattr(dataset, "__len__"):
        raise ValueError("a stream has no end, so the length of the run must be given: set max_steps in args")
    return max(math.ceil(args.num_train_epochs * len(dataset) / args.global_batch_size), 1)


def _as_stream(dataset: Any, seed: int) -> ImageStream | FirstImages | None:
    if dataset is None or isinstance(dataset, (ImageStream, FirstImages)):
        return dataset
    return ImageStream.from_dataset(dataset, seed=seed)
