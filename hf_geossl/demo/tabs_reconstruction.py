"""The tab of the decoders (EquiCoherent's task): a transformation, and the images along it as they are reconstructed."""

from collections.abc import Sequence
from functools import partial

import gradio as gr

from hf_geossl.demo.channel_picture import Picture
from hf_geossl.demo.heads_reconstruction import path_controls, path_of, path_point, why_not_shown
from hf_geossl.demo.loading import DemoModel
from hf_geossl.demo.markup import Figure, figures, said
from hf_geossl.demo.tabs import Chosen, Tab, TabMaker, plain_area


def head_tabs(model: DemoModel, samples: Sequence[Picture]) -> list[TabMaker]:
    """The tab of a model with heads, of whatever method, that has decoders; none without."""
    return [] if why_not_shown(model) else [("Transformation path", partial(path_tab, model, samples))]


def path_tab(model: DemoModel, samples: Sequence[Picture]) -> Tab:
    """A slider along the path of a transformation, the true image there and its reconstruction."""
    path = path_of(model)
    last = path.num_intermediate + 1
    baseline = "The mean of the sample pictures, transformed alike,"
    if not samples:
        baseline = "A plain image of the means that the model normalises by"
    decoders = len(model.whole.reconstruction.decoders)
    gr.Markdown(
        "**Change picture A, and slide from its beginning (u) to the end of the change (v2).** The model sees that end and "
        f"another crop of the picture (v1), nothing between, and redraws {_reconstructed(path.num_intermediate, decoders)} The "
        "ranges are the paper's; a run may have trained in others."
    )
    with gr.Row():
        sliders = []
        for index, (_, _, name, low, high, _) in enumerate(path_controls(path, model.image_format)):
            start = high if index == 0 else low + 0.75 * (high - low)
            step = 0.01 if high < 5 else 0.1
            sliders.append(gr.Slider(round(low, 2), round(high, 2), value=round(start, 2), step=step, label=name))
    point = gr.Slider(0, last, value=min(1, last), step=1, label=f"Point of the path: 0 is u, {last} is v2")
    views, here, text = plain_area(), plain_area(), plain_area()

    def show(chosen: Chosen, point: int, *values: float) -> list[str]:
        step = min(max(int(point), 0), last)
        found = path_point(model, chosen.first, samples, list(values), step)
        enlarged = chosen.display
        true = Figure(enlarged(found.true), f"The true image {_where(step, last)}", rough=True)
        if found.reconstructed is None:
            shown, words = [true], "No decoder reconstructs this point: it is one of the two ends. Slide on."
        else:
            shown = [true, Figure(enlarged(found.reconstructed), "What the model redraws from v1 and v2", rough=True)]
            words = (
                f"Mean squared error of the reconstruction: {found.error:.3f}. {baseline} "
                f"would have {found.mean_image_error:.3f}; a perfect one has 0. What redraws is small and trained on this "
                "error, which leaves edges blurred."
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
    return {0: "where the path begins (u)", last: "where it ends (v2)"}.get(point, f"at {point}/{last} of the way")
