"""The choice of channels: what is offered, and what its values mean."""

import pytest

from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers.demo_models import BANDS

gradio = pytest.importorskip("gradio", reason="the choice needs gradio: pip install 'hf_geossl[space]'")

from hf_geossl.demo.channel_choice import ChannelChoice  # noqa: E402


def test_colours_that_are_there_are_shown_first_and_every_channel_is_offered() -> None:
    with gradio.Blocks() as demo:
        choice = ChannelChoice(BANDS)
    assert [control.value for control in choice.controls] == [-1, 4, 3, 2]
    names = [f"{name} alone" for name in BANDS.names]
    assert [name for name, _ in choice.controls[0].choices] == ["three channels", *names]
    assert [name for name, _ in choice.controls[2].choices] == list(BANDS.names)
    shown = "All pictures of the page show three channels as red, green and blue, or one alone in grey"
    assert [block.value for block in demo.blocks.values() if isinstance(block, gradio.Markdown)] == [
        f"{shown}, from percentile 2 to 98 of each picture."
    ]
    assert choice.channels(-1, 4, 3, 2) is None
    assert choice.channels(-1, 0, 3, 2) == (0, 3, 2)
    assert choice.channels(1, 0, 3, 2) == (1,)


def test_of_two_channels_the_first_is_shown_in_grey() -> None:
    two = ImageFormat((1, 2), ("hh", "hv"), mean=(0.5,) * 2, std=(0.2,) * 2)
    with gradio.Blocks():
        choice = ChannelChoice(two)
    assert [control.value for control in choice.controls] == [0, 0, 1, 1]
    assert choice.channels(0, 0, 1, 1) is None
    assert choice.channels(-1, 0, 1, 1) == (0, 1, 1)
