"""What a run leaves behind: the trunk first, then its record, its pictures and its card."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import BaseImageProcessor

from hf_geossl.hub.card import write_card
from hf_geossl.hub.export import export_model
from hf_geossl.hub.run_record import shared_arguments, write_arguments, write_record
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.outputs.attempts import attempt
from hf_geossl.training.outputs.publisher import HubPublisher
from hf_geossl.training.pictures.base import PictureBook
from hf_geossl.training.sharding import is_sharded, read_unsharded


class Exporter:
    """Writes folders that `AutoModel` opens.

    Args:
        args (`TeacherStudentTrainingArguments`): The training arguments.
        image_processor (`BaseImageProcessor`): Saved beside the weights.
        pictures (`PictureBook`): Of the run.
        publisher (`HubPublisher`): Sends what is exported.
        describe (`Callable`): What is known of the run, in plain values.
    """

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

        Args:
            model, folder, weights: As in `write_weights`.
            step (`int`): The optimizer step of the weights.
        """
        self.write_weights(model, folder, weights)
        first = self.args.process_index == 0
        if folder == self.publisher.run_dir and first:
            self.pictures.draw(model, step)
        self.write_card(folder)
        if self.args.push_to_hub and first:
            attempt("the push to the Hub", self.publisher.publish, "`geossl publish` sends the folder", "Model save")

    def push_step(self, model: TeacherStudentModel, checkpoint: Path, step: int) -> None:
        """Exports the model as it is now and publishes it beside the training, where `hub_strategy` says so.

        Args:
            model (`TeacherStudentModel`): The model, without a wrapper.
            checkpoint (`Path`): The checkpoint of the step.
            step (`int`): The step.
        """
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
        """Writes the trunk, its code and the image processor.

        Args:
            model (`TeacherStudentModel`): The model, whole.
            folder (`Path`): The folder.
            weights (`"teacher"` or `"student"`, *optional*): Whose trunk; the teacher's by default, where there is one.

        Raises:
            ValueError: For other `weights`, or a teacher that the method does not have.
        """
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
