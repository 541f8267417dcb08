"""Pictures on their way into the page and out of it: read within limits, cut to shape, coloured, marked, encoded."""

import base64
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps

from hf_geossl.data.images import EXTENSIONS, BrokenImageError, decode_image, decode_pixels
from hf_geossl.data.notes import Note, collect_notes, describe_counts
from hf_geossl.data.wording import without_arguments
from hf_geossl.demo.channel_picture import ChannelPicture, Picture
from hf_geossl.hub.space import SAMPLE_SIDE as SIDE
from hf_geossl.hub.space import scene_pictures
from hf_geossl.modeling.image_format import ImageFormat

logger = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**20
MAX_PIXELS = 2**25
_MAX_CHANNEL_PIXELS = 2**24  # of pictures that are not RGB of 8 bits, whose pixels take up to 80 bytes
# the colours of a heat map from its smallest to its largest value
_HEAT = torch.tensor([[13, 8, 60], [92, 18, 110], [190, 55, 84], [245, 125, 21], [252, 240, 130]], dtype=torch.float32)
_BLACK, _WHITE, _BLUE = (0, 0, 0), (255, 255, 255), (0, 200, 255)


class UploadError(ValueError):
    """An upload that cannot be used; the message is a sentence for the person."""


def _decode(source: bytes | Path, image_format: ImageFormat | None) -> Picture:
    if image_format is None:
        return decode_image(source, MAX_PIXELS)
    return ChannelPicture.from_pixels(decode_pixels(source, _MAX_CHANNEL_PIXELS, image_format), image_format)


def read_upload(content: bytes, image_format: ImageFormat | None = None) -> Picture:
    """Decodes an uploaded file to an upright picture, RGB or of the model's format.

    Raises:
        UploadError: If it is no picture, broken or too large, or lacks a channel.
    """
    if len(content) > MAX_BYTES:
        size, limit = len(content) / 2**20, MAX_BYTES // 2**20
        raise UploadError(f"This file has {size:.0f} MiB; the demo takes up to {limit} MiB.")
    try:
        return _decode(content, image_format)
    except BrokenImageError as error:
        if "max_pixels" in error.reason:
            most = f"{MAX_PIXELS / 1e6:.0f} million pixels"
            if image_format is not None:
                most = f"{_MAX_CHANNEL_PIXELS / 1e6:.0f} million pixels of 16 bytes"
            raise UploadError(
                f"This picture has more than the {most} that the demo takes; please scale it down."
            ) from error
        if image_format is not None:
            raise UploadError(
                f"This file cannot be read as an image of this model, which takes {image_format.describe()}: "
                f"{without_arguments(error.reason)}."
            ) from error
        raise UploadError(
            "This file cannot be read as a picture; it may be damaged or of another kind. Please try a JPEG or PNG."
        ) from error


def describe_notes(notes: Sequence[Note]) -> str:
    """What decoding did to a file, in one line; nothing where it did nothing."""
    facts = dict.fromkeys(entry.facts for entry in notes)
    return f"Of this file: {'; '.join(facts)}." if facts else ""


def fit_picture(picture: Picture, size: tuple[int, int]) -> Picture:
    """The middle of a picture in the shape that the model sees, `(height, width)`, at the size of the page."""
    height, width = size
    scale = SIDE / max(size)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))

    def fit(image: Image.Image) -> Image.Image:
        return ImageOps.fit(image, shape, Image.Resampling.BICUBIC)

    return fit(picture) if isinstance(picture, Image.Image) else picture.mapped(fit)


def shrink_picture(picture: Picture) -> Picture:
    """A picture in its own shape, at most of the size of the page."""
    scale = min(1.0, SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def sample_pictures(folder: Path | None, image_format: ImageFormat | None = None) -> list[Picture]:
    """The sample pictures of a folder by name; without one scenes for models of RGB, and none for others.

    What decoding did to them is logged.

    Raises:
        ValueError: If the folder holds too few pictures, or one cannot be read.
    """
    if folder is None:
        return [*scene_pictures()] if image_format is None else []
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in EXTENSIONS)
    if len(paths) < 2:
        raise ValueError(f"samples must be a folder of two or more pictures, got {str(folder)!r} with {len(paths)}")
    pictures: list[Picture] = []
    noted: Counter[str] = Counter()
    for path in paths:
        try:
            with collect_notes() as notes:
                pictures.append(_decode(path, image_format))
        except BrokenImageError as error:
            raise ValueError(f"samples hold a picture that cannot be read: {path.name}: {error.reason}") from error
        noted.update({entry.kind for entry in notes})
    for line in describe_counts(noted, len(paths)):
        logger.warning("%s: %s", folder.name, line)
    return pictures


def data_url(picture: Image.Image) -> str:
    """A picture inside of the page: JPEG, or PNG where it has few colours."""
    buffer = io.BytesIO()
    flat = picture.getcolors(4096) is not None
    picture.save(buffer, "PNG" if flat else "JPEG", **({} if flat else {"quality": 88}))
    kind = "png" if flat else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def from_unit(image: torch.Tensor, size: tuple[int, int] | None = None) -> Image.Image:
    """An image `(3, height, width)` in [0, 1] as a picture, enlarged to `(width, height)` without smoothing."""
    picture = Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
    return picture if size is None else picture.resize(size, Image.Resampling.NEAREST)


def from_colors(colors: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """One colour a patch, `(rows, columns, 3)` in [0, 1], at a size `(width, height)`."""
    return from_unit(colors.permute(2, 0, 1), size)


def heat_map(picture: Image.Image, values: torch.Tensor) -> Image.Image:
    """Lays one value a patch, `(rows, columns)`, over a picture, from the smallest (dark blue) to the largest (yellow)."""
    share = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12) * (len(_HEAT) - 1)
    below = share.floor().long().clamp_max(len(_HEAT) - 2)
    colors = _HEAT[below] + (share - below)[..., None] * (_HEAT[below + 1] - _HEAT[below])
    return Image.blend(ImageOps.grayscale(picture).convert("RGB"), from_colors(colors / 255, picture.size), 0.65)


def cell_box(cell: tuple[int, int], grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels of a patch `(row, column)` over a picture of `(width, height)`."""
    (row, column), (rows, columns), (width, height) = cell, grid, size
    left, right = (round(edge * width / columns) for edge in (column, column + 1))
    top, bottom = (round(edge * height / rows) for edge in (row, row + 1))
    return left, top, right - 1, bottom - 1


def marked(picture: Image.Image, box: Sequence[int]) -> Image.Image:
    """A copy of a picture with a box outlined in black, white and blue, which is seen on any ground."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    # ring of so many pixels around the box, colour, width
    for ring, color, width in ((0, _BLACK, 1), (1, _WHITE, 1), (2, _BLUE, 1), (5, _BLUE, 3), (6, _BLACK, 1)):
        around = (box[0] - ring, box[1] - ring, box[2] + ring, box[3] + ring)
        draw.rectangle(around, outline=color, width=width)
    return picture


def marked_cell(picture: Image.Image, cell: tuple[int, int], grid: tuple[int, int]) -> Image.Image:
    """A copy of a picture with a patch `(row, column)` outlined."""
    return marked(picture, cell_box(cell, grid, picture.size))
