"""The tab of a fine-tuned model: what it predicts of picture A, over the picture, with a legend and scores."""

from functools import partial
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from hf_geossl.demo.channel_picture import ChannelPicture, Picture
from hf_geossl.demo.markup import Figure, figures, legend, said
from hf_geossl.demo.tabs import Chosen, Tab, TabMaker, plain_area
from hf_geossl.tasks.prediction.image_results import show_prediction
from hf_geossl.tasks.prediction.opened_images import DecodedImage
from hf_geossl.tasks.prediction.overlays import depth_halves
from hf_geossl.tasks.prediction.settings import PredictionSettings
from hf_geossl.tasks.prediction.task_models import TaskModel

# what a tab is called, and what it says
TABS = {
    "classification": ("Classes", "How sure the model is of each class: the five surest."),
    "segmentation": ("Segmentation", "The class of every pixel, and which share of the picture each class has."),
    "depth": ("Depth", "How far away the model takes every pixel to be: bright is near, dark is far."),
    "detection": ("Objects", "Objects that the model finds, with their classes and how sure it is of each."),
}


_DOES = {
    "classification": "It says what a picture shows.",
    "segmentation": "It says of every pixel what it shows.",
    "depth": "It says of every pixel how far away it is.",
    "detection": "It finds objects in a picture.",
}


def about_task(task: TaskModel) -> str:
    """What a fine-tuned model does, for the head of the page."""
    more = len(task.names) - 8
    named = ", ".join(task.names[:8]) + (f" and {more} more" if more > 0 else "")
    return _DOES[task.kind] + (f" Its {'class' if len(task.names) == 1 else 'classes'}: {named}." if task.names else "")


def describe_task(task: TaskModel) -> str:
    """What people who know such models ask for."""
    millions = sum(parameter.numel() for parameter in task.module.parameters()) / 1e6
    return f"{type(task.module).__name__}, {millions:.2g} million parameters, fine-tuned for {task.kind}."


def task_tabs(task: TaskModel) -> list[TabMaker]:
    """The tab of a model with a head."""
    return [(TABS[task.kind][0], partial(task_tab, task))]


def task_tab(task: TaskModel) -> Tab:
    """Picture A, what was predicted over it, and the legend."""
    name, about = TABS[task.kind]
    gr.Markdown(f"{about} **Choose or upload picture A.**")
    sliders: list[Any] = []
    if task.kind == "detection":
        sliders = [
            gr.Slider(
                0.05,
                0.95,
                value=0.5,
                step=0.05,
                label="Show objects that the model is at least so sure of (1: certain)",
            )
        ]
    area, below = plain_area(), plain_area()

    def show(chosen: Chosen, score: float = 0.5) -> list[str]:
        settings = PredictionSettings(score_threshold=min(max(float(score), 0.0), 1.0))
        image = DecodedImage(_pixels(chosen.first), task.image_format)
        drawn, entries = show_prediction(task, image, settings)
        picture = chosen.displayed(chosen.first)
        if task.kind == "depth":  # which has the picture beside it
            drawn = depth_halves(drawn)[1]
        shown = [Figure(picture, "Picture A")]
        if task.kind != "classification":
            shown.insert(0, Figure(drawn, name))  # what a phone shows without scrolling
        size = f"The model sees the picture at {task.sides[1]} \u00d7 {task.sides[0]} pixels."
        return [figures(*shown, columns=2, narrow=1), legend(entries) + said(size)]

    return Tab(name, show, [area, below], sliders)


def _pixels(picture: Picture) -> np.ndarray:
    """A picture as `decode_pixels` gives it, `(height, width, channels)`."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    assert isinstance(picture, ChannelPicture)
    return np.stack([np.asarray(plane) for plane in picture.planes], axis=-1)
