"""What a channel costs from the file to the model: images of 1, 5 and 13 channels of every stored type beside RGB of 8 bits.

python -m benchmarks.channels --json
"""

import argparse
import io
import time
from functools import partial
from typing import Any

import numpy as np
import tifffile
import torch

from benchmarks.interleave import interleave, machine, median_ratio, show
from benchmarks.views import jpeg_photographs
from hf_geossl.data.images import decode_pixels
from hf_geossl.methods import METHODS
from hf_geossl.modeling.image_format import ImageFormat

CHANNELS = (1, 5, 13)
TYPES = {"uint8": 255.0, "uint16": 4095.0, "float32": 1.0}  # and what stands for white
TARGETS = {f"all_{dtype}_{channels}": "<= 1.25" for dtype in TYPES for channels in CHANNELS}


def format_of(channels: int, dtype: str = "uint8") -> ImageFormat:
    """Channels without a name."""
    numbers = tuple(range(1, channels + 1))
    names = tuple(f"channel {number}" for number in numbers)
    return ImageFormat(numbers, names, dtype, ((0.0, TYPES[dtype]),), mean=(0.45,) * channels, std=(0.25,) * channels)


def stacked_photographs(channels: int, dtype: str) -> list[bytes]:
    """TIFF files of 640 x 480 pixels, not compressed, whose channels are those of several photographs."""
    pixels = np.concatenate([decode_pixels(file).numpy() for file in jpeg_photographs()], axis=2)
    files = []
    for first in range(0, pixels.shape[2], 3):
        chosen = np.roll(pixels, -first, axis=2)[:, :, :channels] / 255 * TYPES[dtype]
        buffer = io.BytesIO()
        tifffile.imwrite(
            buffer, chosen.astype(dtype), photometric="minisblack", planarconfig="contig" if channels > 1 else None
        )
        files.append(buffer.getvalue())
    return files


def compare(method: str = "gtsa", repeats: int = 7) -> dict[str, Any]:
    """CPU milliseconds an image of decoding, crops and colours, and the cost of a channel against one of RGB from JPEG."""
    kinds: dict[str, tuple[ImageFormat, list[bytes]]] = {"rgb": (ImageFormat(), jpeg_photographs())}
    for dtype in TYPES:
        kinds |= {
            f"{dtype}_{count}": (format_of(count, dtype), stacked_photographs(count, dtype)) for count in CHANNELS
        }
    generator = torch.Generator().manual_seed(0)
    stages: dict[str, dict[str, Any]] = {"decode": {}, "crops": {}, "augment": {}}
    for kind, (image_format, files) in kinds.items():
        views = METHODS[method].load("views")(**({} if image_format.is_rgb8 else {"image_format": image_format}))
        decode = partial(decode_pixels, image_format=image_format)
        images = [decode(file) for file in files]

        def cut(views: Any = views, images: list[torch.Tensor] = images) -> Any:
            return views.collate([views(image, seed=seed) for seed, image in enumerate(images)])

        stages["decode"][kind] = lambda decode=decode, files=files: [decode(file) for file in files]
        stages["crops"][kind] = cut
        stages["augment"][kind] = partial(views.augment, cut(), generator)
    result: dict[str, Any] = {"method": method}
    seconds = {stage: interleave(functions, repeats, time.process_time) for stage, functions in stages.items()}
    seconds["all"] = {
        kind: [sum(three) for three in zip(*(seconds[s][kind] for s in stages), strict=True)] for kind in kinds
    }
    for stage, timed in seconds.items():
        result[f"{stage}_rgb_ms"] = round(1000 * sorted(timed["rgb"])[repeats // 2] / len(kinds["rgb"][1]), 3)
        for kind, (image_format, _) in kinds.items():
            result[f"{stage}_{kind}"] = round(
                median_ratio(timed[kind], timed["rgb"]) * 3 / image_format.num_channels, 3
            )
    return result | {"targets": TARGETS, "machine": machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(METHODS), default="gtsa")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="Print one JSON line.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    show(compare(args.method, args.repeats), args.json)


if __name__ == "__main__":
    main()
