"""What all pictures of a run have in common, and the picture of patch features before and after training."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hf_geossl.data.evaluation_batches import FirstImages, samples_for
from hf_geossl.data.streams import ImageStream
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.outputs.attempts import attempt
from hf_geossl.training.pictures.colors import FeatureColors, turned_towards
from hf_geossl.views.base import Views
from hf_geossl.views.display import to_display
from hf_geossl.views.photometric import normalize_

PARTS = ".features"
Batch = dict[str, torch.Tensor]


class RunPicture(ABC):
    """A picture that a run ends with. Its parts are files, so that a resumed run can draw it."""

    file: ClassVar[str]  # in the folder of the run

    def __init__(self, views: Views, run_dir: Path) -> None:
        self.views, self.run_dir = views, run_dir

    @property
    def parts(self) -> Path:
        """The folder of the parts of all pictures."""
        return self.run_dir / PARTS

    @abstractmethod
    def store(self, batch: Batch, model: TeacherStudentModel, held_out: ImageStream | FirstImages | None) -> None:
        """Stores crops of the run's first batch, or of held-out images, before anything is learned."""

    @abstractmethod
    def draw(self, model: TeacherStudentModel, step: int) -> Image.Image | None:
        """Draws the picture from its parts; None where there are none."""


class CropsPicture(RunPicture):
    """A picture of some crops, of held-out images where there are any."""

    name: ClassVar[str]  # of the file with the crops
    images: ClassVar[int]  # how many are taken

    def store(self, batch: Batch, model: TeacherStudentModel, held_out: ImageStream | FirstImages | None) -> None:
        """See `RunPicture.store`."""
        if held_out is not None:
            samples = islice(samples_for(self.views, held_out), self.images)
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
    """The pictures of a run, stored by its first process; one that fails costs itself."""

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


IMAGES, SIDE, GAP = 6, 168, 6


@torch.no_grad()
def patch_features(trunk: PreTrainedModel, crops: torch.Tensor, views: Views) -> torch.Tensor:
    """A trunk's patch features on some crops at twice their size, `(images, rows, columns, channels)`, float32 on the CPU.

    `crops` are those of `views.main_crops`.
    """
    parameter = next(trunk.parameters())
    pixels = crops.to(parameter.device).float()
    pixels = normalize_(pixels if views.in_units else pixels / 255, views.mean, views.std)
    pixels = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bilinear", align_corners=False)
    training = trunk.training
    tokens = trunk.eval()(pixels.to(parameter.dtype)).last_hidden_state
    trunk.train(training)
    rows = pixels.shape[-1] // trunk.config.patch_size
    return tokens[:, -rows * rows :].unflatten(1, (rows, rows)).float().cpu().contiguous()


class FeaturePicture(RunPicture):
    """Some crops, and their patch features before and after training in the same colours.

    The colours are the principal components of the features after training. Those before are turned towards them, which
    shows as much of the same in them as there is; see `turned_towards`.
    """

    file: ClassVar[str] = "features.png"

    def store(self, batch: Batch, model: TeacherStudentModel, held_out: ImageStream | FirstImages | None) -> None:
        """Stores some crops of the run's first batch and what the untrained teacher sees in them."""
        self.parts.mkdir(parents=True, exist_ok=True)
        crops = self.views.main_crops(batch)[:IMAGES].cpu().contiguous()
        before = patch_features(_trunk(model), crops, self.views)
        save_file({"crops": crops, "before": before}, self.parts / "input.safetensors")

    def draw(self, model: TeacherStudentModel, step: int) -> Image.Image | None:
        """Puts inputs, features before and features after under one another."""
        path = self.parts / "input.safetensors"
        if not path.is_file():
            return None
        stored = load_file(path)
        shown = to_display(stored["crops"], self.views.image_format).permute(0, 2, 3, 1).contiguous()
        after = patch_features(_trunk(model), stored["crops"], self.views)
        colors = FeatureColors.fit(after)
        before = turned_towards(stored["before"], after)
        painted = [(colors.paint(features) * 255).round().byte() for features in (before, after)]
        sampling = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BILINEAR
        titles = ("images", "features before training, in the colours of those after", f"features after {step} steps")
        width, head = SIDE + GAP, 30
        sheet = Image.new("RGB", (width * len(shown) + GAP, (width + head) * 3 + GAP), "white")
        draw = ImageDraw.Draw(sheet)
        for row, (title, pictures, method) in enumerate(zip(titles, (shown, *painted), sampling, strict=True)):
            top = GAP + row * (width + head)
            draw.text((GAP, top + 5), title, fill="black", font=ImageFont.load_default(17))
            for column, picture in enumerate(pictures):
                large = Image.fromarray(picture.numpy()).resize((SIDE, SIDE), method)
                sheet.paste(large, (GAP + column * width, top + head))
        return sheet


def _trunk(model: TeacherStudentModel) -> PreTrainedModel:
    return getattr(model if model.teacher is None else model.teacher, model.base_model_prefix)
