"""How long an evaluation will take, said before it starts: counts of work by task, times what a short probe measures of each kind."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.settings import ProtocolSettings, Scale, Work

PROBED = 8  # images that are read and encoded to know the speed
SIDE = 768  # of the matrices that are multiplied for it
FIXED = 1.0  # seconds a task: intervals, files, pictures


@dataclass(frozen=True)
class Speed:
    """Seconds of each kind of work on this machine: to read an image, to encode it, a step in Python, an operation."""

    image: float
    encoding: float
    step: float
    operation: float


def measure_speed(encoder: Encoder, data: EvaluationData, options: EvaluationOptions) -> Speed:
    """Reads and encodes a few test images, and multiplies two matrices; each once before it is timed."""
    reader = iter(data.test)
    first = next(reader)
    start = time.perf_counter()
    samples = [first, *islice(reader, PROBED)]
    reading = (time.perf_counter() - start) / max(1, len(samples) - 1) / max(1, options.num_workers)
    # a batch has all of its images, be they the same
    images = torch.stack([sample["image"] for sample in samples])
    # more of small ones, since on busy cores threads wait longer for each other than they work on 8 of 48 pixels
    count = min(options.batch_size, max(PROBED, PROBED * 224**2 // data.size**2))
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]

    @torch.no_grad()
    def encode() -> None:
        with mixed_precision(encoder.device):
            encoder.tokens(encoder.normalize(images)).pooled.float().cpu()

    matrix = torch.ones(SIDE, SIDE, device=encoder.device)

    def multiply() -> None:
        (matrix @ matrix)[0, 0].item()

    rate = 2 * SIDE**3
    return Speed(reading, _seconds_of(encode) / len(images), 1e-3, _seconds_of(multiply) / rate)


def _seconds_of(work: Callable[[], None], repeats: int = 2) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def estimate(tasks: Mapping[str, Work], speed: Speed) -> dict[str, float]:
    """Seconds by task, in order; images that several tasks read cost the first of them alone."""
    seconds, known = {}, dict[str, float]()
    for name, work in tasks.items():
        new = sum(max(0.0, count - known.get(kind, 0.0)) for kind, count in work.images.items())
        known |= {kind: max(count, known.get(kind, 0.0)) for kind, count in work.images.items()}
        seconds[name] = (
            FIXED
            + new * speed.image
            + work.encoded * speed.encoding
            + work.steps * speed.step
            + work.operations * speed.operation
        )
    return seconds


def duration_line(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, chosen: Mapping[str, object]
) -> str | None:
    """How long tasks with these settings will take, such as `about 3 min (knn 20 s, segmentation 2 min)`.

    None where nobody knows how many images there are, as of a stream without a limit, or no images can be read.
    """
    known = {name: own for name, own in chosen.items() if isinstance(own, ProtocolSettings)}
    if data.is_clips or not known:
        return None
    try:
        counts = [samples.count if samples.count is not None else data.limit for samples in (data.train, data.test)]
        speed = None if None in counts else measure_speed(encoder, data, options)
    except ValueError:  # the tasks say what is wrong with the data
        return None
    if speed is None:
        return None
    train, test = (count or 0 for count in counts)
    modes = 2 if data.is_scenes and data.mode != "topdown" else 1
    tokens = (data.size // encoder.patch_size) ** 2
    channels = data.image_format.num_channels if data.image_format else 3
    scale = Scale(train, test, encoder.width, tokens, data.size**2, channels, modes)
    seconds = estimate({name: own.work(scale) for name, own in known.items()}, speed)
    parts = ", ".join(f"{name} {_in_words(value)}" for name, value in seconds.items())
    total = f"about {_in_words(sum(seconds.values()))}"
    return f"{total} ({parts})" if len(seconds) > 1 else f"{total} for {next(iter(seconds))}"


def _in_words(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
