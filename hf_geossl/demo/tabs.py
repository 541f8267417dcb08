"""The tabs that any trunk has: features, correspondence, attention, nearest neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import torch
from PIL import Image

from hf_geossl.demo.analyses import (
    attention_map,
    cell_at,
    feature_colors,
    find_match,
    nearest_patches,
    nearest_pictures,
)
from hf_geossl.demo.channel_picture import Channels, Picture, displayed
from hf_geossl.demo.loading import DemoModel
from hf_geossl.demo.markup import PICTURE_SCRIPT, Figure, figures, said
from hf_geossl.demo.pictures import from_colors, from_unit, heat_map, marked_cell

_COARSE = 14  # patches along a side; a model that was trained with fewer starts with the finer grid
_NEAREST = 4  # pictures and patches that are shown


@dataclass
class Chosen:
    """What a person has chosen for all tabs."""

    first: Picture  # picture A
    second: Picture | None  # picture B, which may be missing unless the tab is one of pairs
    finer: bool  # the model sees twice the size that it was trained at
    place: tuple[float, float]  # the clicked place of picture A, x, y in shares of its sides
    channels: Channels = None  # which are shown

    def displayed(self, picture: Picture) -> Image.Image:
        """What people see of a picture."""
        return displayed(picture, self.channels)

    def display(self, units: torch.Tensor) -> Image.Image:
        """An image `(channels, height, width)` in units in the colours of picture A, at its size, without smoothing."""
        picture, size = self.first, self.first.size
        if isinstance(picture, Image.Image):
            return from_unit(units, size)
        return picture.display(units, self.channels).resize(size, Image.Resampling.NEAREST)


@dataclass
class Tab:
    """A tab of the page."""

    name: str  # its title
    show: Callable[..., list[str]]  # show(chosen, *values of the inputs) -> values of the outputs
    outputs: list[Any]  # components
    inputs: list[Any] = field(default_factory=list)
    picked: Any = None  # the component on which places of picture A are clicked
    pick_sets: Any = None  # what the first input becomes when one is
    boxed: Any = None  # the component on which a box is drawn
    box: Any = None  # the input that its corners go to
    pair: bool = False  # whether it is about picture B too


TabMaker = tuple[str, Callable[[], Tab]]  # a name, and what makes the tab inside of it

# what tabs are called on the page, where that says more than the name to people who know no such models
TITLES = {
    "Features": "What looks alike",
    "Correspondence": "Find the same spot",
    "Attention": "Where it looks",
    "Nearest neighbours": "Similar pictures",
    "Quarter turn": "Which way up",
    "Transformation path": "In between",
    "Segmentation": "Areas",
}


def picture_area() -> Any:
    """Where pictures are shown that can be clicked or drawn on."""
    return gr.HTML(js_on_load=PICTURE_SCRIPT, apply_default_css=False)


def plain_area() -> Any:
    """Where pictures and texts are shown."""
    return gr.HTML(js_on_load=None, apply_default_css=False)


def grid_choice(model: DemoModel) -> gr.Radio:
    """The choice of how finely a trunk sees pictures."""
    grids = [model.grid(finer) for finer in (False, True)]
    kinds = ("as in training", "finer")
    labels = [f"{rows} × {columns} squares, {kind}" for (rows, columns), kind in zip(grids, kinds, strict=True)]
    return gr.Radio(
        list(zip(labels, (False, True), strict=True)),
        value=max(grids[0]) < _COARSE,
        label="How finely it looks",
        info="What it learned to predict is always shown as in training.",
        render=False,
    )


def features_tab(model: DemoModel) -> Tab:
    """Principal components of patch features, of each picture alone and of both together."""
    gr.Markdown(
        "**Squares of one colour look alike to the model.** A colour means nothing by itself, and can be compared between "
        "pictures only where they are coloured together."
    )
    gr.Markdown("### Each picture by itself")
    alone = plain_area()
    gr.Markdown("### Both together: colours can be compared")
    together = plain_area()

    def show(chosen: Chosen) -> list[str]:
        pictures = {"A": chosen.first} | ({"B": chosen.second} if chosen.second is not None else {})
        both = feature_colors(model, list(pictures.values()), chosen.finer)
        first: list[Figure] = []
        joint: list[Figure] = []
        for (name, picture), colors in zip(pictures.items(), both, strict=True):
            own = feature_colors(model, [picture], chosen.finer)[0]
            for row, shown in ((first, own), (joint, colors)):
                row.append(Figure(chosen.displayed(picture), f"Picture {name}"))
                row.append(Figure(from_colors(shown, picture.size), f"Features of {name}"))
        both_shown = said("Upload picture B too.") if chosen.second is None else figures(*joint, columns=4)
        return [figures(*first, columns=4), both_shown]

    return Tab("Features", show, [alone, together])


def correspondence_tab(model: DemoModel) -> Tab:
    """A clicked patch of picture A, and where it is found in picture B."""
    gr.Markdown(
        "**Click a spot of picture A** (or move it with the arrow keys): the most similar spot of picture B is marked. "
        "There is always one, also where B shows nothing of the kind; whether the way back ends where it began tells more."
    )
    area, text = picture_area(), plain_area()

    def show(chosen: Chosen) -> list[str]:
        grid = model.grid(chosen.finer)
        cell = cell_at(chosen.place, grid)
        assert chosen.second is not None
        match = find_match(model, chosen.first, chosen.second, cell, chosen.finer)
        here, there = chosen.displayed(chosen.first), chosen.displayed(chosen.second)
        low, high = match.cosines.min().item(), match.cosines.max().item()
        heat = marked_cell(heat_map(there, match.cosines), match.best, grid)
        back = "the same patch" if match.back == cell else f"another patch, {_apart(match.back, cell)} away"
        return [
            figures(
                Figure(marked_cell(here, cell, grid), "Picture A: click a spot", "pick", chosen.place, grid),
                Figure(heat, f"Picture B: alike, from blue (least, {low:.2f}) to yellow (most, {high:.2f})"),
                Figure(marked_cell(there, match.best, grid), "Picture B: the most similar spot"),
            ),
            said(
                f"The patch in row {cell[0] + 1}, column {cell[1] + 1} of A is found in row {match.best[0] + 1}, column "
                f"{match.best[1] + 1} of B (cosine {match.cosine:.3f}). The way back ends at {back}."
            ),
        ]

    return Tab("Correspondence", show, [area, text], picked=area, pair=True)


def _apart(one: tuple[int, int], other: tuple[int, int]) -> str:
    distance = ((one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2) ** 0.5
    return f"{distance:.1f} patches" if distance != 1 else "1 patch"


def attention_tab(model: DemoModel) -> Tab:
    """What the last layer's class token or a clicked patch looks at."""
    class_token = model.config.use_class_token
    trained = class_token and model.pooled == "the class token"
    note = "" if class_token else "This model has no class token."
    if class_token and not trained:
        note = f"{model.name} does not train its class token directly, so a patch tells more."
    gr.Markdown(
        "**Click a spot of picture A** to see which other spots the model looks at to make sense of it: yellow most, dark blue "
        f"least. It shows where the model looks, not why. {note}"
    )
    starts = [("the clicked spot", "patch"), *([("the whole picture (class token)", "class")] if class_token else [])]
    first = "class" if trained else "patch"
    start = gr.Radio(starts, value=first, label="Who looks", visible=class_token)
    heads = [("mean of all", -1), *((str(head + 1), head) for head in range(model.config.num_attention_heads))]
    head = gr.Radio(heads, value=-1, label="Attention head")
    area, text = picture_area(), plain_area()

    def show(chosen: Chosen, start: str, head: int) -> list[str]:
        grid = model.grid(chosen.finer)
        cell = cell_at(chosen.place, grid) if start == "patch" else None
        if not -1 <= int(head) < model.config.num_attention_heads:
            raise IndexError(f"there is no head {head}")
        seen = attention_map(model, chosen.first, cell, None if head < 0 else int(head), chosen.finer)
        who = "the class token" if cell is None else f"the patch in row {cell[0] + 1}, column {cell[1] + 1}"
        picture = chosen.displayed(chosen.first)
        heat = heat_map(picture, seen)
        if cell is not None:
            picture, heat = marked_cell(picture, cell, grid), marked_cell(heat, cell, grid)
        by = "the mean of all heads" if head < 0 else f"head {int(head) + 1}"
        return [
            figures(
                Figure(picture, "Picture A: click a spot", "pick", chosen.place, grid),
                Figure(heat, f"What {who} looks at, {by}"),
                narrow=1,
            ),
            said(
                f"{100 * seen.sum().item():.0f}% of the attention goes to patches; the largest share of one patch is "
                f"{100 * seen.max().item():.1f}%, where even attention would be {100 / seen.numel():.1f}%."
            ),
        ]

    return Tab("Attention", show, [area, text], [start, head], picked=area, pick_sets="patch")


def neighbours_tab(model: DemoModel, samples: Sequence[Picture]) -> Tab:
    """The sample pictures nearest to picture A, and the patches nearest to a clicked one."""
    gr.Markdown(
        "The sample pictures that are most like picture A to the model, and **the spots most like the one that you click**, "
        "the best of each picture. There are few samples: the nearest need not be near. (Cosines of features, for a picture "
        f"{model.pooled}.)"
    )
    gr.Markdown("### Pictures like picture A")
    pictures = plain_area()
    gr.Markdown("### Spots like the clicked one")
    area = picture_area()

    def show(chosen: Chosen) -> list[str]:
        grid = model.grid(chosen.finer)
        cell = cell_at(chosen.place, grid)
        near = nearest_pictures(model, chosen.first, samples, chosen.finer)[:_NEAREST]
        patches = nearest_patches(model, chosen.first, cell, samples, chosen.finer)[:_NEAREST]
        picture, others = chosen.displayed(chosen.first), [chosen.displayed(sample) for sample in samples]
        here = marked_cell(picture, cell, grid)
        whole = _ranked([(others[index], cosine) for index, cosine in near])
        found = _ranked([(marked_cell(others[index], best, grid), cosine) for index, best, cosine in patches])
        return [
            figures(Figure(picture, "Picture A"), *whole, columns=5),
            figures(Figure(here, "Picture A: click a spot", "pick", chosen.place, grid), *found),
        ]

    return Tab("Nearest neighbours", show, [pictures, area], picked=area)


def _ranked(pictures: list[tuple[Image.Image, float]]) -> list[Figure]:
    """Pictures and their cosines, nearest first, as figures."""
    return [Figure(one, f"{place}. cosine {cosine:.3f}") for place, (one, cosine) in enumerate(pictures, start=1)]
