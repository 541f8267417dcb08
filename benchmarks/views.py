"""
What views cost on one core: `python -m benchmarks.views --json`.

Ours against the same views written plainly with Pillow and torchvision, from JPEG files of 640 x 480 in memory, one thread,
CPU seconds, interleaved, medians. Two shares of the work are measured: everything (to normalised float tensors), and what
a worker does when the device colours (decoding, crops and their geometry, stacked in uint8). `--scaling` measures the cost
against the batch and the number of views instead, `--profile PICTURE` where the time goes.
"""

import argparse
import inspect
import io
import json
import pkgutil
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import skimage.data
import sklearn.datasets
import torch
from PIL import Image

from benchmarks.baseline_views import BASELINES
from benchmarks.interleave import interleave, machine, median_ratio, show
from hf_geossl import EquiCoherentViews, GTSAViews, LOCAViews
from hf_geossl.data.images import decode_pixels
from hf_geossl.views.base import Batch, Views

TARGETS = {"worker_ratio": ">= 4"}
BEFORE = Path(__file__).parent / "results" / "views_before.json"

# What is called in each stage; time inside another stage counts there only.
OUR_STAGES = {
    f"{__name__}.decode_pixels": "decode",
    "hf_geossl.views.gtsa.read_pixels": "decode",
    "hf_geossl.views.gtsa.GTSAViews.draw_boxes": "geometry",
    "hf_geossl.views.gtsa.cut_crops": "crops",
    "hf_geossl.views.gtsa.GTSAViews.collate": "stack",
    "hf_geossl.views.gtsa.quarter_turn": "turn",
    "hf_geossl.views.base.render_color": "colour, normalise",
    "hf_geossl.views.photometric.gaussian_blur": "blur",
}
BASELINE_STAGES = {
    "benchmarks.baseline_views.decode": "decode",
    "benchmarks.baseline_views.GTSABaseline.draw_boxes": "geometry",
    "benchmarks.baseline_views.GTSABaseline.cut_views": "crops",
    "PIL.Image.Image.rotate": "turn",
    "torchvision.transforms.ColorJitter.forward": "colour, normalise",
    "torchvision.transforms.RandomGrayscale.forward": "colour, normalise",
    "torchvision.transforms.ToTensor.__call__": "colour, normalise",
    "torchvision.transforms.Normalize.forward": "colour, normalise",
    "benchmarks.baseline_views.RandomBlur.__call__": "blur",
}
REST = "rest"


def jpeg_photographs(width: int = 640, height: int = 480, quality: int = 90) -> list[bytes]:
    """Photographs of scikit-image and scikit-learn as JPEG files of one size, scaled to cover it and cut about the centre."""
    arrays = [*sklearn.datasets.load_sample_images().images]
    arrays += [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    files = []
    for array in arrays:
        image = Image.fromarray(np.asarray(array))
        share = max(width / image.width, height / image.height)
        image = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        buffer = io.BytesIO()
        image.crop((left, top, left + width, top + height)).save(buffer, "JPEG", quality=quality)
        files.append(buffer.getvalue())
    return files


def make_views(method: str) -> Views:
    """The method's views with its defaults; EquiCoherent's without the path, which its baseline does not have."""
    return {"gtsa": GTSAViews, "loca": LOCAViews, "equicoherent": lambda: EquiCoherentViews(transformation=None)}[
        method
    ]()


class Contest:
    """One method's views of `batch_size` files, ours and the baseline's; every call takes new random numbers."""

    def __init__(self, method: str, batch_size: int) -> None:
        files = jpeg_photographs()
        self.files = [files[i % len(files)] for i in range(batch_size)]
        self.views, self.plain = make_views(method), BASELINES[method]()
        self.generator, self.seed = torch.Generator().manual_seed(0), 0
        random.seed(0)
        torch.manual_seed(0)

    def worker(self) -> Batch:
        """Decoded, cut, stacked: uint8."""
        self.seed += len(self.files)
        samples = [self.views(decode_pixels(file), seed=self.seed + i) for i, file in enumerate(self.files)]
        return self.views.collate(samples)

    def everything(self) -> dict[str, torch.Tensor | None]:
        """The arguments of the model."""
        return self.views.augment(self.worker(), self.generator)

    def baseline(self) -> list[torch.Tensor]:
        """The same by the baseline."""
        return [torch.stack(parts) for parts in zip(*map(self.plain, self.files), strict=True)]


def compare(method: str, batch_size: int, repeats: int) -> dict[str, Any]:
    """Milliseconds an image, ours and the baseline's."""
    contest = Contest(method, batch_size)
    functions: dict[str, Callable[[], Any]] = {
        "baseline": contest.baseline,
        "ours": contest.everything,
        "worker_ours": contest.worker,
    }
    seconds = interleave(functions, repeats, time.process_time)
    milliseconds = {name: round(1000 * statistics.median(seconds[name]) / batch_size, 3) for name in functions}
    result = {
        "what": f"CPU milliseconds an image of the views of {method} from JPEG of 640 x 480, batch {batch_size}",
        **milliseconds,
        "ratio": round(median_ratio(seconds["baseline"], seconds["ours"]), 2),
        "worker_ratio": round(median_ratio(seconds["baseline"], seconds["worker_ours"]), 2),
        "machine": machine(),
    }
    return result | ({"targets": TARGETS} if method == "gtsa" else {})


def scaling(repeats: int) -> dict[str, Any]:
    """GTSA's milliseconds an image against the batch and against the number of local views."""
    contest = Contest("gtsa", 16)
    small = contest.worker()
    batches = {
        size: {key: value.repeat(size // 16, *[1] * (value.ndim - 1)) for key, value in small.items()}
        for size in (16, 32, 64, 128, 256, 512)
    }
    augment = {
        str(size): (lambda batch=batch: contest.views.augment(batch, contest.generator))
        for size, batch in batches.items()
    }
    seconds = interleave(augment, repeats, time.process_time)
    by_batch = {size: round(1000 * statistics.median(seconds[size]) / int(size), 3) for size in seconds}

    images = [decode_pixels(file) for file in contest.files]
    kinds = {count: GTSAViews(num_local=count) for count in (0, 4, 8, 16, 32)}
    cut = {
        str(count): (lambda views=views: [views(image, seed=i) for i, image in enumerate(images)])
        for count, views in kinds.items()
    }
    seconds = interleave(cut, repeats, time.process_time)
    by_views = {count: round(1000 * statistics.median(seconds[count]) / len(images), 3) for count in seconds}
    return {
        "what": "CPU milliseconds an image: augment by batch, views by number of local views beside 2 global",
        "augment_by_batch": by_batch,
        "views_by_local_views": by_views,
        "machine": machine(),
    }


class Stopwatch:
    """CPU seconds spent in named functions, each without the time of others that it calls."""

    def __init__(self, stages: dict[str, str]) -> None:
        self.stages, self.seconds = stages, dict.fromkeys([*stages.values(), REST], 0.0)
        self._running, self._since = REST, 0.0

    def _switch(self, stage: str) -> str:
        now, before = time.process_time(), self._running
        self.seconds[before] += now - self._since
        self._running, self._since = stage, now
        return before

    def _watched(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            outer = self._switch(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch(outer)

        return call

    def run(self, function: Callable[[], Any], repeats: int) -> None:
        """Calls a function `repeats` times while the stages are watched, after one call that warms up."""
        function()
        with ExitStack() as stack:
            for place, stage in self.stages.items():
                owner_name, name = place.rsplit(".", 1)
                owner = pkgutil.resolve_name(owner_name)
                original = getattr(owner, name)
                watched = self._watched(original, stage)
                replacement = (
                    staticmethod(watched) if isinstance(inspect.getattr_static(owner, name), staticmethod) else watched
                )
                stack.enter_context(mock.patch.object(owner, name, replacement))
            self._running, self._since = REST, time.process_time()
            for _ in range(repeats):
                function()
            self._switch(REST)


def profile(batch_size: int, repeats: int) -> dict[str, Any]:
    """CPU milliseconds an image of each stage of GTSA's views, ours and the baseline's."""
    contest = Contest("gtsa", batch_size)
    result: dict[str, Any] = {"what": f"CPU milliseconds an image by stage, GTSA, batch {batch_size}"}
    runs = (("baseline", contest.baseline, BASELINE_STAGES), ("ours", contest.everything, OUR_STAGES))
    for name, function, places in runs:
        watch = Stopwatch(places)
        watch.run(function, repeats)
        images = batch_size * repeats
        result[name] = {stage: round(1000 * seconds / images, 3) for stage, seconds in watch.seconds.items()}
    return result | {"machine": machine()}


def draw_profile(bars: dict[str, dict[str, float]], picture: Path) -> None:
    """A bar a program, its stages side by side, total at the end."""
    from matplotlib import pyplot

    stages = [*OUR_STAGES.values(), REST]
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.8 * len(bars)), layout="constrained")
    colors = pyplot.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for row, times in enumerate(bars.values()):
        left = 0.0
        for index, stage in enumerate(dict.fromkeys(stages)):
            width = times.get(stage, 0.0)
            axes.barh(row, width, left=left, color=colors[index % 10], label=stage if row == 0 else None)
            if width > 0.03 * max(sum(times.values()) for times in bars.values()):
                axes.text(left + width / 2, row, f"{width:.1f}", ha="center", va="center", color="white", fontsize=9)
            left += width
        axes.text(left, row, f"  {left:.1f} ms", va="center", fontsize=10)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel("CPU milliseconds an image, one core: JPEG 640 x 480 -> 2 x 224 + 8 x 96, normalised")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(BASELINES), default="gtsa")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scaling", action="store_true", help="Cost against the batch and the number of views.")
    parser.add_argument("--profile", type=Path, metavar="PICTURE", help="Draw where the time goes, of GTSA's views.")
    parser.add_argument("--before", type=Path, default=BEFORE, help="A stored result of --profile, drawn as well.")
    parser.add_argument("--json", action="store_true", help="Print one JSON line.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.scaling:
        result = scaling(args.repeats)
    elif args.profile is not None:
        result = profile(args.batch_size, args.repeats)
        bars = {"Pillow, torchvision": result["baseline"]}
        if args.before.exists():
            bars["ours before"] = json.loads(args.before.read_text())["ours"]
        draw_profile(bars | {"ours": result["ours"]}, args.profile)
    else:
        result = compare(args.method, args.batch_size, args.repeats)
    show(result, args.json)


if __name__ == "__main__":
    main()
