"""`geossl inspect`: what a dataset holds, before a run is spent on it."""

import json
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hf_geossl.cli.recipes import read_recipe, recipes
from hf_geossl.cli.usage import Parser, UsageError, nearest, next_steps, require_if_local

if TYPE_CHECKING:
    from hf_geossl.data.inspection import Inspection

RESULTS, SHEET, RECIPE, STATE = "inspect.json", "contact_sheet.png", "pretrain.yaml", "inspect.state"
DEFAULT_MAX_PIXELS = 2**26  # of `hf_geossl.data.images`, which is not imported for help


def inspect(argv: Sequence[str]) -> int:
    """Looks at every image of a dataset and writes what it found.

    Args:
        argv (`Sequence[str]`): What follows `geossl inspect`.

    Returns:
        `int`: 0; 130 after Ctrl-C.
    """
    options = _parser().read(argv)
    require_if_local(options.dataset)
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit must be at least 1, got {options.limit}")
    if options.max_pixels < 1:
        raise UsageError(f"--max_pixels must be at least 1, got {options.max_pixels}")
    if options.recipe not in recipes():
        raise UsageError(f"there is no recipe {options.recipe!r}{nearest(options.recipe, list(recipes()))}")
    folder = Path(options.output or f"inspect-{_name_of(options.dataset)}")
    _prepare(folder, options)
    import datasets

    from hf_geossl.data.contact_sheet import draw_sheet
    from hf_geossl.data.inspection import DatasetArguments, Inspection
    from hf_geossl.data.inspection_report import as_lines, as_values, total_of
    from hf_geossl.data.wording import folded

    datasets.disable_progress_bars()  # of reading rows, which are no images
    arguments = DatasetArguments(
        options.dataset,
        options.split,
        options.dataset_config,
        options.image_column,
        options.revision,
        options.max_pixels,
        options.limit,
    )
    inspection = Inspection(arguments, folder / STATE, lambda line: print(line, file=sys.stderr))
    stopped = _run(inspection)
    if stopped:
        print("geossl: interrupted; the same command with --resume goes on", file=sys.stderr)
        return 128 + stopped
    values = as_values(inspection)
    _write(folder / RESULTS, json.dumps(values, indent=1))
    shown = len(inspection.thumbnails.found)
    some = f", {shown} of them here" if shown < values["images"] else ""
    title = f"{_name_of(options.dataset)}: {values['images']:,} images{some}"
    sheet = draw_sheet(inspection.thumbnails, total_of(inspection).values, title)
    sheet.save(folder / SHEET)
    _write(folder / RECIPE, recipe_for(options, values))
    inspection.state_file.unlink()
    for line in as_lines(values):
        print(folded(line))
    print(f"\nAll numbers: {folder / RESULTS}; pictures: {folder / SHEET}")
    print(next_steps((f"geossl pretrain {shlex.quote(str(folder / RECIPE))}", "pretrains on it")))
    return 0


def _run(inspection: "Inspection") -> int:
    """Runs an inspection; the first SIGINT or SIGTERM lets it save its position, and its number is returned, else 0."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        if received:  # again: at once
            raise KeyboardInterrupt
        received.append(number)
        inspection.stop()

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # damage is in the reasons
            inspection.run()
    except KeyboardInterrupt:
        return received[0] if received else int(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "inspect",
        "Looks at every image of a dataset once and says how many there are, of what size, channels, type and values, which\n"
        "classes and truth, what is broken or there twice; draws a contact sheet and writes the arguments to pretrain on it.",
    )
    add = parser.add_argument
    add("dataset", help="Hub dataset, folder or glob of images, parquet, WebDataset tars, or 'scenes'.")
    add("--split", help="Only this part; all of train, validation and test that there are by default.")
    add(
        "--limit", type=int, help="At most so many images of each split, spread evenly over it; all of them by default."
    )
    add("--output", help="Folder to write; inspect-NAME by default.")
    add("--resume", action="store_true", help="Go on with an inspection that was interrupted.")
    add("--overwrite", action="store_true", help="Begin anew in a folder that holds an inspection.")
    add("--dataset_config", help="Configuration of a Hub dataset; mode of the scenes.")
    add("--image_column", default="image", help="The column with the images. Default: %(default)s.")
    add("--revision", help="Revision of a Hub dataset.")
    add(
        "--max_pixels",
        type=int,
        default=DEFAULT_MAX_PIXELS,
        help="Images of more pixels count as broken. Default: 2^26.",
    )
    add(
        "--recipe",
        default="quickstart",
        help="Recipe that the arguments to pretrain are based on. Default: %(default)s.",
    )
    return parser


def _name_of(dataset: str) -> str:
    path = os.path.abspath(os.path.expanduser(dataset)) if os.path.exists(os.path.expanduser(dataset)) else dataset
    return re.sub(r"[^\w.-]+", "_", Path(path).name).strip("_") or "dataset"


def _false_colors(values: Mapping[str, Any]) -> str:
    """Says which channels are shown how, where it is not as people know it."""
    types = set(values["types"])
    more = max(map(int, values["channels"]), default=3) > 3
    shown = ["channels 1, 2, 3 (or those called red, green, blue) as red, green, blue"] if more else []
    shown += ["percentiles 2 to 98 as black to white"] if types - {"uint8"} else []
    return f"; {', '.join(shown)}" if shown else ""


def _prepare(folder: Path, options: Namespace) -> None:
    """Makes the folder; refuses to mix two inspections in it.

    Raises:
        UsageError: If it holds something, and neither --resume nor --overwrite is given.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file, not a folder")
    if options.resume and options.overwrite:
        raise UsageError("--resume goes on and --overwrite begins anew: leave one of the two out")
    state, results = folder / STATE, folder / RESULTS
    if state.exists() and not (options.resume or options.overwrite):
        raise UsageError(
            f"{folder} holds an inspection that was interrupted: --resume goes on, --overwrite begins anew"
        )
    if results.exists() and not state.exists() and options.resume:
        raise UsageError(f"the inspection in {folder} is complete: read {results}, or begin anew with --overwrite")
    if results.exists() and not (options.resume or options.overwrite):
        raise UsageError(f"{folder} holds an inspection: choose another --output, or replace it with --overwrite")
    if options.resume and not state.exists():
        print(f"there is nothing to go on with in {folder}: the inspection starts from the beginning", file=sys.stderr)
    if options.overwrite:
        for name in (STATE, f"{STATE}-journal", RESULTS, SHEET, RECIPE):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


class _Dumper(yaml.SafeDumper):
    """Writes a list in one line."""


_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def recipe_for(options: Namespace, values: Mapping[str, Any]) -> str:
    """Writes the recipe: one of ours, with the data and the images of the dataset.

    Args:
        options (`Namespace`): Of the command line.
        values (`Mapping`): What was found.

    Returns:
        `str`: YAML that `geossl pretrain` takes.
    """
    recipe = read_recipe(options.recipe)
    sections: dict[str, dict[str, Any]] = {"data": {}, "model": {}, "views": {}, "training": {}}
    for section, key, value in recipe.entries:
        if section != "data" and key != "use_cpu":
            sections[section or "training"][key] = value
    local = os.path.expanduser(options.dataset)
    data = {"dataset": os.path.abspath(local) if os.path.exists(local) else options.dataset}
    split = options.split or next(iter(values["splits"]), "train")
    data |= {"split": split} if split != "train" else {}
    data |= {"dataset_config": options.dataset_config} if options.dataset_config else {}
    data |= {"image_column": options.image_column} if options.image_column != "image" else {}
    data |= {"revision": options.revision} if options.revision else {}
    data |= {"max_pixels": options.max_pixels} if options.max_pixels != DEFAULT_MAX_PIXELS else {}
    chosen = values["image_format"]
    plain = chosen["channels"] == "rgb" and chosen["dtype"] == "uint8"
    if not plain:
        channels = chosen["channels"]
        data["channels"] = channels if isinstance(channels, str) else ",".join(map(str, channels))
        data["value_range"] = ";".join(f"{low:.9g},{high:.9g}" for low, high in chosen["value_range"])
        data["channel_names"] = chosen["names"]
        sections["views"] |= {"mean": _rounded(chosen["mean"]), "std": _rounded(chosen["std"])}
    broken, images = values["broken"]["count"], values["images"]
    if broken > 0.1 * (broken + images):
        data["max_broken_share"] = min(1.0, round(broken / (broken + images) + 0.05, 2))
    sections["data"] = data
    sections["training"]["output_dir"] = f"geossl-{_name_of(options.dataset)}"
    lines = [
        f"# Written by geossl inspect: {images:,} images that can be used and {broken:,} broken ones.",
        f"# Model, views and training are those of the recipe {options.recipe}; all arguments: geossl pretrain THIS_FILE --help_all",
        *(f"# {line}" for line in values["image_format_because"]),
    ]
    values_by_section = {"method": recipe.method, **{name: section for name, section in sections.items() if section}}
    text = yaml.dump(values_by_section, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
    return "\n".join(lines) + "\n" + text


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="surrogateescape")
    part.replace(path)
