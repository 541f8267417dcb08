"""The choice of three channels that are shown as red, green and blue, or of one alone in grey."""

from typing import Any

import gradio as gr

from hf_geossl.demo.channel_picture import Channels
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.display import HIGH, LOW, displayed_channels

_WIDTH = 200  # pixels of a control at least, so that a phone shows one a row
_COLORS = -1  # where one channel alone has its place


class ChannelChoice:
    """The controls of the choice, built where it is made; there are none for images of one channel.

    Args:
        image_format (`ImageFormat`): Of the model, with two channels or more.
    """

    def __init__(self, image_format: ImageFormat) -> None:
        self._default = displayed_channels(image_format)
        names, count = image_format.names, image_format.num_channels
        colors = self._default if len(self._default) == 3 else tuple(min(place, count - 1) for place in range(3))
        single = [(f"{name} alone", place) for place, name in enumerate(names)]
        first = _COLORS if len(self._default) == 3 else self._default[0]
        stretched = f", from percentile {100 * LOW:g} to {100 * HIGH:g} of each picture"
        gr.Markdown(
            "All pictures of the page show three channels as red, green and blue, or one alone in grey"
            f"{'' if image_format.is_uint8 else stretched}."
        )
        with gr.Row(elem_classes=["geo-channels"]):
            kinds = [("three channels", _COLORS), *single]
            self.controls: list[Any] = [
                gr.Dropdown(kinds, value=first, label="Shown", filterable=False, min_width=_WIDTH)
            ]
            for color, place in zip(("Red", "Green", "Blue"), colors, strict=True):
                choices = [(name, number) for number, name in enumerate(names)]
                self.controls.append(gr.Dropdown(choices, value=place, label=color, filterable=False, min_width=_WIDTH))

    def channels(self, kind: int, *colors: int) -> Channels:
        """The channels for the values of the controls; None for those that are shown without a choice."""
        chosen = tuple(map(int, colors)) if int(kind) == _COLORS else (int(kind),)
        return None if chosen == self._default else chosen
