"""The page: pictures to choose, tabs, and what happens when."""

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from PIL import Image

from hf_geossl.demo.loading import DemoModel, open_model
from hf_geossl.demo.markup import STRIP_SCRIPT, STYLE, strip
from hf_geossl.demo.pictures import MAX_BYTES, UploadError, fit_picture, read_upload, sample_pictures
from hf_geossl.demo.tabs import Chosen, Tab, TabMaker, attention_tab, correspondence_tab, features_tab, neighbours_tab
from hf_geossl.methods import METHODS

logger = logging.getLogger(__name__)

_COARSE = 14  # patches along a side; a model that was trained with fewer starts with the finer grid
_SESSIONS = 200
_PRIVATE = {"api_visibility": "private", "show_progress": "minimal"}  # what only the page itself calls
_Parameters = ParamSpec("_Parameters")
_Answer = TypeVar("_Answer")
Place = tuple[float, float]  # x and y, in shares of the sides
_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]


@dataclass
class Picked:
    """A person's picture A or B."""

    index: int  # of a sample, -1 for the upload
    upload: Image.Image | None = None  # in the model's shape, at the size of the page


def plainly(function: Callable[_Parameters, _Answer]) -> Callable[_Parameters, _Answer]:
    """Lets a person see one plain sentence where a function fails; what is unexpected goes to the log."""

    @functools.wraps(function)
    def guarded(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Answer:
        try:
            return function(*args, **kwargs)
        except UploadError as error:
            raise gr.Error(str(error), print_exception=False, title="Picture not used") from error
        except Exception as error:
            logger.exception("the demo could not answer")
            sentence = "This could not be computed. Your pictures are kept; please try again or choose others."
            raise gr.Error(sentence, print_exception=False, title="Sorry") from error

    return guarded


class Page:
    """The page of a model while it is built, with two or more sample pictures of any size."""

    def __init__(self, model: DemoModel, samples: list[Image.Image]) -> None:
        self.model = model
        self.samples = [fit_picture(sample, model.size()) for sample in samples]
        self.common: list[Any] = []
        self.tabs: list[Tab] = []

    def build(self) -> gr.Blocks:
        """The page with everything that happens on it."""
        makers: list[TabMaker] = [
            ("Features", partial(features_tab, self.model)),
            ("Correspondence", partial(correspondence_tab, self.model)),
            *self._head_tabs(),
            ("Attention", partial(attention_tab, self.model)),
            ("Nearest neighbours", partial(neighbours_tab, self.model, self.samples)),
        ]
        if self.model.config.hidden_size < 3:
            makers = makers[1:]  # three components are shown
        with gr.Blocks(title=f"{self.model.name} demo", analytics_enabled=False, delete_cache=(600, 600)) as demo:
            self.current = gr.State(makers[0][0])
            gr.HTML(STYLE, js_on_load=None, apply_default_css=False)
            gr.Markdown(self._about())
            with gr.Row(equal_height=False):
                choosers = [self._chooser(name, index) for index, name in enumerate(("Picture A", "Picture B"))]
            grids = [self.model.grid(finer) for finer in (False, True)]
            kinds = ("as in training", "finer")
            labels = [f"{rows} × {columns}, {kind}" for (rows, columns), kind in zip(grids, kinds, strict=True)]
            finer = gr.Radio(
                list(zip(labels, (False, True), strict=True)),
                value=max(grids[0]) < _COARSE,
                label="Patches",
                info="What comes from the heads of pretraining is always shown as in training.",
            )
            self.place = gr.State((0.5, 0.5))
            self.common = [choosers[0][0], choosers[1][0], finer, self.place]
            with gr.Tabs(overflow_behavior="wrap"):
                containers = []
                for name, make in makers:
                    with gr.Tab(name) as container:
                        self.tabs.append(make())
                    containers.append(container)
            for tab, container in zip(self.tabs, containers, strict=True):
                self._wire(tab, container)
            self._refresh(finer.change, trigger_mode="always_last")
            self._refresh(demo.load)
            for chooser in choosers:
                self._wire_chooser(*chooser)
        return demo

    def _head_tabs(self) -> list[TabMaker]:
        """What makes the tabs of the heads; none for a trunk alone."""
        method = METHODS[self.model.method]
        if self.model.whole is None or not method.demo_tabs:
            return []
        return method.load("demo_tabs")(self.model, self.samples)

    def _about(self) -> str:
        model = self.model
        height, width = model.size()
        millions = sum(parameter.numel() for parameter in model.trunk.parameters()) / 1e6
        lines = [
            f"# {model.name}: what the model sees",
            f"A vision transformer of {millions:.1f} million parameters that learned from pictures without labels, in "
            f"views of {width} × {height} pixels and patches of {model.config.patch_size}. The features shown are those "
            f"of {model.source}. Pictures are cut to its shape and scaled to its size.",
        ]
        missing = model.why_no_head()
        return "\n\n".join([*lines, *([f"**{missing}**"] if missing else [])])

    # ---- Pictures A and B

    def _chooser(self, name: str, index: int) -> tuple[gr.State, gr.HTML, gr.UploadButton, str]:
        with gr.Column(min_width=280):
            gr.Markdown(f"### {name}")
            state = gr.State(Picked(index))
            pictures = gr.HTML(strip(self.samples, index, None, name), js_on_load=STRIP_SCRIPT, apply_default_css=False)
            label = f"Upload p{name[1:]}"
            upload = gr.UploadButton(label, file_types=["image"], type="binary", elem_classes=["geo-upload"])
        return state, pictures, upload, name

    def _wire_chooser(self, state: gr.State, pictures: gr.HTML, upload: gr.UploadButton, name: str) -> None:
        def choose(event: gr.EventData, picked: Picked) -> list[Any]:
            index = int(event.index)
            if not -1 <= index < len(self.samples) or (index == -1 and picked.upload is None):
                raise IndexError(f"there is no sample {index}")
            return [Picked(index, picked.upload), strip(self.samples, index, picked.upload, name)]

        def take(content: bytes) -> list[Any]:
            own = fit_picture(read_upload(content), self.model.size())
            return [Picked(-1, own), strip(self.samples, -1, own, name)]

        chosen = pictures.choose(plainly(choose), [state], [state, pictures], api_visibility="private")
        taken = upload.upload(plainly(take), [upload], [state, pictures], api_name=f"upload_{name[-1].lower()}")
        self._refresh(chosen.success)
        self._refresh(taken.success)

    # ---- Tabs

    def _show(self, tab: Tab, first: Picked, second: Picked, finer: bool, place: Place, *own: object) -> list[str]:
        """The outputs of a tab for the values of `common` and of its inputs."""
        pictures = [one.upload if one.upload and one.index < 0 else self.samples[one.index] for one in (first, second)]
        return tab.show(Chosen(pictures[0], pictures[1], bool(finer), place), *own)

    def _wire(self, tab: Tab, container: gr.Tab) -> None:
        inputs, name = [*self.common, *tab.inputs], tab.name
        set_by_pick = tab.inputs[: tab.pick_sets is not None]

        def answer(first: Picked, second: Picked, finer: bool, place: Place, *own: object) -> list[str]:
            return self._show(tab, first, second, finer, place, *own)

        def select(first: Picked, second: Picked, finer: bool, place: Place, *own: object) -> list[str]:
            return [name, *answer(first, second, finer, place, *own)]

        def pick(
            event: gr.EventData, first: Picked, second: Picked, finer: bool, place: Place, *own: object
        ) -> list[Any]:
            place = (_share(event.x), _share(event.y))
            own = own if tab.pick_sets is None else (tab.pick_sets, *own[1:])
            return [place, *own[: len(set_by_pick)], *answer(first, second, finer, place, *own)]

        def draw(
            event: gr.EventData, first: Picked, second: Picked, finer: bool, place: Place, *own: object
        ) -> list[Any]:
            box = (_share(event.x1), _share(event.y1), _share(event.x2), _share(event.y2))
            return [box, *answer(first, second, finer, place, box)]

        api_name = name.lower().replace(" ", "_")
        outputs = [self.current, *tab.outputs]
        container.select(plainly(select), inputs, outputs, api_name=api_name, show_progress="minimal")
        private: dict[str, Any] = {**_PRIVATE, "trigger_mode": "always_last"}
        for control in tab.inputs:
            if not isinstance(control, gr.State):
                control.input(plainly(answer), inputs, tab.outputs, **private)
        if tab.picked is not None:
            outputs = [self.place, *set_by_pick, *tab.outputs]
            tab.picked.pick(plainly(pick), inputs, outputs, **private)
        if tab.boxed is not None:
            tab.boxed.box(plainly(draw), inputs, [tab.box, *tab.outputs], **private)

    def _refresh(self, event: Callable[..., object], **kwargs: object) -> None:
        """Lets an event show the open tab anew; the others follow when they are opened."""
        counts = [len(tab.inputs) for tab in self.tabs]

        def refresh(
            current: str, first: Picked, second: Picked, finer: bool, place: Place, *values: object
        ) -> list[Any]:
            rest, outputs = list(values), []
            for tab, count in zip(self.tabs, counts, strict=True):
                own, rest = rest[:count], rest[count:]
                opened = tab.name == current
                shown = self._show(tab, first, second, finer, place, *own) if opened else []
                outputs += shown or [gr.skip() for _ in tab.outputs]
            return outputs

        inputs = [component for tab in self.tabs for component in tab.inputs]
        outputs = [component for tab in self.tabs for component in tab.outputs]
        event(plainly(refresh), [self.current, *self.common, *inputs], outputs, **_PRIVATE, **kwargs)


def _share(value: float) -> float:
    """A number that a browser sent, inside of a picture."""
    return min(max(float(value), 0.0), 1.0)


def build_demo(folder: Path, samples: Path | None = None) -> gr.Blocks:
    """See `hf_geossl.demo.build_demo`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    model = open_model(folder)
    return Page(model, sample_pictures(samples)).build()


def serve(demo: gr.Blocks, host: str | None, port: int | None, block: bool, say: Callable[[str], None]) -> gr.Blocks:
    """Serves a page with its limits; see `hf_geossl.demo.launch_demo`."""
    demo.queue(max_size=64, default_concurrency_limit=2)
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            show_error=False,
            footer_links=[],
            max_file_size=MAX_BYTES,
            state_session_capacity=_SESSIONS,
            theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"]).set(
                block_info_text_color="*neutral_600",
                block_info_text_color_dark="*neutral_300",
                body_text_color_subdued="*neutral_600",
                body_text_color_subdued_dark="*neutral_300",
            ),
        )
    except OSError as error:
        taken = "every port from 7860 on is" if port is None else f"port {port} is"
        raise OSError(f"{taken} in use or not to be had at {host}: choose another with --port") from error
    say(f"the demo runs at {demo.local_url} (Ctrl-C ends it)")
    if block:
        demo.block_thread()
    return demo
