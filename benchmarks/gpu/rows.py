"""What the sections of `benchmarks.gpu` share: where they run, what a measurement is, and the targets."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """Where and how large.

    Args:
        device (`str`): "cuda" or "cpu".
        tiny (`bool`): Sizes that show on a CPU that everything runs; the numbers say nothing.
        folder (`Path`): For files of all sections, such as the images.
        deadline (`float`): When the section has to have ended, by `time.time()`.
    """

    device: str
    tiny: bool
    folder: Path
    deadline: float

    @property
    def cuda(self) -> bool:
        """Whether this is a GPU."""
        return self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Seconds that the section still has."""
        return self.deadline - time.time()

    @property
    def workers(self) -> int:
        """Processes that load data: all cores but two."""
        return 0 if self.tiny else max(1, min(14, (os.cpu_count() or 1) - 2))

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()


Measurement = Callable[[Setup], Iterator[Row]]  # a row for each thing that it measures


def measure(section: str, measurements: Mapping[str, Measurement], setup: Setup) -> Iterator[Row]:
    """Runs the measurements of a section, each by itself: what fails, or has no time left, is a row that says so."""
    for name, measurement in measurements.items():
        place = {"section": section, "row": name}
        if setup.left <= 0:
            yield {**place, "failed": "not measured: the section's time is over"}
            continue
        began = time.time()
        try:
            for row in measurement(setup):
                yield {**place, **row}
        except Exception as error:  # whatever it is, the other rows are wanted
            reason = " ".join(str(error).split())[:300]
            yield {**place, "failed": f"{type(error).__name__}: {reason}"}
        if setup.cuda:
            torch.cuda.empty_cache()
        yield {**place, "seconds": round(time.time() - began, 1)}


def show(row: Row) -> str:
    """A row in one line of words."""
    values = {name: value for name, value in row.items() if name not in ("section", "row")}
    words = [
        f"{name} {json.dumps(value) if isinstance(value, list | dict) else value}" for name, value in values.items()
    ]
    return f"{row['section']:12} {row['row']:22} {', '.join(words)}"


@dataclass(frozen=True)
class Target:
    """A line of the table at the end: its words, and how the measured number is read from the rows."""

    name: str
    earlier: str  # at commit 6d263b4, on one H100
    target: str
    read: Callable[[Callable[[str, str, str], Any]], str | None]

    def line(self, rows: list[Row]) -> str:
        """The line as one of a Markdown table."""

        def value(section: str, row: str, field: str) -> Any:
            found = [
                each[field] for each in rows if each["section"] == section and each["row"] == row and field in each
            ]
            return found[-1] if found else None

        try:
            measured = self.read(value)
        except TypeError:  # a number is missing
            measured = None
        return f"| {self.name} | {self.earlier} | {self.target} | {measured or 'not measured'} |"


def _peer(kind: str) -> Callable[[Callable[[str, str, str], Any]], str]:
    def read(value: Callable[[str, str, str], Any]) -> str:
        ours, theirs = (
            value("runs", row, "images_per_second") for row in (f"dino, {kind} views", f"lightly-train, {kind} views")
        )
        return f"{ours:.0f} images/s" + (f", {ours / theirs:.2f} x {theirs:.0f}" if theirs else ", no peer installed")

    return read


TARGETS = (
    Target(
        "GTSA step, 2 x 224 + 8 x 96, batch 128, bf16", "865 images/s; 132 TFLOP/s", ">= 1,800; >= 40 % of the square bf16 rate",
        lambda value: f"{value('step', 'gtsa', 'compiled_images_per_second'):.0f} images/s; "
        f"{100 * value('step', 'gtsa', 'compiled_share_of_rate'):.0f} %",
    ),
    Target(
        "LOCA step", "967 images/s", ">= 2,000",
        lambda value: f"{value('step', 'loca', 'compiled_images_per_second'):.0f} images/s",
    ),
    Target(
        "iBOT + EquiCoherent step against its host's", "not measured", "<= 1.09",
        lambda value: f"{value('step', 'equicoherent', 'compiled_ms') / value('step', 'ibot', 'compiled_ms'):.3f}",
    ),
    Target(
        "augmentation on the device against the step: GTSA, LOCA", "6 %, 17 %", "<= 10 %",
        lambda value: ", ".join(f"{100 * value('step', method, 'augmentation_share'):.1f} %" for method in ("gtsa", "loca")),
    ),
    Target("whole runs from files, two views (DINO)", "831 (start included) beside 608", ">= 3 x lightly-train", _peer("two")),
    Target("the same, ten views", "566 (start included) beside 368", ">= 4 x lightly-train", _peer("ten")),
    Target(
        "scenes, 64 px, ViT 192 x 12, batch 512", "4,300 images/s", ">= 10,000",
        lambda value: f"{value('scenes', 'dino', 'images_per_second'):.0f} images/s",
    ),
    Target(
        "evaluation, six tasks, 4,000 images", "over 160 s for three of 3,000", "<= 90 s",
        lambda value: f"{value('evaluation', 'six tasks', 'seconds_of_tasks'):.0f} s",
    ),
)  # fmt: skip


def table(rows: list[Row]) -> str:
    """The targets and what was measured, as a Markdown table."""
    head = "| | at 6d263b4, one H100 | target | measured |\n|---|---|---|---|"
    return "\n".join([head, *(target.line(rows) for target in TARGETS)])
