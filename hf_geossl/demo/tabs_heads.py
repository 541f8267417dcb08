"""The tabs that take a pretraining model's heads: quarter turns, boxes, the way of a transformation."""

from functools import partial
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw, ImageEnhance

from hf_geossl.demo.heads import Placement, path_controls, path_of, path_point, place_box, turn_probabilities, turned
from hf_geossl.demo.loading import DemoModel
from hf_geossl.demo.markup import Figure, bars, figures, said
from hf_geossl.demo.pictures import cell_box, from_unit
from hf_geossl.demo.tabs import Chosen, Tab, picture_area, plain_area
from hf_geossl.training.pictures.loca import color_code

_TURNS = ("upright", "turned by 90°", "turned by 180°", "turned by 270°")
_START = (0.15, 0.3, 0.6, 0.75)  # the box before one is drawn
_WHITE, _BLUE, _YELLOW = (255, 255, 255), (0, 200, 255), (255, 220, 0)


def turn_tab(model: DemoModel) -> Tab:
    """The quarter turn that GTSA's head predicts."""
    gr.Markdown(
        "In training every view is turned by a random quarter, and a head predicts by which from the mean of the patch "
        "features. **Turn picture A** (counter-clockwise) and see what the head says. Where up and down look alike, as "
        "from above, nobody can know."
    )
    turns = gr.Radio(
        [(f"{90 * quarter}°", quarter) for quarter in range(4)], value=0, label="Turn counter-clockwise by"
    )
    area, text = plain_area(), plain_area()

    def show(chosen: Chosen, turns: int) -> list[Any]:
        quarter = int(turns) % 4
        probabilities = turn_probabilities(model, chosen.first, quarter)
        best = max(range(4), key=probabilities.__getitem__)
        verdict = "That is right" if best == quarter else f"That is wrong: it is {_TURNS[quarter]}"
        return [
            figures(Figure(turned(chosen.first, quarter), "What the model sees")),
            bars(_TURNS, probabilities, quarter)
            + said(f"The head says: {_TURNS[best]}, with {100 * probabilities[best]:.1f}%. {verdict}. Guessing: 25%."),
        ]

    return Tab("Quarter turn", show, [area, text], [turns])


def box_tab(model: DemoModel) -> Tab:
    """Where LOCA puts the patches of a box that is drawn on picture A."""
    gr.Markdown(
        "**Drag a box on picture A.** The model gets what is inside, scaled up or down and without being told from where, "
        "and the whole picture; for each patch of the box it says where in the picture it lies. Patches keep their colour."
    )
    box = gr.State(_START)
    area, text = picture_area(), plain_area()

    def show(chosen: Chosen, box: tuple[float, float, float, float]) -> list[Any]:
        picture = chosen.first
        placed = place_box(model, picture, box)
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
                Figure(drawn, "Picture A: drag a box", "box"),
                Figure(_colored(query, placed.side), "What is inside, its patches coloured"),
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


def path_tab(model: DemoModel, samples: list[Image.Image]) -> Tab:
    """A slider along the way of a transformation, the true image there and its reconstruction."""
    path = path_of(model)
    last = path.num_intermediate + 1
    decoders = len(model.whole.reconstruction.decoders)
    gr.Markdown(
        "Picture A (u) is transformed into view v2. The model sees v2 and v1, another crop of the picture, and its "
        f"decoders reconstruct {_reconstructed(path.num_intermediate, decoders)} **Choose the transformation and slide "
        "along the way.** The ranges are the paper's; a run may have trained in others."
    )
    with gr.Row():
        sliders = []
        for index, (_, _, name, low, high, _) in enumerate(path_controls(path)):
            start = high if index == 0 else low + 0.75 * (high - low)
            sliders.append(
                gr.Slider(
                    round(low, 2), round(high, 2), value=round(start, 2), step=0.01 if high < 5 else 0.1, label=name
                )
            )
    point = gr.Slider(0, last, value=min(1, last), step=1, label=f"Point on the way: 0 is u, {last} is v2")
    views, here, text = plain_area(), plain_area(), plain_area()

    def show(chosen: Chosen, point: int, *values: float) -> list[Any]:
        step = min(max(int(point), 0), last)
        found = path_point(model, chosen.first, samples, list(values), step)
        enlarged = partial(from_unit, size=chosen.first.size)
        true = Figure(enlarged(found.true), f"The true image {_where(step, last)}", rough=True)
        if found.reconstructed is None:
            shown, words = [true], "No decoder reconstructs this point: it is one of the two ends. Slide on."
        else:
            shown = [true, Figure(enlarged(found.reconstructed), "What the decoder makes of v1 and v2", rough=True)]
            words = (
                f"Mean squared error of the reconstruction: {found.error:.3f}. The mean of the sample pictures, "
                f"transformed alike, would have {found.mean_image_error:.3f}; a perfect reconstruction has 0. Decoders "
                "are small and trained on this error, which leaves edges blurred."
            )
        return [
            figures(
                Figure(enlarged(found.first), "v1: the middle of picture A", rough=True),
                Figure(enlarged(found.source), "u: picture A", rough=True),
                Figure(enlarged(found.final), "v2: picture A transformed", rough=True),
                narrow=3,
            ),
            figures(*shown),
            said(words),
        ]

    return Tab("Transformation path", show, [views, here, text], [point, *sliders])


def _reconstructed(between: int, decoders: int) -> str:
    parts = [] if not between else ["the image between" if between == 1 else f"the {between} images between"]
    parts += ["v2 itself"] if decoders > between else []
    return " and ".join(parts) + ", each by its own decoder."


def _where(point: int, last: int) -> str:
    return {0: "where the way begins (u)", last: "where it ends (v2)"}.get(point, f"at {point}/{last} of the way")


def head_tabs(model: DemoModel, samples: list[Image.Image]) -> list[Any]:
    """What makes the tabs of a model's heads.

    Args:
        model (`DemoModel`): The model.
        samples (`list[PIL.Image.Image]`): The sample pictures.

    Returns:
        `list[tuple[str, Callable[[], Tab]]]`: Titles and makers; empty for a trunk alone.
    """
    makers: list[Any] = []
    if model.whole is None:
        return makers
    if model.why_no_head() is None and model.method == "gtsa":
        makers.append(("Quarter turn", partial(turn_tab, model)))
    if model.why_no_head() is None and model.method == "loca":
        makers.append(("Drag a box", partial(box_tab, model)))
    if model.whole.reconstruction is not None:
        makers.append(("Transformation path", partial(path_tab, model, samples)))
    return makers
