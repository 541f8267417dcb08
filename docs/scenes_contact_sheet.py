"""Draws scenes of all three modes with their truth, and the frames of one clip: python docs/scenes_contact_sheet.py [FILE]"""

from __future__ import annotations

import colorsys
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from hf_geossl.data import SCENE_CLASSES, RenderedScene, label_names, sample_scene
from hf_geossl.data.scenes import render

PANEL = 136
GAP = 4
HEAD = 20
MARGIN = 8
SCENES_A_ROW = 2
COLUMNS = ("image and boxes", "semantic", "instance", "depth")
# Scenes of the validation split, chosen by eye for variety.
CHOSEN = (
    ("scene", 3),
    ("scene", 17),
    ("scene", 29),
    ("scene", 11),
    ("scene", 27),
    ("scene", 7),
    ("scene", 21),
    ("scene", 45),
    ("topdown", 0),
    ("topdown", 1),
    ("topdown", 12),
    ("topdown", 23),
    ("object", 2),
    ("object", 5),
)
CLIP_INDEX = 9
CLIP_FRAMES = 8
CLIP_STEP = 0.25  # seconds

SEMANTIC_COLORS = np.array(
    [
        (150, 200, 240), (120, 190, 90), (235, 215, 150), (50, 110, 200), (150, 150, 160), (190, 120, 90), (40, 110, 60),
        (20, 160, 60), (110, 90, 80), (230, 40, 60), (250, 150, 30), (130, 60, 140), (255, 230, 90), (30, 40, 120), (150, 80, 20),
        (240, 110, 190), (60, 220, 210),
    ],
    np.uint8,
)  # fmt: skip
DEPTH_COLORS = np.array([(253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84)], float)
INSTANCE_COLORS = np.array(
    [(28, 28, 34)] + [[255 * c for c in colorsys.hsv_to_rgb(0.618034 * n % 1, 0.65, 0.95)] for n in range(1, 256)]
).astype(np.uint8)


def with_boxes(rendered: RenderedScene) -> Image.Image:
    """The image with the box of each thing of at least 40 pixels in the color of its instance."""
    picture = Image.fromarray(rendered.image)
    draw = ImageDraw.Draw(picture)
    for item in rendered.objects:
        if item["area"] >= 40:
            x1, y1, x2, y2 = item["bbox"]
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=tuple(INSTANCE_COLORS[item["id"]].tolist()))
    return picture


def depth_colors(depth: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Near is yellow, far violet, on a logarithmic scale from 2 to 80 metres."""
    place = np.clip(np.log(depth / 2) / np.log(40), 0, 1) * (len(DEPTH_COLORS) - 1)
    channels = [np.interp(place, np.arange(len(DEPTH_COLORS)), DEPTH_COLORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def panels(rendered: RenderedScene) -> list[Image.Image]:
    """Image, semantic map, instance map and depth of one scene."""
    maps = (SEMANTIC_COLORS[rendered.semantic], INSTANCE_COLORS[rendered.instance], depth_colors(rendered.depth))
    return [with_boxes(rendered), *(Image.fromarray(colored) for colored in maps)]


def draw_sheet() -> Image.Image:
    """The whole sheet, RGB."""
    font = ImageFont.load_default(12)
    step = PANEL + GAP
    group = len(COLUMNS) * step + 2 * GAP
    rows = -(-len(CHOSEN) // SCENES_A_ROW)
    width = 2 * MARGIN + SCENES_A_ROW * group - 3 * GAP
    height = 2 * MARGIN + HEAD + rows * (step + HEAD) + HEAD + step
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number in range(SCENES_A_ROW):
        for column, name in enumerate(COLUMNS):
            draw.text((MARGIN + number * group + column * step, MARGIN), name, "black", font)
    for number, (mode, index) in enumerate(CHOSEN):
        rendered = render(sample_scene("validation", index, mode=mode), PANEL)
        left = MARGIN + number % SCENES_A_ROW * group
        top = MARGIN + HEAD + number // SCENES_A_ROW * (step + HEAD)
        draw.text((left, top + 2), f"{mode}: {label_names(mode)[rendered.label]}", "dimgray", font)
        for column, panel in enumerate(panels(rendered)):
            sheet.paste(panel, (left + column * step, top + HEAD))
    top = MARGIN + HEAD + rows * (step + HEAD)
    clip = sample_scene("validation", CLIP_INDEX)
    seconds = CLIP_STEP * (CLIP_FRAMES - 1)
    draw.text((MARGIN, top + 2), f"clip: {SCENE_CLASSES[clip.label]}, {seconds:g} s; the ids stay", "dimgray", font)
    for frame in range(CLIP_FRAMES):
        rendered = render(clip, PANEL, t=frame * CLIP_STEP)
        left = MARGIN + frame // len(COLUMNS) * group + frame % len(COLUMNS) * step
        sheet.paste(with_boxes(rendered), (left, top + HEAD))
    return sheet


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "scenes.png")
    # 256 colors without dithering: a third of the bytes, and hardly a difference to the eye.
    draw_sheet().quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
