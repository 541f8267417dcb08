"""Which way up a model takes crops to be, for people: turned crops, and the same set upright by its predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from PIL import Image, ImageDraw, ImageFont

from hf_geossl.modeling.pretraining_gtsa import GTSAForPreTraining
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.pictures.base import CropsPicture
from hf_geossl.views.crops import quarter_turn
from hf_geossl.views.display import to_display
from hf_geossl.views.gtsa import GTSAViews

IMAGES, COLUMNS, PANEL, SPACE, LINE, FRAME = 16, 8, 128, 8, 22, 4
RIGHT, WRONG = (0, 121, 107), (198, 40, 40)


@dataclass
class TurnedCrops:
    """Crops and what a model says of them.

    Args:
        crops (`torch.Tensor` of shape `(images, 3, side, side)`): uint8, as the model sees them.
        true, predicted (`torch.Tensor` of shape `(images,)`): Counter-clockwise quarter turns made, 0..3.
    """

    crops: torch.Tensor
    true: torch.Tensor
    predicted: torch.Tensor

    @property
    def right(self) -> torch.Tensor:
        """Whose turn is predicted right, `(images,)`."""
        return self.true == self.predicted

    def set_upright(self) -> torch.Tensor:
        """The crops turned back by the predictions."""
        return quarter_turn(self.crops, -self.predicted % 4)


@torch.no_grad()
def predict_turns(model: GTSAForPreTraining, views: GTSAViews, batch: dict[str, torch.Tensor]) -> TurnedCrops:
    """Lets the student tell the turn of the first global view of each image. Colours are left as they are."""
    device = next(model.parameters()).device
    inputs: dict[str, Any] = views.normalize({name: value.to(device) for name, value in batch.items()})
    training = model.training
    features = model.eval().gtsa(inputs["global_pixel_values"][:, 0]).pooler_output
    predicted = model.rotation_head(features).argmax(dim=-1).cpu()
    model.train(training)
    true = batch["quarter_turns"][:, 0].cpu()
    shown = to_display(views.main_crops(batch), views.image_format).cpu()
    return TurnedCrops(quarter_turn(shown, true), true, predicted)


def draw_turns(turns: TurnedCrops, title: str) -> Image.Image:
    """Draws the crops as the model sees them, and under each the same turned back by its prediction, framed."""
    large, small = ImageFont.load_default(17), ImageFont.load_default(14)
    count, right = len(turns.true), turns.right
    columns, block = min(COLUMNS, count), 2 * PANEL + LINE + 2 * SPACE
    blocks = -(-count // COLUMNS)
    head = 3 * LINE + SPACE
    sheet = Image.new(
        "RGB", (max(columns * (PANEL + SPACE) + SPACE, 640), head + blocks * (block + SPACE) + LINE), "white"
    )
    draw = ImageDraw.Draw(sheet)
    share = f"{int(right.sum())} of {count} right ({100 * right.float().mean():.0f} %); guessing: 25 %"
    draw.text((SPACE, SPACE), title, fill="black", font=large)
    draw.text((SPACE, SPACE + LINE), share, fill="black", font=large)
    legend = "Above: as the model sees it. Below: turned back by as much as the model says it is turned."
    draw.text((SPACE, SPACE + 2 * LINE), legend, fill="black", font=small)
    for index, (seen, upright) in enumerate(zip(turns.crops, turns.set_upright(), strict=True)):
        x = SPACE + index % COLUMNS * (PANEL + SPACE)
        y = head + index // COLUMNS * (block + SPACE)
        for row, crop in enumerate((seen, upright)):
            panel = Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(panel.resize((PANEL, PANEL), Image.Resampling.BICUBIC), (x, y + row * (PANEL + SPACE)))
        top, good = y + PANEL + SPACE, bool(right[index])
        color = RIGHT if good else WRONG
        draw.rectangle((x, top, x + PANEL - 1, top + PANEL - 1), outline=color, width=FRAME)
        draw.text((x, top + PANEL + 1), "right" if good else "wrong", fill=color, font=small)
    return sheet


def turn_picture(
    model: GTSAForPreTraining, views: GTSAViews, images: Sequence[Image.Image | torch.Tensor], seed: int = 0
) -> Image.Image:
    """Shows which quarter turns a GTSA model tells.

    Args:
        model (`GTSAForPreTraining`): The model.
        views (`GTSAViews`): Makes the crops and turns them; colours are left as they are.
        images (`Sequence`): Images as `GTSAViews` takes them, at least one.
        seed (`int`): Of crops and turns.

    Returns:
        `PIL.Image.Image`: Crops as the model sees them, and the same turned back by its prediction.
    """
    batch = views.collate([views(image, seed=seed + index) for index, image in enumerate(images)])
    return draw_turns(predict_turns(model, views, batch), "Which way is up?")


class TurnPicture(CropsPicture):
    """Crops set upright by the predicted turns; nothing where no turn is learned."""

    file: ClassVar[str] = "turns.png"
    name: ClassVar[str] = "turns"
    images: ClassVar[int] = IMAGES

    views: GTSAViews

    def draw(self, model: TeacherStudentModel, step: int) -> Image.Image | None:
        """Draws the picture from the stored crops."""
        stored = self.read()
        if stored is None or not model.config.rotation_weight:
            return None
        batch, images = stored
        turns = predict_turns(cast(GTSAForPreTraining, model), self.views, batch)
        return draw_turns(turns, f"Which way is up? After {step} steps, {images} images")
