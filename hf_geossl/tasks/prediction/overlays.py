"""Pictures that people look at: predictions over their images, with a legend of the classes."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from hf_geossl.data.fonts import font_for
from hf_geossl.tasks.prediction.map_files import class_colors
from hf_geossl.tasks.prediction.predictors import Objects

# from near (bright) to far (dark): anchors of matplotlib's viridis, in its reverse order
_DEPTHS = np.array(
    [(253, 231, 37), (144, 215, 67), (53, 183, 121), (33, 145, 140), (49, 104, 142), (68, 57, 131), (68, 1, 84)],
    np.float32,
)
_SMALLEST = 448  # pixels of the longer side, to which smaller images are enlarged
_GAP, _SWATCH, _TEXT = 8, 16, 14  # of pictures up to 840 pixels wide; larger ones are looked at in less than their size
_INK, _PAPER, _NO_VALUE = (34, 34, 34), (255, 255, 255), (140, 140, 140)
_MOST_ENTRIES = 40  # of a legend

Entry = tuple[str, tuple[int, ...] | None]  # of a legend: a text, and a colour


def _scale(width: int) -> float:
    """By how much marks and texts of a picture are enlarged, so that they are read when it is fitted to a screen."""
    return max(1.0, width / (60 * _TEXT))


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height at which an image is shown: small ones are enlarged by a whole number."""
    scale = max(1, round(_SMALLEST / max(picture.size)))
    return picture.width * scale, picture.height * scale


def mask_overlay(picture: Image.Image, classes: np.ndarray, count: int, no_value: int) -> Image.Image:
    """Lays classes over an image, their borders opaque; grey where there is no value.

    Args:
        picture (`PIL.Image.Image`): RGB.
        classes (`numpy.ndarray` of the picture's `(height, width)`): numbers of classes.
        count (`int`): of classes.
        no_value (`int`): the number that is none.
    """
    colors = np.concatenate([class_colors(count), [_NO_VALUE]]).astype(np.float32)
    size = shown_size(picture)
    numbers = np.where(classes == no_value, count, np.minimum(classes, count)).astype(np.int32)
    enlarged = np.asarray(Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST))
    image = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.float32)
    border = np.zeros(enlarged.shape, bool)
    border[1:] |= enlarged[1:] != enlarged[:-1]
    border[:, 1:] |= enlarged[:, 1:] != enlarged[:, :-1]
    share = np.where(border, 1.0, 0.5)[..., None].astype(np.float32)
    painted = image * (1 - share) + colors[enlarged] * share
    return Image.fromarray(np.round(painted).astype(np.uint8))


def _called(name: str) -> str:
    """A class in a legend, where a name that is a number would read as one."""
    return f"class {name}" if name.isdigit() else name


def mask_legend(shares: Sequence[float], names: Sequence[str]) -> list[Entry]:
    """The classes that occur with their shares of the pixels, largest first."""
    colors = class_colors(len(names)).tolist()
    order = sorted(range(len(names)), key=lambda index: -shares[index])
    return [
        (f"{_called(names[index])} {_percent(shares[index])}", tuple(colors[index]))
        for index in order
        if shares[index] > 0
    ]


def depth_overlay(picture: Image.Image, depth: np.ndarray) -> tuple[Image.Image, tuple[float, float]]:
    """Puts an image and its depth side by side, near bright and far dark; grey where there is no value.

    Args:
        picture (`PIL.Image.Image`): RGB.
        depth (`numpy.ndarray` of the picture's `(height, width)`): float32.

    Returns:
        `tuple`: the picture, and the depths of its two ends, the 1st and 99th percentile.
    """
    known = depth[np.isfinite(depth)]
    near, far = (float(value) for value in np.percentile(known, (1, 99))) if known.size else (0.0, 1.0)
    place = np.clip((np.nan_to_num(depth) - near) / max(far - near, 1e-12), 0, 1)
    colored = _depth_colors(place)
    colored[~np.isfinite(depth)] = _NO_VALUE
    size = shown_size(picture)
    both = Image.new("RGB", (2 * size[0] + _GAP, size[1]), _PAPER)
    both.paste(picture.resize(size, Image.Resampling.BILINEAR), (0, 0))
    both.paste(Image.fromarray(colored).resize(size, Image.Resampling.NEAREST), (size[0] + _GAP, 0))
    return both, (near, far)


def depth_halves(overlay: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The image and the depth that `depth_overlay` has put side by side."""
    width = (overlay.width - _GAP) // 2
    return overlay.crop((0, 0, width, overlay.height)), overlay.crop((width + _GAP, 0, overlay.width, overlay.height))


def depth_legend(ends: tuple[float, float], unit: str = "") -> list[Entry]:
    """Five depths from one end of the scale to the other with their colours, and their unit where it is known."""
    places = np.linspace(0, 1, 5)
    colors = _depth_colors(places).tolist()
    return [
        (f"{ends[0] + place * (ends[1] - ends[0]):.3g}{unit}", tuple(color))
        for place, color in zip(places, colors, strict=True)
    ]


def depth_scale() -> list[Entry]:
    """Which colours many depths have side by side, each picture on a scale of its own."""
    near, far = _depth_colors(np.array([0.0, 1.0])).tolist()
    return [("smallest", tuple(near)), ("largest depth in each picture", tuple(far))]


def _depth_colors(places: np.ndarray) -> np.ndarray:
    """Colours of places from 0 (near) to 1 (far): `(...)` -> uint8 `(..., 3)`."""
    anchors = np.linspace(0, 1, len(_DEPTHS))
    channels = [np.interp(places, anchors, _DEPTHS[:, channel]) for channel in range(3)]
    colors: np.ndarray = np.round(np.stack(channels, axis=-1)).astype(np.uint8)
    return colors


def boxes_overlay(picture: Image.Image, objects: Objects, names: Sequence[str], size: tuple[int, int]) -> Image.Image:
    """Draws boxes with classes and scores over an image, the surest on top.

    Args:
        picture (`PIL.Image.Image`): RGB.
        objects ([`Objects`]): of the image.
        names (`Sequence[str]`): of the classes.
        size (`(int, int)`): width and height of the image, in whose pixels the boxes are.
    """
    shown = picture.resize(shown_size(picture), Image.Resampling.BILINEAR)
    times = _scale(shown.width)
    text_size, line = round(_TEXT * times), round(2 * times)
    pen, font = ImageDraw.Draw(shown), font_for(text_size, *names)
    colors = class_colors(len(names)).tolist()
    scale = np.array([shown.width / size[0], shown.height / size[1]] * 2)
    for box, label, score in list(zip(objects.boxes, objects.labels, objects.scores, strict=True))[::-1]:
        x1, y1, x2, y2 = (float(value) for value in box * scale)
        color = tuple(colors[int(label)])
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_PAPER, width=line + 2)
        pen.rectangle((x1, y1, x2, y2), outline=color, width=line)
        text = f"{names[int(label)]} {score:.2f}"
        wide, high = pen.textlength(text, font) + 6, text_size + 4
        left, top = max(0, min(x1, shown.width - wide)), y1 - high if y1 > high else y1
        pen.rectangle((left, top, left + wide, top + high), fill=color)
        pen.text((left + 3, top + 1), text, _ink_on(color), font)
    return shown


def boxes_legend(objects: Objects, names: Sequence[str]) -> list[Entry]:
    """The classes that occur and how often, most frequent first."""
    colors = class_colors(len(names)).tolist()
    counts = np.bincount(objects.labels, minlength=len(names))
    order = sorted(range(len(names)), key=lambda index: -counts[index])
    found: list[Entry] = [
        (f"{_called(names[index])}: {counts[index]}", tuple(colors[index])) for index in order if counts[index]
    ]
    return found or [("nothing found", None)]


def label_legend(probabilities: np.ndarray, names: Sequence[str], most: int = 5) -> list[Entry]:
    """The surest classes with their probabilities."""
    order = np.argsort(-probabilities, kind="stable")[:most]
    return [(f"{_called(names[index])} {_percent(float(probabilities[index]))}", None) for index in order]


def with_legend(picture: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """Puts a legend below a picture; where there is too little room its entries are cut, and those beyond 40 counted."""
    if not entries:
        return picture
    left_out = len(entries) - _MOST_ENTRIES
    entries = [*entries[:_MOST_ENTRIES], *([(f"and {left_out} more", None)] if left_out > 0 else [])]
    times = _scale(picture.width)
    gap, swatch = round(_GAP * times), round(_SWATCH * times)
    font = font_for(round(_TEXT * times), *(text for text, _ in entries))
    width = max(picture.width, 240)
    rows: list[list[tuple[Entry, int]]] = [[]]  # entries and where they begin
    used = gap
    for entry in entries:
        needed = int(font.getlength(entry[0])) + (swatch + 5 if entry[1] is not None else 0) + 2 * gap
        if rows[-1] and used + needed > width:
            rows.append([])
            used = gap
        rows[-1].append((entry, used))
        used += needed
    sheet = Image.new("RGB", (width, picture.height + (swatch + gap) * len(rows) + gap), _PAPER)
    sheet.paste(picture, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = picture.height + gap + number * (swatch + gap)
        for (text, color), left in row:
            if color is not None:
                pen.rectangle((left, top, left + swatch, top + swatch), fill=color, outline=_INK)
            pen.text((left if color is None else left + swatch + 5, top), text, _INK, font)
    return sheet


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def _ink_on(color: tuple[int, ...]) -> tuple[int, int, int]:
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    return (0, 0, 0) if bright else (255, 255, 255)
