"""The learning curve of a run: what its instruments have measured over its steps, each beside its floors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_geossl.methods import LEARNING_CURVE
from hf_geossl.training.monitors.instruments import INSTRUMENTS
from hf_geossl.training.monitors.probes import Probes
from hf_geossl.training.outputs.attempts import attempt
from hf_geossl.training.pictures.base import save_picture

COLUMNS, WIDTH, HEIGHT, SCALE = 5, 210, 190, 2  # panels in a row, and their size in pixels of a card
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 26, 24  # around the axes of a panel
TEXT, SMALL = 13, 10  # sizes of type
CURVE, INK, GRID = "#1f5fa8", "#222222", "#dddddd"
FLOORS = {"random weights": "#c05a1c", "thumbnail": "#2d8a4e", "chance": "#777777", "guessing": "#777777"}
LEFT_OUT = ("target_spread",)  # says of collapse alone


@dataclass(frozen=True)
class Panel:
    """One quantity: points `(step, value)`, and levels by the name of the floor."""

    title: str
    points: Sequence[tuple[int, float]]
    floors: Mapping[str, float]
    is_share: bool = False

    def written(self, value: float) -> str:
        """A value as the panel shows it."""
        return f"{100 * value:.0f} %" if self.is_share else f"{value:.3g}"


def panels(history: Sequence[Mapping[str, float]], floors: Mapping[str, Mapping[str, float]]) -> list[Panel]:
    """The panels of a log (`TrainerState.log_history`): of each instrument that was read, and the loss."""
    found = []
    for name, title in {**INSTRUMENTS, "loss": "loss"}.items():
        lines = [entry for entry in history if name in entry and (name == "loss" or "rankme" in entry)]
        if lines and name not in LEFT_OUT:
            points = [(int(entry["step"]), float(entry[name])) for entry in lines]
            found.append(Panel(title, points, floors.get(name, {}), name.endswith("_accuracy")))
    return found


def draw_curves(shown: Sequence[Panel]) -> Image.Image:
    """Draws panels in rows of five, floors as dashed lines."""
    rows, columns = -(-len(shown) // COLUMNS), min(len(shown), COLUMNS)
    sheet = Image.new("RGB", (columns * WIDTH * SCALE, (rows * HEIGHT + 20) * SCALE), "white")
    draw = ImageDraw.Draw(sheet)
    for place, panel in enumerate(shown):
        _draw_panel(draw, panel, place % COLUMNS * WIDTH, place // COLUMNS * HEIGHT)
    x, y = 12, rows * HEIGHT + 2
    drawn = {name for panel in shown for name in panel.floors}
    for name, colour in {"this model": CURVE, **{name: FLOORS[name] for name in FLOORS if name in drawn}}.items():
        _line(draw, [(x, y + 7), (x + 24, y + 7)], colour, dashed=name in FLOORS)
        draw.text(((x + 30) * SCALE, y * SCALE), name, INK, _font(SMALL))
        x += 44 + round(_font(SMALL).getlength(name) / SCALE)
    return sheet


def _draw_panel(draw: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
    x0, x1, y0, y1 = left + LEFT, left + WIDTH - RIGHT, top + TOP, top + HEIGHT - BOTTOM
    levels = [*(value for _, value in panel.points), *panel.floors.values()]
    low, high = min(levels), max(levels)
    margin = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
    low, high = low - margin, high + margin
    if panel.is_share:
        low, high = max(low, 0.0), min(high, 1.0)
    last = max(step for step, _ in panel.points)

    def place(step: float, value: float) -> tuple[float, float]:
        return x0 + step / max(last, 1) * (x1 - x0), y1 - (value - low) / (high - low) * (y1 - y0)

    draw.text(((x0 - 6) * SCALE, (top + 5) * SCALE), panel.title, INK, _font(TEXT))
    draw.text((x1 * SCALE, (top + 7) * SCALE), panel.written(panel.points[-1][1]), CURVE, _font(SMALL + 1), anchor="ra")
    for value in _ticks(low, high):
        y = place(0, value)[1]
        _line(draw, [(x0, y), (x1, y)], GRID)
        draw.text(((x0 - 4) * SCALE, y * SCALE), panel.written(value), INK, _font(SMALL), anchor="rm")
    for step, anchor in ((0, "la"), (last, "ra")):
        text = f"{step:,}" if anchor == "la" else f"step {step:,}"
        draw.text((place(step, low)[0] * SCALE, (y1 + 5) * SCALE), text, INK, _font(SMALL), anchor=anchor)
    for name, value in panel.floors.items():
        y = place(0, value)[1]
        _line(draw, [(x0, y), (x1, y)], FLOORS.get(name, INK), dashed=True)
    _label_floors(draw, {name: place(0, value)[1] for name, value in panel.floors.items()}, x1, (y0, y1))
    points = [place(step, value) for step, value in panel.points]
    if len(points) > 1:
        _line(draw, points, CURVE, width=2)
    for x, y in points if len(points) <= 40 else points[-1:]:
        draw.ellipse([((x - 2) * SCALE), (y - 2) * SCALE, (x + 2) * SCALE, (y + 2) * SCALE], fill=CURVE)


def _label_floors(draw: ImageDraw.ImageDraw, places: Mapping[str, float], right: int, ends: tuple[int, int]) -> None:
    """Writes the floors' names over their lines, moved apart where these are close."""
    lowest = float("inf")
    for name, y in sorted(places.items(), key=lambda item: -item[1]):
        y = min(max(y - 1, ends[0] + SMALL), lowest - SMALL)
        lowest = y
        box = draw.textbbox((right * SCALE, y * SCALE), name, _font(SMALL - 1), anchor="rb")
        draw.rectangle(box, fill="white")
        draw.text((right * SCALE, y * SCALE), name, FLOORS.get(name, INK), _font(SMALL - 1), anchor="rb")


def _ticks(low: float, high: float) -> list[float]:
    """Three or four round values between two."""
    rough = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.75)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _line(
    draw: ImageDraw.ImageDraw,
    points: Sequence[tuple[float, float]],
    colour: str,
    *,
    width: int = 1,
    dashed: bool = False,
) -> None:
    scaled = [(x * SCALE, y * SCALE) for x, y in points]
    if not dashed:
        draw.line(scaled, fill=colour, width=width * SCALE, joint="curve")
        return
    (x, y), (end, _) = scaled
    while x < end:
        draw.line([(x, y), (min(x + 5 * SCALE, end), y)], fill=colour, width=SCALE)
        x += 8 * SCALE


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


class LearningCurve(TrainerCallback):
    """Draws the learning curve into the folder of the run, after each measurement.

    Args:
        run_dir (`Path`): Folder of the run.
        probes (`Probes`): For the floors.
    """

    def __init__(self, run_dir: Path, probes: Probes) -> None:
        self.run_dir, self.probes = run_dir, probes

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Draws the log so far, where this line has a measurement."""
        if "rankme" in (logs or {}) and state.is_world_process_zero:
            attempt(LEARNING_CURVE.file, self._draw, "the run goes on, and draws it again", state)

    def _draw(self, state: TrainerState) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        curves = draw_curves(panels(state.log_history, self.probes.floors))
        save_picture(curves, self.run_dir / LEARNING_CURVE.file)
