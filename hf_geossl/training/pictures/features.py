"""Pictures of patch features, before and after training."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from PIL import Image, ImageDraw
from transformers import PreTrainedModel

from hf_geossl.data.evaluation_batches import FirstImages
from hf_geossl.data.streams import ImageStream
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.pictures.base import Batch, RunPicture
from hf_geossl.training.pictures.colors import principal_components

IMAGES, SIDE, GAP = 6, 168, 6


@torch.no_grad()
def feature_row(
    trunk: PreTrainedModel, crops: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> list[Image.Image]:
    """Principal components of a trunk's patch features on some crops, at twice their size.

    Args:
        trunk (`PreTrainedModel`): Gives `last_hidden_state`, patch tokens last.
        crops (`torch.Tensor` of shape `(images, 3, side, side)`): uint8.
        mean, std (three `float`): Normalisation of images in [0, 1].

    Returns:
        `list[PIL.Image.Image]`: One picture an image, `SIDE` pixels square.
    """
    parameter = next(trunk.parameters())
    pixels = crops.to(parameter.device).float() / 255
    pixels = (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
    pixels = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bilinear", align_corners=False)
    training = trunk.training
    tokens = trunk.eval()(pixels.to(parameter.dtype)).last_hidden_state
    trunk.train(training)
    rows = pixels.shape[-1] // trunk.config.patch_size
    colours = principal_components(tokens[:, -rows * rows :].unflatten(1, (rows, rows)).cpu())
    pictures = [Image.fromarray((colour * 255).round().byte().numpy()) for colour in colours]
    return [picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for picture in pictures]


class FeaturePicture(RunPicture):
    """Some crops, and the principal components of their patch features before and after training."""

    file: ClassVar[str] = "features.png"

    def store(self, batch: Batch, model: TeacherStudentModel, held_out: ImageStream | FirstImages | None) -> None:
        """Stores some crops of the run's first batch and what the untrained teacher sees in them."""
        self.parts.mkdir(parents=True, exist_ok=True)
        crops = self.views.main_crops(batch)[:IMAGES].cpu()
        before = feature_row(_trunk(model), crops, self.views.mean, self.views.std)
        for index, (crop, features) in enumerate(zip(crops, before, strict=True)):
            Image.fromarray(crop.permute(1, 2, 0).numpy()).save(self.parts / f"input_{index}.png")
            features.save(self.parts / f"before_{index}.png")

    def draw(self, model: TeacherStudentModel, step: int) -> Image.Image | None:
        """Puts inputs, features before and features after under one another."""
        inputs = [Image.open(path).convert("RGB") for path in sorted(self.parts.glob("input_*.png"))]
        before = [Image.open(path).convert("RGB") for path in sorted(self.parts.glob("before_*.png"))]
        if not inputs:
            return None
        crops = torch.stack(
            [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(*p.size[::-1], 3) for p in inputs]
        )
        after = feature_row(_trunk(model), crops.permute(0, 3, 1, 2), self.views.mean, self.views.std)
        large = [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in inputs]
        titles = ("input", "features before training", f"features after {step} steps")
        width, head = SIDE + GAP, 20
        sheet = Image.new("RGB", (width * len(inputs) + GAP, (width + head) * 3 + GAP), "white")
        draw = ImageDraw.Draw(sheet)
        for row, (title, pictures) in enumerate(zip(titles, (large, before, after), strict=True)):
            top = GAP + row * (width + head)
            draw.text((GAP, top + 3), title, fill="black")
            for column, picture in enumerate(pictures):
                sheet.paste(picture, (GAP + column * width, top + head))
        return sheet


def _trunk(model: TeacherStudentModel) -> PreTrainedModel:
    return getattr(model if model.teacher is None else model.teacher, model.base_model_prefix)
