"""The tab of GTSA's head: quarter turns."""

from collections.abc import Sequence
from functools import partial

import gradio as gr

from hf_geossl.demo import tabs_reconstruction
from hf_geossl.demo.channel_picture import Picture
from hf_geossl.demo.heads_gtsa import turn_probabilities, turned, why_not_shown
from hf_geossl.demo.loading import DemoModel
from hf_geossl.demo.markup import Figure, bars, figures, said
from hf_geossl.demo.tabs import Chosen, Tab, TabMaker, plain_area

_TURNS = ("upright", "turned by 90°", "turned by 180°", "turned by 270°")


def head_tabs(model: DemoModel, samples: Sequence[Picture]) -> list[TabMaker]:
    """The tabs of a model with heads: its quarter turn where it sees squares, and reconstructions where it has decoders."""
    own: list[TabMaker] = [] if why_not_shown(model) else [("Quarter turn", partial(turn_tab, model))]
    return [*own, *tabs_reconstruction.head_tabs(model, samples)]


def turn_tab(model: DemoModel) -> Tab:
    """The quarter turn that GTSA's head predicts."""
    gr.Markdown(
        "**Turn picture A** and see whether the model notices which way up it is. Where up and down look alike, as from "
        "above, nobody can know."
    )
    turns = gr.Radio(
        [(f"{90 * quarter}°", quarter) for quarter in range(4)], value=0, label="Turn counter-clockwise by"
    )
    area, text = plain_area(), plain_area()

    def show(chosen: Chosen, turns: int) -> list[str]:
        quarter = int(turns) % 4
        probabilities = turn_probabilities(model, chosen.first, quarter)
        best = max(range(4), key=probabilities.__getitem__)
        verdict = "That is right" if best == quarter else f"That is wrong: it is {_TURNS[quarter]}"
        return [
            figures(Figure(chosen.displayed(turned(chosen.first, quarter)), "What the model sees")),
            bars(_TURNS, probabilities, quarter)
            + said(f"The model says: {_TURNS[best]}, with {100 * probabilities[best]:.1f}%. {verdict}. Guessing: 25%."),
        ]

    return Tab("Quarter turn", show, [area, text], [turns])
