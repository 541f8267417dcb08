"""What a run leaves behind: the trunk first, then its record, pictures and card; and how that reaches the Hub."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor
from transformers.trainer_utils import HubStrategy

from hf_geossl.hub.card import write_card
from hf_geossl.hub.export import export_model
from hf_geossl.hub.push import Publication, check_write_access, publish, push_files
from hf_geossl.hub.run_record import shared_arguments, write_arguments, write_record
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.outputs.attempts import attempt
from hf_geossl.training.pictures.base import PictureBook
from hf_geossl.training.sharding import is_sharded, read_unsharded

logger = logging.getLogger(__name__)

PUSHED = ".push-"


class HubPublisher:
    """Publishes what a run exports, in the foreground or beside the training, one push after the other.

    Attributes:
        publication (`Publication` or `None`): The last one that `publish` has waited for.
    """

    def __init__(self, args: TeacherStudentTrainingArguments, token: str | None) -> None:
        self.args, self.token = args, token
        self.run_dir = Path(args.output_dir or ".")
        self.repo_id: str | None = None
        self.publication: Publication | None = None
        self._pushes: ThreadPoolExecutor | None = None
        self._current: Future[object] | None = None

    def create_repository(self, token: str | None = None, private: bool | None = None) -> str:
        """Makes sure that the token may write to `args.hub_model_id`, and makes that repository.

        Raises:
            PublishError: If the token is missing, unknown or read-only, or may not write there.
        """
        token = token or self.token
        repo_id = check_write_access(self.args.hub_model_id or self.run_dir.absolute().name, token)
        push_files({}, repo_id, revision=self.args.hub_revision, private=self._private(private), token=token)
        self.repo_id = repo_id
        return repo_id

    def publish(
        self,
        message: str,
        *,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        results: Mapping[str, Any] | str | Path | None = None,
        space: bool = False,
        license: str | None = None,
    ) -> "Publication | Future[Publication]":
        """Publishes the folder of the run, after what is being pushed; see `TeacherStudentTrainer.push_to_hub`."""
        repo_id = self.repo_id or self.create_repository(token, private)
        self.wait()

        def send() -> Publication:
            return publish(
                self.run_dir,
                repo_id,
                results=results,
                space=space,
                license=license,
                private=self._private(private),
                token=token or self.token,
                revision=revision or self.args.hub_revision,
                message=message,
            )

        if not blocking:
            return self._submit(send)
        self.publication = send()
        return self.publication

    def step_folder(self, step: int) -> Path | None:
        """Where the export of a step belongs that `push_step` sends; None where this step is not pushed."""
        if not self.args.push_to_hub or self.args.hub_strategy == HubStrategy.END:
            return None
        if not self.args.hub_always_push and self._current is not None and not self._current.done():
            return None
        folder = self.run_dir / f"{PUSHED}{step}"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def push_step(self, folder: Path, checkpoint: Path, step: int) -> None:
        """Publishes an export of a step, then removes it; with the checkpoint where `hub_strategy` says so."""
        repo_id = self.repo_id or self.create_repository()
        extra = {}
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            place = "last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
            copied = folder / "checkpoint"  # the run may remove its own while this one is sent
            shutil.copytree(checkpoint, copied, copy_function=_link)
            extra = {
                f"{place}/{path.relative_to(copied)}": path for path in sorted(copied.rglob("*")) if path.is_file()
            }

        def send() -> None:
            try:
                publish(
                    folder,
                    repo_id,
                    private=self._private(None),
                    token=self.token,
                    revision=self.args.hub_revision,
                    message=f"Training in progress, step {step}",
                    extra_files=extra,
                )
            except Exception as error:  # whatever it is, it must not end a run of days
                logger.warning(f"step {step} was not pushed, and the run goes on: {type(error).__name__}: {error}")
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        self._submit(send)

    def wait(self) -> None:
        """Waits for what is being pushed."""
        if self._current is not None:
            wait([self._current])

    def _submit(self, action: Callable[[], Any]) -> "Future[Any]":
        """Does something beside the training, after what was submitted before."""
        if self._pushes is None:
            self._pushes = ThreadPoolExecutor(1, thread_name_prefix="push")
        self._current = self._pushes.submit(action)
        return self._current

    def _private(self, private: bool | None) -> bool:
        return bool(self.args.hub_private_repo if private is None else private)


def _link(source: str, target: str) -> None:
    """A second name of a file where the file system has such, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class Exporter:
    """Writes folders that `AutoModel` opens; `describe` gives what is known of the run, in plain values."""

    def __init__(
        self,
        args: TeacherStudentTrainingArguments,
        image_processor: BaseImageProcessor,
        pictures: PictureBook,
        publisher: HubPublisher,
        describe: Callable[[], Mapping[str, object]],
    ) -> None:
        self.args, self.image_processor, self.describe = args, image_processor, describe
        self.pictures, self.publisher = pictures, publisher
        self.weights = "teacher"

    def save(self, model: TeacherStudentModel, folder: Path, weights: str | None, step: int) -> None:
        """Writes the trunk, its code and the image processor, then the record and the card; for the run's folder pictures too.

        Weights and configuration are written first. What fails after that (a picture, the card, a push) is a warning that
        says how to make it again.
        """
        self.write_weights(model, folder, weights)
        first = self.args.process_index == 0
        if folder == self.publisher.run_dir and first:
            self.pictures.draw(model, step)
        self.write_card(folder)
        if self.args.push_to_hub and first:
            attempt("the push to the Hub", self.publisher.publish, "`geossl publish` sends the folder", "Model save")

    def push_step(self, model: TeacherStudentModel, checkpoint: Path, step: int) -> None:
        """Exports the model as it is now and publishes it beside the training, where `hub_strategy` says so."""
        folder = self.publisher.step_folder(step)
        if folder is not None and not attempt(
            f"the push of step {step}", self._push_step, "the run goes on", model, folder, checkpoint, step
        ):
            shutil.rmtree(folder, ignore_errors=True)

    def _push_step(self, model: TeacherStudentModel, folder: Path, checkpoint: Path, step: int) -> None:
        # the other processes are not here, so a divided model is read from its checkpoint
        self.write_weights(read_unsharded(model, checkpoint) if is_sharded(model) else model, folder)
        self.write_card(folder)
        self.publisher.push_step(folder, checkpoint, step)

    def write_weights(self, model: TeacherStudentModel, folder: Path, weights: str | None = None) -> None:
        """Writes the trunk (the teacher's by default, where there is one), its code and the image processor."""
        chosen = weights or ("student" if model.teacher is None else "teacher")
        export_model(model, folder, weights=chosen, image_processor=self.image_processor)
        self.weights = chosen

    def write_card(self, folder: Path) -> None:
        """Writes the record of the run and the model card of a folder with weights; what fails is a warning."""
        attempt(
            "the record of the run",
            self._write_record,
            "the model works without it; resume the finished run to write it again",
            folder,
        )
        attempt("the model card", write_card, f"`geossl card {folder.name}` makes it again", folder)

    def write_arguments(self, folder: Path) -> None:
        """Writes the training arguments that others may read, where this process saves; never a pickle."""
        if self.args.should_save:
            write_arguments(shared_arguments(self.args), folder)

    def _write_record(self, folder: Path) -> None:
        write_record({"weights": self.weights, **self.describe()}, folder)
        write_arguments(shared_arguments(self.args), folder)
