"""`geossl predict`: what a fine-tuned model sees in images, as files and as pictures."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_geossl.cli.usage import Parser, hide_loading_bars, require_if_local, require_reachable

DEFAULT_MAX_PIXELS = 2**26  # of `hf_geossl.data.images`, which is not imported for help


def predict(argv: Sequence[str]) -> int:
    """Predicts images with a model that has a head.

    Args:
        argv (`Sequence[str]`): What follows `geossl predict`.

    Returns:
        `int`: 0; 130 after Ctrl-C.
    """
    options = _parser().read(argv)
    for path in (options.model, *options.images):
        require_if_local(path)
    require_reachable(options.model)
    from hf_geossl.data.wording import counted
    from hf_geossl.tasks.prediction.predict import predict_images
    from hf_geossl.tasks.prediction.settings import PredictionSettings
    from hf_geossl.tasks.prediction.summaries import SHEET

    settings = PredictionSettings(
        tile_size=options.tile_size,
        tile_overlap=options.tile_overlap,
        score_threshold=options.score_threshold,
        iou_threshold=options.iou_threshold,
        batch_size=options.batch_size,
        max_pixels=options.max_pixels,
    )
    hide_loading_bars()
    output = options.output_dir or f"predict-{_name_of(options.images[0])}"
    try:
        summary = predict_images(
            options.model,
            options.images,
            output,
            settings,
            overlays=not options.no_overlays,
            overwrite=options.overwrite,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
        )
    except KeyboardInterrupt:
        print(f"geossl: interrupted; what is in {output} is whole, and the same command goes on", file=sys.stderr)
        return 130
    print(f"{summary['task']} of {counted(summary['images'], 'image')}: {output}")
    if (sheet := Path(output) / SHEET).is_file():
        print(f"Look at them: {sheet}")
    return 0


def _name_of(path: str) -> str:
    return re.sub(r"[^\w.-]+", "_", Path(path).expanduser().resolve().stem).strip("_") or "images"


def _parser() -> Parser:
    parser = Parser(
        "predict",
        "Predicts images with a fine-tuned model: masks, depths, boxes or classes as files, and pictures of them with a legend.\n"
        "Large TIFF files are read, predicted and written in tiles. The same command again goes on with what is missing.",
    )
    add = parser.add_argument
    add("model", help="Folder or Hub id of a model ForImageClassification, ForSemanticSegmentation, ForDepthEstimation or "
        "ForObjectDetection, with its image processor.")  # fmt: skip
    add("images", nargs="+", metavar="IMAGES", help="Image files, folders of them, globs, or lists of files.")
    add("--output_dir", help="Folder to write; predict-NAME by default.")
    add("--tile_size", type=int, help="Predict larger images in tiles of so many pixels, each scaled to the model's size. By "
        "default only images of more than --max_pixels, which must be TIFF files, in tiles of the model's size.")  # fmt: skip
    add(
        "--tile_overlap",
        type=int,
        help="Pixels that tiles share with their neighbours; a quarter of a tile by default.",
    )
    add(
        "--score_threshold",
        type=float,
        default=0.5,
        help="Objects of smaller scores are left out. Default: %(default)s.",
    )
    add("--iou_threshold", type=float, default=0.5, help="Overlap from which boxes of tiles are one object. Default: "
        "%(default)s.")  # fmt: skip
    add(
        "--batch_size",
        type=int,
        default=8,
        help="Tiles, or images of one size, that are predicted at a time. Default: %(default)s.",
    )
    add("--max_pixels", type=int, default=DEFAULT_MAX_PIXELS, help="Images of more pixels are not predicted whole. "
        "Default: 2^26.")  # fmt: skip
    add("--no_overlays", action="store_true", help="Draw no pictures.")
    add("--overwrite", action="store_true", help="Predict again what is in the folder.")
    add("--device", help="cpu, cuda, ...; a GPU if there is one.")
    add("--trust_remote_code", action="store_true", help="Let code of the model's repository run.")
    return parser
