"""Timing several functions side by side in one process: interleaved repeats, medians, ratios."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def interleave(
    functions: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """
    Runs every function in turn, `repeats` times after a round that warms up.

    Args:
        functions (`dict[str, Callable]`): What is timed, by name; on a GPU each must wait for the device itself.
        repeats (`int`): Rounds that count.
        clock (`Callable`): `time.perf_counter`, or `time.process_time` for CPU seconds where threads are fixed.

    Returns:
        `dict[str, list[float]]`: Seconds of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = clock()
            function()
            if repeat:
                seconds[name].append(clock() - start)
    return seconds


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """The median over rounds of the ratio within a round: what else the machine does falls on both."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def machine(device: str = "cpu") -> str:
    """What measured, without names of the host: device, threads and versions."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{platform.machine()} CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def show(result: dict[str, Any], as_json: bool) -> None:
    """Prints a result in one JSON line, or a line a number."""
    print(json.dumps(result) if as_json else "\n".join(f"{name}: {value}" for name, value in result.items()))
