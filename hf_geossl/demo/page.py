"""The page: pictures to choose, tabs, and what happens when."""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from hf_geossl.data.notes import collect_notes
from hf_geossl.demo.channel_choice import ChannelChoice
from hf_geossl.demo.channel_picture import Channels, Picture, displayed
from hf_geossl.demo.loading import DemoModel, open_model
from hf_geossl.demo.markup import STRIP_SCRIPT, STYLE, said, strip
from hf_geossl.demo.pictures import (
    MAX_BYTES,
    UploadError,
    describe_notes,
    fit_picture,
    read_upload,
    sample_pictures,
    shrink_picture,
)
from hf_geossl.demo.tabs import (
    TITLES,
    Chosen,
    Tab,
    TabMaker,
    attention_tab,
    correspondence_tab,
    features_tab,
    grid_choice,
    neighbours_tab,
)
from hf_geossl.demo.tabs_task import about_task, describe_task, task_tabs
from hf_geossl.methods import METHODS
from hf_geossl.tasks.prediction.task_models import TaskModel, open_task_model, task_of

logger = logging.getLogger(__name__)

_SESSIONS = 200  # with pictures of 8-bit RGB, fewer where pixels take more memory
_PRIVATE = {"api_visibility": "private", "show_progress": "minimal"}  # what only the page itself calls
_Parameters = ParamSpec("_Parameters")
_Answer = TypeVar("_Answer")
Chooser = tuple[gr.State, gr.HTML, gr.UploadButton, str]
Place = tuple[float, float]  # x and y, in shares of the sides


@dataclass
class Picked:
    """A person's picture A or B."""

    index: int  # of a sample, -1 for the upload, which may not be there yet
    upload: Picture | None = None  # in the model's shape, at the size of the page
    note: str = ""  # what decoding did to the upload


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
    """The page of a model while it is built, with two or more sample pictures of any size, or with none.

    Args:
        model ([`DemoModel`], *optional*): a trunk, with its heads of pretraining where they are.
        samples (`Sequence`): sample pictures.
        task ([`TaskModel`], *optional*): a fine-tuned model, over this trunk or another; one of the two is there.
    """

    def __init__(self, model: DemoModel | None, samples: Sequence[Picture], task: TaskModel | None = None) -> None:
        self.model, self.task = model, task
        self.image_format = model.image_format if model is not None else task.image_format if task is not None else None
        self.name = model.name if model is not None else task.name if task is not None else ""
        self.samples = [self._fit(sample) for sample in samples]
        self.common: list[Any] = []
        self.tabs: list[Tab] = []

    def _fit(self, picture: Picture) -> Picture:
        """A picture at the size of the page: cut to the shape that a trunk sees, whole where there is none."""
        return shrink_picture(picture) if self.model is None else fit_picture(picture, self.model.size())

    def _makers(self) -> list[TabMaker]:
        """What makes the tabs: that of a fine-tuned model, and those of a trunk."""
        makers = task_tabs(self.task) if self.task is not None else []
        if self.model is None:
            return makers
        if self.model.config.hidden_size >= 3:  # three components are shown
            makers.append(("Features", partial(features_tab, self.model)))
        makers.append(("Correspondence", partial(correspondence_tab, self.model)))
        method = METHODS[self.model.method]
        if self.model.whole is not None and method.demo_tabs:
            makers += method.load("demo_tabs")(self.model, self.samples)
        makers.append(("Attention", partial(attention_tab, self.model)))
        if self.samples:
            makers.append(("Nearest neighbours", partial(neighbours_tab, self.model, self.samples)))
        return makers

    def build(self) -> gr.Blocks:
        """The page with everything that happens on it."""
        makers = self._makers()
        with gr.Blocks(title=f"{self.name} demo", analytics_enabled=False, delete_cache=(600, 600)) as demo:
            self.current = gr.State(makers[0][0])
            gr.HTML(STYLE, js_on_load=None, apply_default_css=False)
            gr.Markdown(self._about())
            with gr.Row(equal_height=False):
                names = ("Picture A", "Picture B") if self.model is not None else ("Picture A",)
                choosers = [self._chooser(name, index) for index, name in enumerate(names)]
            second = choosers[1][0] if self.model is not None else gr.State(Picked(-1))
            image_format = self.image_format
            choice = ChannelChoice(image_format) if image_format and image_format.num_channels > 1 else None
            self.place, self.channels = gr.State((0.5, 0.5)), gr.State(None)
            finer = gr.State(False) if self.model is None else grid_choice(self.model)
            self.common = [choosers[0][0], second, finer, self.place, self.channels]
            with gr.Tabs(overflow_behavior="wrap"):
                containers = []
                for name, make in makers:
                    with gr.Tab(TITLES.get(name, name)) as container:
                        self.tabs.append(make())
                    containers.append(container)
            with gr.Accordion("About the model", open=False):
                if self.model is not None:
                    finer.render()
                gr.Markdown(self._details())
            for tab, container in zip(self.tabs, containers, strict=True):
                self._wire(tab, container)
            if self.model is not None:
                self._refresh(finer.change, trigger_mode="always_last")
            self._refresh(demo.load)
            for chooser in choosers:
                self._wire_chooser(*chooser)
            if choice is not None:
                self._wire_choice(choice, choosers)
        return demo

    def _about(self) -> str:
        model = self.model
        if model is None:
            return f"# {self.name}: what the model predicts\n\n{about_task(self.task)}" if self.task is not None else ""
        taught = (
            "This model has learned from pictures alone, without names for what they show."
            if self.task is None
            else about_task(self.task)
        )
        lines = [f"# {model.name if self.task is None else self.task.name}: what the model sees"]
        lines.append(f"{taught} **Choose pictures, or upload yours, and see what it makes of them.**")
        if model.image_format is not None:
            lines.append(
                f"It takes images of {model.image_format.describe()}, as files of any kind (TIFF, PNG, `.npy`, DICOM and "
                "others); they are shown in false colours."
            )
        if not self.samples:
            lines.append(
                "There are no sample pictures of this kind: **upload picture A**, and picture B to compare. Nearest neighbours "
                "need samples: `geossl demo MODEL --samples FOLDER`."
            )
        missing = None if self.task is not None else model.why_no_head()
        return "\n\n".join([*lines, *([f"**{missing}**"] if missing else [])])

    def _details(self) -> str:
        """What people who know such models ask for."""
        task = [] if self.task is None else [describe_task(self.task)]
        return " ".join([*task, *([] if self.model is None else [self.model.describe()])])

    @property
    def sessions(self) -> int:
        """How many persons' pictures are kept at most, so that memory is bounded whatever the images are."""
        described = self.image_format
        size = 3 if described is None else described.num_channels * (1 if described.is_uint8 else 4)  # bytes a pixel
        return min(_SESSIONS, max(4, _SESSIONS * 3 // size))

    # ---- Pictures A and B

    def _chooser(self, name: str, index: int) -> Chooser:
        with gr.Column(min_width=280):
            picked = Picked(index if self.samples else -1)
            state = gr.State(picked)
            kinds = ["image"] if self.image_format is None else None  # of DICOM files many have no ending
            with gr.Row(elem_classes=["geo-head"]):
                gr.Markdown(f"### {name}")
                upload = gr.UploadButton(
                    f"Upload p{name[1:]}", file_types=kinds, type="binary", elem_classes=["geo-upload"]
                )
            pictures = gr.HTML(self._strip(picked, None, name), js_on_load=STRIP_SCRIPT, apply_default_css=False)
        return state, pictures, upload, name

    def _wire_chooser(self, state: gr.State, pictures: gr.HTML, upload: gr.UploadButton, name: str) -> None:
        def choose(event: gr.EventData, picked: Picked, channels: Channels) -> list[Any]:
            index = int(event.index)
            if not -1 <= index < len(self.samples) or (index == -1 and picked.upload is None):
                raise IndexError(f"there is no sample {index}")
            picked = replace(picked, index=index)
            return [picked, self._strip(picked, channels, name)]

        def take(content: bytes, channels: Channels) -> list[Any]:
            with collect_notes() as notes:
                read = read_upload(content, self.image_format)
            picked = Picked(-1, self._fit(read), describe_notes(notes))
            return [picked, self._strip(picked, channels, name)]

        outputs = [state, pictures]
        chosen = pictures.choose(plainly(choose), [state, self.channels], outputs, api_visibility="private")
        taken = upload.upload(plainly(take), [upload, self.channels], outputs, api_name=f"upload_{name[-1].lower()}")
        self._refresh(chosen.success)
        self._refresh(taken.success)

    def _strip(self, picked: Picked, channels: Channels, name: str) -> str:
        """The pictures to choose from, in the colours that are chosen."""
        upload = None if picked.upload is None else displayed(picked.upload, channels)
        note = picked.note if picked.index < 0 else ""
        if not self.samples and upload is None:
            note = "None yet."
        return strip([displayed(one, channels) for one in self.samples], picked.index, upload, name, note)

    def _wire_choice(self, choice: ChannelChoice, choosers: Sequence[Chooser]) -> None:
        """Lets the choice of channels show all pictures anew."""
        names = [name for _, _, _, name in choosers]

        def recolor(first: Picked, second: Picked, *values: int) -> list[Any]:
            channels = choice.channels(*values)
            strips = [self._strip(one, channels, name) for one, name in zip((first, second), names, strict=True)]
            return [channels, *strips]

        inputs = [*(state for state, *_ in choosers), *choice.controls]
        outputs = [self.channels, *(pictures for _, pictures, *_ in choosers)]
        for control in choice.controls:
            self._refresh(control.input(plainly(recolor), inputs, outputs, **_PRIVATE).success)

    # ---- Tabs

    def _picture(self, picked: Picked) -> Picture | None:
        """The picture that is chosen; None where there is none yet."""
        if picked.upload is not None and picked.index < 0:
            return picked.upload
        return self.samples[picked.index] if self.samples else None

    def _show(
        self, tab: Tab, first: Picked, second: Picked, finer: bool, place: Place, channels: Channels, *own: object
    ) -> list[str]:
        """The outputs of a tab for the values of `common` and of its inputs."""
        one, other = self._picture(first), self._picture(second)
        if one is None or (tab.pair and other is None):
            missing = "picture B" if one is not None else "pictures A and B" if tab.pair else "picture A"
            return [said(f"Upload {missing} first."), *("" for _ in tab.outputs[1:])]
        return tab.show(Chosen(one, other, bool(finer), place, channels), *own)

    def _wire(self, tab: Tab, container: gr.Tab) -> None:
        inputs, name = [*self.common, *tab.inputs], tab.name
        set_by_pick = tab.inputs[: tab.pick_sets is not None]

        def answer(
            first: Picked, second: Picked, finer: bool, place: Place, channels: Channels, *own: object
        ) -> list[str]:
            return self._show(tab, first, second, finer, place, channels, *own)

        def select(
            first: Picked, second: Picked, finer: bool, place: Place, channels: Channels, *own: object
        ) -> list[str]:
            return [name, *answer(first, second, finer, place, channels, *own)]

        def pick(
            event: gr.EventData,
            first: Picked,
            second: Picked,
            finer: bool,
            place: Place,
            channels: Channels,
            *own: object,
        ) -> list[Any]:
            place = (_share(event.x), _share(event.y))
            own = own if tab.pick_sets is None else (tab.pick_sets, *own[1:])
            return [place, *own[: len(set_by_pick)], *answer(first, second, finer, place, channels, *own)]

        def draw(
            event: gr.EventData,
            first: Picked,
            second: Picked,
            finer: bool,
            place: Place,
            channels: Channels,
            *own: object,
        ) -> list[Any]:
            box = (_share(event.x1), _share(event.y1), _share(event.x2), _share(event.y2))
            return [box, *answer(first, second, finer, place, channels, box)]

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
            current: str,
            first: Picked,
            second: Picked,
            finer: bool,
            place: Place,
            channels: Channels,
            *values: object,
        ) -> list[Any]:
            rest, outputs = list(values), []
            for tab, count in zip(self.tabs, counts, strict=True):
                own, rest = rest[:count], rest[count:]
                opened = tab.name == current
                shown = self._show(tab, first, second, finer, place, channels, *own) if opened else []
                outputs += shown or [gr.skip() for _ in tab.outputs]
            return outputs

        inputs = [component for tab in self.tabs for component in tab.inputs]
        outputs = [component for tab in self.tabs for component in tab.outputs]
        event(plainly(refresh), [self.current, *self.common, *inputs], outputs, **_PRIVATE, **kwargs)


def _share(value: float) -> float:
    """A number that a browser sent, inside of a picture."""
    return min(max(float(value), 0.0), 1.0)


def open_page(folder: Path, samples: Path | None = None) -> Page:
    """The page of a model; see `hf_geossl.demo.build_demo`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    task = open_task_model(folder) if task_of(folder) else None
    if task is not None and task.module.config.model_type not in METHODS:  # of which the trunk's tabs know nothing
        return Page(None, sample_pictures(samples, task.image_format), task)
    model = open_model(folder)
    return Page(model, sample_pictures(samples, model.image_format), task)


def serve(page: Page, host: str | None, port: int | None, block: bool, say: Callable[[str], None]) -> gr.Blocks:
    """Serves a page with its limits; see `hf_geossl.demo.launch_demo`."""
    demo = page.build()
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
            state_session_capacity=page.sessions,
            theme=gr.themes.Default(
                font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ).set(
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
