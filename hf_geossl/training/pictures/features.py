"""What the patch features of some images look like, before and after training."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_geossl.hub.export import PICTURE

if TYPE_CHECKING:
    from hf_geossl.training.trainer import TeacherStudentTrainer

IMAGES, SIDE, GAP = 6, 168, 6
PARTS = ".features"


def principal_components(tokens: torch.Tensor) -> torch.Tensor:
    """Colours patch tokens by their first three principal components, over all images together.

    Args:
        tokens (`torch.Tensor` of shape `(images, rows, columns, channels)`): Patch features, at least 3 channels.

    Returns:
        `torch.Tensor` of shape `(images, rows, columns, 3)`: In [0, 1]; each component from its 2nd to its 98th
        percentile. The sign of a component is arbitrary and fixed so that most of its weights are positive.
    """
    flat = tokens.double().flatten(0, 2)
    flat = flat - flat.mean(dim=0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    vectors = vectors[:, -3:].flip(-1)
    vectors = vectors * torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)
    components = flat @ vectors
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    colours = ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return colours.view(*tokens.shape[:3], 3).float()


@torch.no_grad()
def feature_row(trunk: Any, crops: torch.Tensor, mean: Any, std: Any) -> list[Image.Image]:
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


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG whole or not at all."""
    picture.save(path.with_suffix(".tmp"), format="PNG")
    os.replace(path.with_suffix(".tmp"), path)


class PictureCallback(TrainerCallback):
    """Draws inputs and features at the first step, and features again at the end, as `features.png` in the run."""

    def __init__(self, trainer: "TeacherStudentTrainer") -> None:
        self.trainer = trainer

    @staticmethod
    def _trunk(model: Any) -> Any:
        return getattr(model if model.teacher is None else model.teacher, model.base_model_prefix)

    def keep(self, batch: dict[str, torch.Tensor]) -> None:
        """Keeps some crops of the run's first batch and what the untrained teacher sees in them."""
        model = self.trainer.whole_model()  # of all processes
        if not self.trainer.is_world_process_zero():
            return
        folder = self.trainer.run_dir / PARTS
        folder.mkdir(parents=True, exist_ok=True)
        crops = self.trainer.views.main_crops(batch)[:IMAGES].cpu()
        before = feature_row(self._trunk(model), crops, self.trainer.views.mean, self.trainer.views.std)
        for index, (crop, features) in enumerate(zip(crops, before, strict=True)):
            Image.fromarray(crop.permute(1, 2, 0).numpy()).save(folder / f"input_{index}.png")
            features.save(folder / f"before_{index}.png")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts inputs, features before and features after under one another."""
        model = self.trainer.whole_model()  # of all processes
        folder = self.trainer.run_dir / PARTS
        inputs = [Image.open(path).convert("RGB") for path in sorted(folder.glob("input_*.png"))]
        before = [Image.open(path).convert("RGB") for path in sorted(folder.glob("before_*.png"))]
        if not inputs or not state.is_world_process_zero:
            return
        crops = torch.stack(
            [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(*p.size[::-1], 3) for p in inputs]
        )
        views = self.trainer.views
        after = feature_row(self._trunk(model), crops.permute(0, 3, 1, 2), views.mean, views.std)
        shown = [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in inputs]
        titles = ("input", "features before training", f"features after {state.global_step} steps")
        step, head = SIDE + GAP, 20
        sheet = Image.new("RGB", (step * len(inputs) + GAP, (step + head) * 3 + GAP), "white")
        draw = ImageDraw.Draw(sheet)
        for row, (title, pictures) in enumerate(zip(titles, (shown, before, after), strict=True)):
            top = GAP + row * (step + head)
            draw.text((GAP, top + 3), title, fill="black")
            for column, picture in enumerate(pictures):
                sheet.paste(picture, (GAP + column * step, top + head))
        save_picture(sheet, self.trainer.run_dir / PICTURE)
