"""What all pictures of a run have in common: crops stored at the first step, drawn when the model is saved."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from hf_geossl.data.evaluation_batches import FirstImages
from hf_geossl.data.streams import ImageStream
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.outputs.attempts import attempt
from hf_geossl.views.base import Views

PARTS = ".features"
Batch = dict[str, torch.Tensor]


class RunPicture(ABC):
    """A picture that a run ends with. Its parts are files, so that a resumed run can draw it.

    Args:
        views (`Views`): The run's.
        run_dir (`Path`): The folder of the run.
    """

    file: ClassVar[str]  # in the folder of the run

    def __init__(self, views: Views, run_dir: Path) -> None:
        self.views, self.run_dir = views, run_dir

    @property
    def parts(self) -> Path:
        """The folder of the parts of all pictures."""
        return self.run_dir / PARTS

    @abstractmethod
    def store(self, batch: Batch, model: TeacherStudentModel, held_out: ImageStream | FirstImages | None) -> None:
        """Stores crops of the run's first batch, or of held-out images, before anything is learned.

        Args:
            batch (`dict[str, torch.Tensor]`): What `Views.collate` returned.
            model (`TeacherStudentModel`): The model, whole.
            held_out (`ImageStream` or `FirstImages`, *optional*): Images to measure on.
        """

    @abstractmethod
    def draw(self, model: TeacherStudentModel, step: int) -> Image.Image | None:
        """Draws the picture from its parts.

        Args:
            model (`TeacherStudentModel`): The trained model, whole.
            step (`int`): The optimizer step of its weights.

        Returns:
            `PIL.Image.Image` or `None`: None where there are no parts.
        """


class CropsPicture(RunPicture):
    """A picture of some crops, of held-out images where there are any."""

    name: ClassVar[str]  # of the file with the crops
    images: ClassVar[int]  # how many are taken

    def store(self, batch: Batch, model: TeacherStudentModel, held_out: ImageStream | FirstImages | None) -> None:
        """See `RunPicture.store`."""
        if held_out is not None:
            samples = islice(held_out.one_epoch(), self.images)
            batch = self.views.collate([self.views(sample["image"], seed=sample["seed"]) for sample in samples])
        crops = {
            name: value[: self.images].cpu().clone(memory_format=torch.contiguous_format)
            for name, value in batch.items()
            if isinstance(value, torch.Tensor)
        }
        self.parts.mkdir(parents=True, exist_ok=True)
        metadata = {"images": "training" if held_out is None else "held-out"}
        save_file(crops, self.parts / f"{self.name}.safetensors", metadata=metadata)

    def read(self) -> tuple[Batch, str] | None:
        """The stored crops, and of what images they are ("held-out" or "training"); None where there are none."""
        path = self.parts / f"{self.name}.safetensors"
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["images"]  # noqa: SIM118


class PictureBook:
    """The pictures of a run; one that fails costs itself.

    Args:
        pictures (`Sequence[RunPicture]`): The pictures.
        first_process (`bool`): Whether this process is the one that stores them.
    """

    def __init__(self, pictures: Sequence[RunPicture], first_process: bool = True) -> None:
        self.pictures, self.first_process = pictures, first_process

    def __len__(self) -> int:
        return len(self.pictures)

    def store(
        self, batch: Batch, model: TeacherStudentModel | None, held_out: ImageStream | FirstImages | None
    ) -> None:
        """Stores the parts of all pictures, on processes with a model; see `RunPicture.store`."""
        for picture in self.pictures:
            attempt(
                f"{picture.file} for the start", picture.store, "the run goes on without it", batch, model, held_out
            )

    def draw(self, model: TeacherStudentModel, step: int) -> None:
        """Draws all pictures into the folder of the run; see `RunPicture.draw`."""
        for picture in self.pictures:
            attempt(
                picture.file,
                _draw,
                "the model is saved without it; resume the finished run to draw it again",
                picture,
                model,
                step,
            )


def _draw(picture: RunPicture, model: TeacherStudentModel, step: int) -> None:
    drawn = picture.draw(model, step)
    if drawn is not None:
        save_picture(drawn, picture.run_dir / picture.file)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG whole or not at all."""
    picture.save(path.with_suffix(".tmp"), format="PNG")
    os.replace(path.with_suffix(".tmp"), path)
