"""The tab of LOCA's head: a box that is dragged, and where its patches are placed."""

from collections.abc import Sequence
from functools import partial

import gradio as gr
from PIL import Image, ImageDraw, ImageEnhance

from hf_geossl.demo import tabs_reconstruction
from hf_geossl.demo.channel_picture import Picture
from hf_geossl.demo.heads_loca import Placement, place_box, why_not_shown
from hf_geossl.demo.loading import DemoModel
from hf_geossl.demo.markup import Figure, figures, said
from hf_geossl.demo.pictures import cell_box
from hf_geossl.demo.tabs import Chosen, Tab, TabMaker, picture_area, plain_area
from hf_geossl.training.pictures.colors import color_code

_START = (0.15, 0.3, 0.6, 0.75)  # the box before one is drawn
_WHITE, _BLUE, _YELLOW = (255, 255, 255), (0, 200, 255), (255, 220, 0)


def head_tabs(model: DemoModel, samples: Sequence[Picture]) -> list[TabMaker]:
    """The tabs of a model with heads: boxes where they can be placed, and reconstructions where it has decoders."""
    own: list[TabMaker] = [] if why_not_shown(model) else [("Drag a box", partial(box_tab, model))]
    return [*own, *tabs_reconstruction.head_tabs(model, samples)]


def box_tab(model: DemoModel) -> Tab:
    """Where LOCA puts the patches of a box that is drawn on picture A."""
    gr.Markdown(
        "**Drag a box on picture A** (or move it with the arrow keys, and size it with Shift). The model sees what is inside and the whole picture, but not where the box was, and "
        "says of each square of the box where in the picture it lies. A square keeps its colour."
    )
    box = gr.State(_START)
    area, text = picture_area(), plain_area()

    def show(chosen: Chosen, box: tuple[float, float, float, float]) -> list[str]:
        picture = chosen.displayed(chosen.first)
        placed = place_box(model, chosen.first, box)
        drawn = picture.copy()
        _outline(drawn, placed.box, _BLUE)
        query = picture.crop(placed.box).resize(picture.size, Image.Resampling.BICUBIC)
        predicted = _painted(picture, placed, placed.predicted)
        _outline(predicted, placed.box, _WHITE)
        cell = picture.width / placed.grid
        _outline(predicted, tuple(round(edge * cell) for edge in placed.predicted_box), _YELLOW)
        chance = 100 / placed.grid**2
        return [
            figures(
                Figure(
                    drawn, "Picture A: drag a box", "box", _shares(placed.box, drawn.size), (placed.grid, placed.grid)
                ),
                Figure(_colored(query, placed.side), "What is inside, its squares coloured"),
                Figure(_painted(picture, placed, placed.true), "Where they are"),
                Figure(predicted, "Where the model puts them; white: the true box, yellow: the predicted one"),
                columns=2,
            ),
            said(
                f"{round(placed.exact * len(placed.true))} of {len(placed.true)} patches are put exactly where they are "
                f"({100 * placed.exact:.0f}%; guessing: {chance:.1f}%), and they lie {placed.distance:.1f} patches off "
                f"on average (guessing: {placed.guessed_distance:.1f}). A place that looks the same elsewhere in the picture, such as sky, can be put there as well."
            ),
        ]

    return Tab("Drag a box", show, [area, text], [box], boxed=area, box=box)


def _shares(box: tuple[int, ...], size: tuple[int, int]) -> tuple[float, ...]:
    """A box of pixels in shares of a picture's width and height."""
    return tuple(edge / size[index % 2] for index, edge in enumerate(box))


def _outline(picture: Image.Image, box: tuple[int, ...], color: tuple[int, int, int]) -> None:
    """Outlines a box, x2 and y2 exclusive, in a colour between black lines."""
    draw = ImageDraw.Draw(picture)
    x1, y1, x2, y2 = box[0], box[1], box[2] - 1, box[3] - 1
    draw.rectangle((x1, y1, x2, y2), outline=(0, 0, 0), width=6)
    draw.rectangle((x1 + 1, y1 + 1, x2 - 1, y2 - 1), outline=color, width=4)


def _colored(query: Image.Image, side: int) -> Image.Image:
    """A query under the colours of its patches."""
    code = Image.fromarray(color_code(side).numpy()).resize(query.size, Image.Resampling.NEAREST)
    return Image.blend(query, code, 0.55)


def _painted(picture: Image.Image, placed: Placement, places: list[int]) -> Image.Image:
    """A dim picture with the query's patches at `places`; those in one cell share it, a cross marks the wrong ones."""
    panel = ImageEnhance.Brightness(picture).enhance(0.4)
    draw = ImageDraw.Draw(panel)
    colors = [tuple(color) for color in color_code(placed.side).flatten(0, 1).tolist()]
    for cell in sorted(set(places)):
        sharing = [patch for patch, place in enumerate(places) if place == cell]
        parts = next(side for side in range(1, len(sharing) + 1) if side * side >= len(sharing))
        left, top, right, bottom = cell_box(divmod(cell, placed.grid), (placed.grid, placed.grid), panel.size)
        width, height = (right + 1 - left) / parts, (bottom + 1 - top) / parts
        for index, patch in enumerate(sharing):
            row, column = divmod(index, parts)
            x, y = left + column * width, top + row * height
            part = (round(x), round(y), max(round(x), round(x + width) - 1), max(round(y), round(y + height) - 1))
            draw.rectangle(part, fill=colors[patch])
            if placed.true[patch] != cell:
                draw.line((part[0], part[1], part[2], part[3]), fill=(0, 0, 0), width=2)
                draw.line((part[0], part[3], part[2], part[1]), fill=(0, 0, 0), width=2)
    return panel
