"""A page that shows what a model sees, or what a fine-tuned one predicts: in a browser on this machine, or as a Space."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def _page() -> Any:
    if find_spec("gradio") is None:
        raise ImportError("the demo needs gradio: pip install 'hf_geossl[space]'")
    return import_module("hf_geossl.demo.page")


def build_demo(folder: str | Path, *, samples: str | Path | None = None) -> Any:
    """Builds the page of a model.

    Args:
        folder (`str` or `Path`): What a training run leaves, one of its `checkpoint-N` folders, a whole pretraining model
            or a trunk. Of a run's folder the newest whole checkpoint is shown. A fine-tuned model has a tab with what it
            predicts: before those of its trunk, or alone where that is none of this library's, or inside of another model.
        samples (`str` or `Path`, *optional*): Folder of two or more sample pictures; by default scenes of the embedded
            dataset, or none where the model's images are not RGB of 8 bits, as scenes are.

    Returns:
        `gradio.Blocks`: The page; `launch_demo` serves it with limits and fonts of its own.

    Raises:
        ImportError: If gradio is not installed.
        ValueError: If the folder holds no model of this library, or a damaged one; or if `samples` holds no picture.
    """
    return _page().open_page(Path(folder), None if samples is None else Path(samples)).build()


def launch_demo(
    folder: str | Path,
    *,
    host: str | None = "127.0.0.1",
    port: int | None = None,
    samples: str | Path | None = None,
    block: bool = True,
    say: Callable[[str], None] = print,
) -> Any:
    """Serves the page of a model until Ctrl-C; nothing is fetched from other machines, and nothing is reported to them.

    Args:
        folder, samples: As of `build_demo`.
        host (`str`, *optional*): Address to listen at; `"0.0.0.0"` lets other machines in. None leaves it to gradio, which
            reads it where it runs as a Space.
        port (`int`, *optional*): Its port; the first free one from 7860 on by default.
        block (`bool`): Whether to wait for Ctrl-C.
        say (`Callable[[str], None]`): Takes the line that tells the address.

    Returns:
        `gradio.Blocks`: The page, with `local_url` and `close()`.

    Raises:
        ImportError, ValueError: As of `build_demo`.
        OSError: If the port is taken.
    """
    page = _page()
    opened = page.open_page(Path(folder), None if samples is None else Path(samples))
    return page.serve(opened, host, port, block, say)


__all__ = ["build_demo", "launch_demo"]
