"""What a channel costs: views of images with 1, 5 and 13 channels of 8 bits beside those of RGB, on one core.

python -m benchmarks.channels --json
"""

import argparse
import time
from typing import Any

import torch

from benchmarks.interleave import interleave, machine, median_ratio, show
from benchmarks.views import jpeg_photographs
from hf_geossl.data.images import decode_pixels
from hf_geossl.methods import METHODS
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.base import Views

CHANNELS = (1, 5, 13)
TARGETS = {"crops_5": "<= 1.25", "crops_13": "<= 1.25", "augment_5": "<= 1.25", "augment_13": "<= 1.25"}


def format_of(channels: int, dtype: str = "uint8") -> ImageFormat:
    """Channels without a name, in the whole range of their type."""
    numbers = tuple(range(1, channels + 1))
    names = tuple(f"channel {number}" for number in numbers)
    ends = ((0.0, 255.0),) if dtype == "uint8" else ((0.0, 1.0),)
    return ImageFormat(numbers, names, dtype, ends, mean=(0.45,) * channels, std=(0.25,) * channels)


def stacked_photographs(channels: int) -> list[torch.Tensor]:
    """Photographs of 640 x 480 pixels whose channels are those of several: `(height, width, channels)`, uint8."""
    rgb = [decode_pixels(file) for file in jpeg_photographs()]
    pixels = torch.cat(rgb, dim=2)
    return [pixels.roll(-3 * image, dims=2)[:, :, :channels].contiguous() for image in range(len(rgb))]


def compare(method: str = "gtsa", repeats: int = 15) -> dict[str, Any]:
    """CPU milliseconds an image of making crops and of colouring them, and the cost of a channel against one of RGB."""
    kinds: dict[int, Views] = {3: METHODS[method].load("views")()}
    kinds |= {count: METHODS[method].load("views")(image_format=format_of(count)) for count in CHANNELS}
    images = {count: stacked_photographs(count) for count in kinds}

    def cut(count: int) -> Any:
        views = kinds[count]
        return views.collate([views(image, seed=seed) for seed, image in enumerate(images[count])])

    batches = {count: cut(count) for count in kinds}
    crops = interleave({str(count): lambda count=count: cut(count) for count in kinds}, repeats, time.process_time)
    generator = torch.Generator().manual_seed(0)
    augment = interleave(
        {str(count): lambda count=count: kinds[count].augment(batches[count], generator) for count in kinds},
        max(repeats // 3, 3),
        time.process_time,
    )
    result: dict[str, Any] = {"method": method}
    for stage, seconds in (("crops", crops), ("augment", augment)):
        for count in kinds:
            mine = seconds[str(count)]
            result[f"{stage}_{count}_ms"] = round(1000 * sorted(mine)[len(mine) // 2] / len(images[count]), 3)
        for count in CHANNELS:
            result[f"{stage}_{count}"] = round(median_ratio(seconds[str(count)], seconds["3"]) * 3 / count, 3)
    return result | {"targets": TARGETS, "machine": machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(METHODS), default="gtsa")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="Print one JSON line.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    show(compare(args.method, args.repeats), args.json)


if __name__ == "__main__":
    main()
