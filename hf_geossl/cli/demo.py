"""`geossl demo`: a trained or fine-tuned folder in the browser."""

from collections.abc import Sequence

from hf_geossl.cli.usage import Parser, hide_loading_bars, require_folder


def demo(argv: Sequence[str]) -> int:
    """Shows a trained folder in the browser, until Ctrl-C.

    Args:
        argv (`Sequence[str]`): What follows `geossl demo`.

    Returns:
        `int`: 0.
    """
    parser = Parser("demo", "Shows a trained or fine-tuned folder in the browser, to click; ends with Ctrl-C.")
    add = parser.add_argument
    add(
        "folder",
        help="What geossl pretrain, convert or finetune wrote, a checkpoint in it, or a fine-tuned model of transformers.",
    )
    add("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 lets other machines in.")
    add("--port", type=int, help="Port to listen at; a free one from 7860 on by default.")
    add(
        "--samples", metavar="FOLDER", help="Pictures to begin with, two or more; by default scenes, for models of RGB."
    )
    options = parser.read(argv)
    require_folder(options.folder)
    from hf_geossl.demo import launch_demo

    hide_loading_bars()
    launch_demo(options.folder, host=options.host, port=options.port, samples=options.samples)
    return 0
