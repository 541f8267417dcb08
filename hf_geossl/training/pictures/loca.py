"""Where a model places the patches of a query in its reference, for people (figure 5 of the LOCA paper)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hf_geossl.modeling.pretraining_loca import LOCAForPreTraining
from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.pictures.base import CropsPicture
from hf_geossl.training.pictures.colors import color_code
from hf_geossl.views.display import to_display
from hf_geossl.views.loca import LOCAViews

ROWS, PANEL, SPACE, LINE = 6, 252, 10, 24
_TITLES = ("reference, query outlined", "query, its patches coloured", "true positions", "predicted positions")


@dataclass
class PositionRow:
    """One image of the picture.

    Args:
        reference, query (`torch.Tensor` of shape `(3, side, side)`): uint8 crops.
        outline (`tuple[float, float, float, float]` or `None`): The query's box over the reference, x1, y1, x2, y2 as
            shares of the reference's sides.
        mirrored (`bool`): Whether the query is, against the reference.
        true, predicted (`list[int]`): Raster index in the reference of each patch of the query, -1 outside.
        grid (`int`): Patches along a side of the reference.
    """

    reference: torch.Tensor
    query: torch.Tensor
    outline: tuple[float, float, float, float] | None
    mirrored: bool
    true: list[int]
    predicted: list[int]
    grid: int

    @property
    def inside(self) -> int:
        """How many patches lie in the reference."""
        return sum(position >= 0 for position in self.true)

    @property
    def right(self) -> int:
        """How many of these are placed exactly."""
        return sum(true == place for true, place in zip(self.true, self.predicted, strict=True) if true >= 0)


@torch.no_grad()
def find_positions(model: LOCAForPreTraining, views: LOCAViews, batch: dict[str, torch.Tensor]) -> list[PositionRow]:
    """Finds the query of each image that covers most of the reference, and lets the model place its patches.

    Colours are left as they are. Of focal queries where there are any, otherwise the random ones; with
    `location_target="self"` the reference is its own query.
    """
    device = next(model.parameters()).device
    inputs: dict[str, Any] = views.normalize({name: value.to(device) for name, value in batch.items()})
    references, queries = inputs["reference_pixel_values"], inputs["focal_query_pixel_values"]
    positions, crops, first = inputs["focal_query_positions"], batch["focal_query_crops"], 2
    grid = views.reference_size // views.patch_size
    if model.config.location_target == "self":
        queries, crops, first = references[:, None], batch["reference_crop"][:, None], 0
        positions = torch.arange(grid * grid).expand(len(references), 1, -1)
    elif queries is None or not queries.shape[1]:
        queries, positions = inputs["random_query_pixel_values"][:, None], inputs["random_query_positions"][:, None]
        crops, first = batch["random_query_crop"][:, None], 1
    covered = [[len(set(query) - {-1}) for query in image] for image in positions.tolist()]
    chosen = [counts.index(max(counts)) for counts in covered]
    images = torch.arange(len(chosen))
    training = model.training
    predicted = model.eval().predict_positions(references, queries[images, chosen]).argmax(dim=-1).tolist()
    model.train(training)
    rows = []
    for image, query in enumerate(chosen):
        boxes, flips = batch["crop_boxes"][image].tolist(), batch["flips"][image].tolist()
        outline = _outline(boxes[0], boxes[first + query], flips[0]) if first else None
        mirrored = flips[0] != flips[first + query]
        true = positions[image, query].tolist()
        reference, seen = (
            to_display(crop[image], views.image_format) for crop in (batch["reference_crop"], crops[:, query])
        )
        rows.append(PositionRow(reference, seen, outline, mirrored, true, predicted[image], grid))
    return rows


def _outline(reference: Sequence[float], query: Sequence[float], flipped: bool) -> tuple[float, float, float, float]:
    """The query's box over the reference as it is seen, in shares of its sides."""
    width, height = reference[2] - reference[0], reference[3] - reference[1]
    x1, x2 = ((x - reference[0]) / width for x in (query[0], query[2]))
    y1, y2 = ((y - reference[1]) / height for y in (query[1], query[3]))
    return (1 - x2, y1, 1 - x1, y2) if flipped else (x1, y1, x2, y2)


def _picture_of(crop: torch.Tensor, brightness: float = 1.0) -> Image.Image:
    picture = Image.fromarray((crop.permute(1, 2, 0).float() * brightness).byte().cpu().numpy())
    return picture.resize((PANEL, PANEL), Image.Resampling.BICUBIC)


def _cell(index: int, side: int) -> tuple[float, float, float, float]:
    row, column = divmod(index, side)
    return tuple(value * PANEL / side for value in (column, row, column + 1, row + 1))  # type: ignore[return-value]


def _paint(panel: Image.Image, box: Sequence[float], color: tuple[int, ...], opacity: float) -> None:
    x1, y1, x2, y2 = (round(value) for value in box)
    area = panel.crop((x1, y1, x2, y2))
    panel.paste(Image.blend(area, Image.new("RGB", area.size, color), opacity), (x1, y1))


def _query_panel(row: PositionRow, colors: list[tuple[int, ...]]) -> Image.Image:
    panel = _picture_of(row.query)
    draw = ImageDraw.Draw(panel)
    side = math.isqrt(len(row.true))
    for patch, position in enumerate(row.true):
        box = _cell(patch, side)
        if position >= 0:
            _paint(panel, box, colors[patch], 0.55)
        else:
            _paint(panel, box, (110, 110, 110), 0.6)
            draw.line(box, fill="black", width=2)
            draw.line((box[0], box[3], box[2], box[1]), fill="black", width=2)
    return panel


def _positions_panel(row: PositionRow, places: list[int], colors: list[tuple[int, ...]]) -> Image.Image:
    """The reference with the patches of the query that lie in it, at `places`; patches in one cell share it."""
    panel = _picture_of(row.reference, brightness=0.4)
    draw = ImageDraw.Draw(panel)
    patches = [patch for patch, position in enumerate(row.true) if position >= 0]
    for cell in sorted({places[patch] for patch in patches}):
        sharing = [patch for patch in patches if places[patch] == cell]
        side = math.isqrt(len(sharing) - 1) + 1
        x, y, right, _ = _cell(cell, row.grid)
        size = (right - x) / side
        for index, patch in enumerate(sharing):
            line, column = divmod(index, side)
            box = (x + column * size, y + line * size, x + (column + 1) * size, y + (line + 1) * size)
            _paint(panel, box, colors[patch], 0.9)
            if places[patch] != row.true[patch]:
                draw.line(box, fill="black", width=2)
    for index in range(1, row.grid):
        at = round(index * PANEL / row.grid)
        draw.line((at, 0, at, PANEL), fill=(70, 70, 70))
        draw.line((0, at, PANEL, at), fill=(70, 70, 70))
    return panel


def draw_positions(rows: Sequence[PositionRow], title: str) -> Image.Image:
    """Draws for each image its reference, a query, and where the query's patches lie and are found."""
    large, small = ImageFont.load_default(17), ImageFont.load_default(14)
    step, head = PANEL + LINE + SPACE, 3 * LINE + SPACE
    sheet = Image.new("RGB", (4 * (PANEL + SPACE) + SPACE, head + step * len(rows) + 2 * LINE), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((SPACE, SPACE), title, fill="black", font=large)
    for column, text in enumerate(_TITLES):
        draw.text((SPACE + column * (PANEL + SPACE), SPACE + 2 * LINE - 6), text, fill="black", font=large)
    for index, row in enumerate(rows):
        top = head + index * step
        side = math.isqrt(len(row.true))
        colors = [tuple(color) for color in color_code(side).flatten(0, 1).tolist()]
        reference = _picture_of(row.reference)
        if row.outline is not None:
            outline = [value * PANEL for value in row.outline]
            ImageDraw.Draw(reference).rectangle(outline, outline="black", width=5)
            ImageDraw.Draw(reference).rectangle([outline[0] + 1, outline[1] + 1, outline[2] - 1, outline[3] - 1],
                                                outline="white", width=3)  # fmt: skip
        panels = (
            reference,
            _query_panel(row, colors),
            _positions_panel(row, row.true, colors),
            _positions_panel(row, row.predicted, colors),
        )
        for column, panel in enumerate(panels):
            sheet.paste(panel, (SPACE + column * (PANEL + SPACE), top))
        if row.mirrored:
            draw.text(
                (SPACE + PANEL + SPACE, top + PANEL + 3), "mirrored, as the model sees it", fill="black", font=small
            )
        share = f" ({100 * row.right / row.inside:.0f} %)" if row.inside else ""
        outside = len(row.true) - row.inside
        text = f"{row.right} of {row.inside} patches right{share}" + (f", {outside} outside" if outside else "")
        draw.text((SPACE + 3 * (PANEL + SPACE), top + PANEL + 3), text, fill="black", font=small)
    inside, right = sum(row.inside for row in rows), sum(row.right for row in rows)
    end = head + step * len(rows)
    percent, chance = 100 * right / max(inside, 1), 100 / rows[0].grid ** 2
    measured = f"All rows: {right} of {inside} patches right ({percent:.0f} %); by chance {chance:.1f} %."
    legend = "A patch keeps its colour in all panels. Crossed grey: it lies outside the reference. Struck out: found in a wrong place."
    draw.text((SPACE, end), measured, fill="black", font=large)
    draw.text((SPACE, end + LINE), legend, fill="black", font=small)
    return sheet


def position_picture(
    model: LOCAForPreTraining,
    views: LOCAViews,
    images: Sequence[Image.Image | np.ndarray | torch.Tensor],
    seed: int = 0,
) -> Image.Image:
    """Shows where a LOCA model finds the patches of a query in its reference, all of whose patches it sees.

    Args:
        model (`LOCAForPreTraining`): The model.
        views (`LOCAViews`): Makes reference and queries; colours are left as they are.
        images (`Sequence`): Images as `LOCAViews` takes them, at least one.
        seed (`int`): Of the crops.

    Returns:
        `PIL.Image.Image`: A row an image: the reference with the query's outline, the query with its patches in a
        colour code, and the reference with each patch at its true and at its predicted place.
    """
    batch = views.collate([views(image, seed=seed + index) for index, image in enumerate(images)])
    return draw_positions(find_positions(model, views, batch), "Where the patches of a query are found")


class PositionPicture(CropsPicture):
    """Where the patches of queries are found in their references."""

    file: ClassVar[str] = "positions.png"
    name: ClassVar[str] = "positions"
    images: ClassVar[int] = ROWS

    views: LOCAViews

    def draw(self, model: TeacherStudentModel, step: int) -> Image.Image | None:
        """Draws the picture from the stored crops."""
        stored = self.read()
        if stored is None:
            return None
        batch, images = stored
        title = f"Where the patches of a query are found, after {step} steps ({images} images)"
        return draw_positions(find_positions(cast(LOCAForPreTraining, model), self.views, batch), title)
