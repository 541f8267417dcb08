"""Sends the pictures of a run to the trackers that show pictures: TensorBoard, trackio, wandb and MLflow."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from hf_geossl.methods import run_pictures
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.outputs.attempts import attempt
from hf_geossl.training.pictures.base import PictureBook
from hf_geossl.training.sharding import whole_model

Pictures = Mapping[str, Path]


def _send_to_tensorboard(callback: Any, pictures: Pictures, step: int) -> None:
    for name, file in pictures.items():
        callback.tb_writer.add_image(name, np.asarray(Image.open(file).convert("RGB")), step, dataformats="HWC")
    callback.tb_writer.flush()


def _send_to_trackio(callback: Any, pictures: Pictures, step: int) -> None:
    import trackio

    images = {name: trackio.Image(str(file)) for name, file in pictures.items()}
    trackio.log({**images, "train/global_step": step})


def _send_to_wandb(callback: Any, pictures: Pictures, step: int) -> None:
    import wandb

    images = {name: wandb.Image(str(file)) for name, file in pictures.items()}
    wandb.log({**images, "train/global_step": step})


def _send_to_mlflow(callback: Any, pictures: Pictures, step: int) -> None:
    import mlflow

    for file in pictures.values():
        mlflow.log_artifact(str(file))


# transformers' callback -> what sends pictures where it sends numbers
SENDERS: dict[str, Callable[[Any, Pictures, int], None]] = {
    "TensorBoardCallback": _send_to_tensorboard,
    "TrackioCallback": _send_to_trackio,
    "WandbCallback": _send_to_wandb,
    "MLflowCallback": _send_to_mlflow,
}


class TrackerPicturesCallback(TrainerCallback):
    """Sends learning curve and feature pictures to `report_to`'s trackers, while these are still open.

    Args:
        pictures (`PictureBook`): The pictures that the run ends with.
        run_dir (`Path`): The folder they lie in.
        handler (`CallbackHandler`): The trainer's, which has the trackers.
    """

    def __init__(self, pictures: PictureBook, run_dir: Path, handler: CallbackHandler) -> None:
        self.pictures, self.run_dir, self.handler = pictures, run_dir, handler

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Draws and sends them with the last line of a run."""
        trackers = [each for each in self.handler.callbacks if type(each).__name__ in SENDERS]
        if "train_runtime" not in (logs or {}) or not trackers or not len(self.pictures):
            return
        model = whole_model(cast(TeacherStudentModel, kwargs["model"]), args.should_save)  # of all processes
        if not state.is_world_process_zero:
            return
        self.pictures.draw(model, state.global_step)
        files = {name.removesuffix(".png"): self.run_dir / name for name in run_pictures()}
        found = {name: file for name, file in files.items() if file.is_file()}
        for tracker in trackers:
            name = type(tracker).__name__
            rest = "the pictures lie in the folder of the run"
            attempt(f"pictures for {name}", SENDERS[name], rest, tracker, found, state.global_step)
