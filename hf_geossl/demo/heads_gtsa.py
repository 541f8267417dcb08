"""What GTSA's rotation head predicts of a picture: its quarter turn."""

import torch
from PIL import Image

from hf_geossl.demo.channel_picture import Picture
from hf_geossl.demo.loading import DemoModel

_TURNED = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def why_not_shown(model: DemoModel) -> str | None:
    """Why a model with heads cannot show quarter turns; None where it can."""
    height, width = model.size()
    if height == width:
        return None
    return f"The model sees {width} x {height} pixels, which no quarter turn leaves so: that tab is missing."


def turned(picture: Picture, quarter_turns: int) -> Picture:
    """A picture turned counter-clockwise."""
    return picture.transpose(_TURNED[quarter_turns % 4]) if quarter_turns % 4 else picture


@torch.no_grad()
def turn_probabilities(model: DemoModel, picture: Picture, quarter_turns: int) -> list[float]:
    """Probabilities of 0, 1, 2 and 3 quarter turns of an upright picture that is turned before the model sees it.

    They are the rotation head's, from the mean of the student's patch tokens.
    """
    outputs = model.whole.gtsa(model.pixels([turned(picture, quarter_turns)]))
    return model.whole.rotation_head(outputs.pooler_output)[0].softmax(dim=-1).tolist()
