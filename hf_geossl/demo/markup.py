"""Pieces of the page: figures with captions, the strip of pictures to choose from, bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from hf_geossl.demo.pictures import data_url

_THUMBNAIL = 96


@dataclass
class Figure:
    """A picture with its caption.

    Args:
        picture (`PIL.Image.Image`): The picture.
        caption (`str`): What it shows, in plain text.
        kind (`str`, *optional*): `"pick"` where it is clicked, `"box"` where a box is drawn on it.
        place (`(x, y)`): What is picked now, in shares of the sides; arrow keys move it.
        grid (`(rows, columns)`): Patches that they move it over.
        rough (`bool`): Whether its pixels stay visible where it is enlarged.
    """

    picture: Image.Image
    caption: str
    kind: str | None = None
    place: tuple[float, float] = (0.5, 0.5)
    grid: tuple[int, int] = (1, 1)
    rough: bool = False


def figures(*shown: Figure, columns: int = 3, narrow: int = 2) -> str:
    """Figures in `columns` columns, in `narrow` ones on a phone, where what can be clicked has a row for itself."""
    grid = "".join(map(_figure, shown))
    return f'<div class="geo-figures" style="--columns: {columns}; --narrow: {narrow}">{grid}</div>'


def _figure(figure: Figure) -> str:
    image = f'<img src="{data_url(figure.picture)}" alt="{escape(figure.caption)}" draggable="false">'
    if figure.kind is not None:
        (x, y), (rows, columns) = figure.place, figure.grid
        image = (
            f'<div class="geo-picture" tabindex="0" data-kind="{figure.kind}" data-x="{x:.6f}" data-y="{y:.6f}" '
            f'data-rows="{rows}" data-columns="{columns}">{image}</div>'
        )
    rough = ' class="geo-rough"' if figure.rough else ""
    return f"<figure{rough}>{image}<figcaption>{escape(figure.caption)}</figcaption></figure>"


def said(text: str) -> str:
    """A sentence under the figures."""
    return f'<p class="geo-said">{escape(text)}</p>'


def strip(pictures: Sequence[Image.Image], chosen: int, upload: Image.Image | None, name: str) -> str:
    """Pictures to choose from, in one row that scrolls by itself.

    Args:
        pictures (`Sequence[PIL.Image.Image]`): The samples.
        chosen (`int`): Index of the chosen one, -1 for the upload.
        upload (`PIL.Image.Image`, *optional*): What has been uploaded; it stands first.
        name (`str`): What is chosen, for those who do not see it.

    Returns:
        `str`: HTML.
    """
    offered = [(-1, upload, "the uploaded picture")] if upload is not None else []
    shown = [*offered, *((index, picture, f"sample {index + 1}") for index, picture in enumerate(pictures))]
    buttons = []
    for index, picture, label in shown:
        small = picture.copy()
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        pressed = "true" if index == chosen else "false"
        buttons.append(
            f'<button type="button" data-index="{index}" aria-pressed="{pressed}" aria-label="{escape(name)}: {label}">'
            f'<img src="{data_url(small)}" alt=""></button>'
        )
    return f'<div class="geo-strip" role="group" aria-label="{escape(name)}">{"".join(buttons)}</div>'


def bars(names: Sequence[str], shares: Sequence[float], true: int) -> str:
    """Shares as bars; the name of the true one is bold."""
    rows = [
        f'<span class="{"true" if index == true else "other"}">{escape(name)}</span>'
        f'<span class="track"><span style="width: {100 * share:.2f}%"></span></span><span>{100 * share:.1f}%</span>'
        for index, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    return f'<div class="geo-bars">{"".join(rows)}</div>'
