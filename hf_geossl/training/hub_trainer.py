"""`HubTrainer`: how a run reaches the Hub, at its end and while it goes on."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from hf_geossl.hub.card import write_card
from hf_geossl.hub.export import export_model
from hf_geossl.hub.run_record import shared_arguments
from hf_geossl.training.run_description import describe_run
from hf_geossl.training.scheduled_trainer import ScheduledTrainer
from hf_geossl.training.sharding import is_sharded, read_whole

logger = logging.getLogger(__name__)

PUSHED = ".push-"


class HubTrainer(ScheduledTrainer):
    """Exports the model, and publishes what it exports; the rest is `TeacherStudentTrainer`'s."""

    push_in_progress: Any = None
    publication: Any = None  # the last one that `push_to_hub` has waited for
    hub_model_id: Any
    _pusher: ThreadPoolExecutor | None = None

    def export(self, folder: Path, weights: str | None = None, model: Any = None) -> None:
        """Writes the trunk, its code, the image processor, the record of the run and the card to a folder, where this process
        saves. All processes must call this, unless the whole model is given.
        """
        model = self.whole_model() if model is None else model
        if not self.args.should_save:
            return
        export_model(
            model,
            folder,
            weights=weights,
            image_processor=self.processing_class,
            record=describe_run(self),  # type: ignore[arg-type]
            arguments=shared_arguments(self.args),
        )
        write_card(folder)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes sure that the token may write to `args.hub_model_id`, and makes that repository.

        Called when the trainer is made if `args.push_to_hub`, so that nothing is trained in vain.

        Raises:
            PublishError: If the token is missing, unknown or read-only, or may not write there.
        """
        if not self.is_world_process_zero():
            return
        from hf_geossl.hub.push import check_write_access, push_files  # a later room of the house

        token = token or self._hub_token
        private = bool(self.args.hub_private_repo if private is None else private)
        name = self.args.hub_model_id or self.run_dir.absolute().name
        self.hub_model_id = check_write_access(name, token)
        push_files({}, self.hub_model_id, revision=self.args.hub_revision, private=private, token=token)

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        results: Mapping[str, Any] | str | Path | None = None,
        space: bool = False,
        license: str | None = None,
    ) -> Any:
        """Exports the model to the folder of the run and publishes it, as `publish` does.

        Args:
            commit_message (`str`, *optional*): Of the commit.
            blocking (`bool`): Whether to wait; if not, a `Future` of the `Publication` is returned.
            token (`str`, *optional*): With write access; `args.hub_token`, HF_TOKEN or the one that was saved by default.
            revision (`str`, *optional*): A branch; `args.hub_revision` by default.
            private (`bool`, *optional*): Whether a repository that is made here is private.
            results, space, license: As in `publish`.

        Returns:
            `Publication`, a `Future` of it, or None on processes other than the first.

        Raises:
            PublishError: If the Hub cannot be reached or refuses; the model lies in the folder of the run all the same.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.export(self.run_dir)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        from hf_geossl.hub.push import publish  # a later room of the house

        told: dict[str, Any] = {
            "results": results,
            "space": space,
            "license": license,
            "private": bool(self.args.hub_private_repo if private is None else private),
            "token": token or self._hub_token,
            "revision": revision or self.args.hub_revision,
            "message": commit_message or "End of training",
        }
        if not blocking:
            job = self._submit(publish, self.run_dir, **told)
            self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]
            return job
        assert self.hub_model_id is not None
        self.publication = publish(self.run_dir, self.hub_model_id, **told)
        return self.publication

    def _finish_current_push(self) -> None:
        """Waits for what is being pushed; not at the end of `train`, where the model is not saved yet."""
        if not self.is_in_train:
            super()._finish_current_push()

    def _submit(self, action: Callable[..., Any], folder: Path, **kwargs: Any) -> "Future[Any]":
        """Does something beside the training, after what was submitted before."""
        if self._pusher is None:
            self._pusher = ThreadPoolExecutor(1, thread_name_prefix="push")
        return self._pusher.submit(action, folder, self.hub_model_id, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publishes the model as it is now, and the checkpoint where `hub_strategy` says so, beside the training."""
        strategy = self.args.hub_strategy
        if self._staging is not None or not self.is_world_process_zero() or strategy == HubStrategy.END:
            return  # a checkpoint is pushed when it is whole
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        step = self.state.global_step
        folder = self.run_dir / f"{PUSHED}{step}"
        shutil.rmtree(folder, ignore_errors=True)
        model = self.accelerator.unwrap_model(self.model)
        if is_sharded(model):  # the other processes are not here
            model = read_whole(model, checkpoint_folder)
        self.export(folder, model=model)
        extra = {}
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            checkpoint = Path(checkpoint_folder)
            place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            kept = folder / "checkpoint"  # the run may remove its own while this one is sent
            shutil.copytree(checkpoint, kept, copy_function=_link)
            extra = {f"{place}/{path.relative_to(kept)}": path for path in sorted(kept.rglob("*")) if path.is_file()}
        job = self._submit(
            _publish_step,
            folder,
            private=bool(self.args.hub_private_repo),
            token=self._hub_token,
            revision=self.args.hub_revision,
            message=f"Training in progress, step {step}",
            extra_files=extra,
        )
        self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]


def _publish_step(folder: Path, repo_id: str, **kwargs: Any) -> None:
    """Publishes a folder of a step and removes it; what fails is told, for the run goes on."""
    from hf_geossl.hub.push import publish  # a later room of the house

    try:
        publish(folder, repo_id, **kwargs)
    except Exception as error:  # whatever it is, it must not end a run of days
        step = folder.name.removeprefix(PUSHED)
        logger.warning(f"step {step} was not pushed, and the run goes on: {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link(source: str, target: str) -> None:
    """A second name of a file where the file system has such, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
