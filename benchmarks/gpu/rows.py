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


Value = Callable[[str, str, str], Any]  # of a section, a row and a field; None where it was not measured


def _steps(method: str) -> Callable[[Value], str]:
    def read(value: Value) -> str:
        speed, share = (value("step", method, f"compiled_{name}") for name in ("images_per_second", "share_of_rate"))
        return f"{speed:.0f} images/s; {100 * share:.0f} % of the square bf16 rate"

    return read


def _whole_runs(kind: str) -> Callable[[Value], str]:
    def read(value: Value) -> str:
        ours, theirs = (
            value("runs", row, "images_per_second") for row in (f"dino, {kind} views", f"lightly-train, {kind} views")
        )
        return f"{ours:.0f} images/s" + (f", {ours / theirs:.2f} x {theirs:.0f}" if theirs else ", no peer installed")

    return read


# by the beginning of a line of the table in benchmarks/README.md, how its last cell is read from the rows
READERS: Mapping[str, Callable[[Value], str]] = {
    "GTSA step": _steps("gtsa"),
    "LOCA step": _steps("loca"),
    "iBOT + EquiCoherent step": lambda value: (
        f"{value('step', 'equicoherent', 'compiled_ms') / value('step', 'ibot', 'compiled_ms'):.3f}"
    ),
    "augmentation": lambda value: "; ".join(
        f"{100 * value('step', method, 'augmentation_share'):.1f} %" for method in ("gtsa", "loca")
    ),
    "whole runs from files": _whole_runs("two"),
    "ten views": _whole_runs("ten"),
    "scenes, 64 px": lambda value: f"{value('scenes', 'dino', 'images_per_second'):.0f} images/s",
    "evaluation": lambda value: f"{value('evaluation', 'six tasks', 'seconds_of_tasks'):.0f} s",
}


def table(rows: list[Row]) -> str:
    """The table of benchmarks/README.md, targets and all, with what was measured in the last cell of lines that have a reader."""

    def value(section: str, row: str, field: str) -> Any:
        measured = [each[field] for each in rows if (each["section"], each["row"]) == (section, row) and field in each]
        return measured[-1] if measured else None

    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    head, rule, *lines = readme[readme.index("| H100, ") :].partition("\n\n")[0].splitlines()
    filled = [head, rule]
    for line in lines:
        reader = next((reader for start, reader in READERS.items() if line.startswith(f"| {start}")), None)
        if reader:
            try:
                line = f"{line.rstrip(' |').rpartition('|')[0]}| {reader(value)} |"
            except TypeError:  # a number is missing
                line = f"{line.rstrip(' |').rpartition('|')[0]}| not measured |"
            filled.append(line)
    return "\n".join(filled)
