"""The font of texts in pictures."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(size: float, *texts: str) -> Font:
    """Gives Pillow's own font, which has English letters alone; for other texts DejaVu Sans, of matplotlib or the system.

    Args:
        size (`float`): In pixels.
        *texts (`str`): What is written. Letters that no font at hand has are squares.
    """
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(size)
    spec = find_spec("matplotlib")  # which takes a second to import
    own = (
        None if spec is None or spec.origin is None else Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    )
    for path in (own, "DejaVuSans.ttf"):
        with suppress(OSError):
            if path is not None:
                return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)
