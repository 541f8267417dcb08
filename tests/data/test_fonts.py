"""Texts in pictures are read in languages other than English."""

import numpy as np
from PIL import Image, ImageFont

from hf_geossl.data.contact_sheet import draw_rows
from hf_geossl.data.fonts import font_for


def test_letters_that_are_not_english_are_no_squares() -> None:
    """Pillow's own font writes the same square for each of them."""
    assert font_for(12, "a", "b").getname() == ImageFont.load_default(12).getname()
    drawn = []
    for caption in ("ü", "ж", "λ"):
        sheet = np.asarray(draw_rows([[(caption, Image.new("RGB", (128, 128)))]], "title"))
        drawn.append(sheet[-20:].tobytes())
    assert len(set(drawn)) == 3
