"""`geossl evaluate`: what features are worth, from the command line."""

import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hf_geossl.cli.usage import Parser, UsageError, hide_loading_bars, next_steps, require_if_local, require_reachable
from hf_geossl.evaluation.registry import (
    ABOUT,
    ALL,
    DEFAULT_TASKS,
    FAILED,
    RESULTS,
    SCENES,
    TIMM,
    check_tasks,
    describe_tasks,
)

if TYPE_CHECKING:
    from hf_geossl.evaluation.reading.sample_store import SampleStore

COLUMNS = ("image", "label", "semantic", "depth", "objects")
Setting = bool | int | float | str | None | list["Setting"]


class _Parser(Parser):
    """Adds what the tasks are to the help."""

    def format_help(self) -> str:
        tasks = "\n".join(f"  {name:22} {summary}" for name, summary in describe_tasks().items())
        return f"{super().format_help()}\ntasks:\n{tasks}\n"


def evaluate(argv: Sequence[str]) -> int:
    """Measures what the features of one or several models are worth.

    Args:
        argv (`Sequence[str]`): What follows `geossl evaluate`.

    Returns:
        `int`: 0; 1 if a model or a task could not be measured, 2 if none could; 130 after Ctrl-C.
    """
    options = _parser().read(argv)
    if len(options.models) == 1:  # of several the others are measured
        require_if_local(options.models[0])
    require_if_local(options.dataset)
    check_tasks(options.tasks)
    _check_local(options)
    settings = parse_settings(options.set)
    require_reachable(*(options.models if len(options.models) == 1 else []), options.dataset)
    from hf_geossl.evaluation.reading.sample_store import SampleStore
    from hf_geossl.evaluation.report import check_report_path, read_measured, terminal_table, write_report

    if options.report is not None:
        check_report_path(options.report)
    files = output_files(options.models, options.output)
    hide_loading_bars()
    status, measured, any_task = 0, [], False
    workers = os.cpu_count() or 1 if options.num_workers is None else options.num_workers
    store = SampleStore(num_workers=workers, progress=True)  # images are decoded once for all models
    for model, file in zip(options.models, files, strict=True):
        try:
            results = _measure(model, file, settings, options, store)
        except KeyboardInterrupt:
            finished = f"what was finished is in {file}, and " if file.is_file() else ""
            print(f"geossl: interrupted; {finished}the same command goes on", file=sys.stderr)
            return 130
        except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
            if len(options.models) == 1:
                raise
            print(f"geossl: {model}: {' '.join(str(error).split())}", file=sys.stderr)
            status = 1
            continue
        measured.append(file)
        failed: Any = results[ABOUT][FAILED]
        any_task |= any(name != ABOUT and name not in failed for name in results)
        if failed:
            status = 1
    if status and not any_task:
        status = 2  # there is no number to read
    if measured:
        print(f"\n{terminal_table(read_measured(measured))}")
        print(f"Results: {', '.join(map(str, measured))}")
    if measured and options.report is not None:
        write_report(measured, options.report)
        print(f"Report: {options.report}")
    if any_task and (steps := _what_next(options, argv, measured)):
        print(next_steps(*steps))
    return status


def _what_next(options: Namespace, argv: Sequence[str], files: Sequence[Path]) -> list[tuple[str, str]]:
    """Numbers in a model's folder belong on its card; all are looked at on a page, for which nothing is measured again."""
    steps = []
    if len(files) == 1 and files[0] == Path(options.models[0]) / RESULTS and _has_card(Path(options.models[0])):
        steps.append((f"geossl card {shlex.quote(options.models[0])}", "puts the numbers on the model's card"))
    if options.report is None and not options.overwrite:
        steps.append((f"geossl evaluate {shlex.join(argv)} --report report.html", "a page with pictures"))
    return steps


def _has_card(folder: Path) -> bool:
    """Whether `geossl card` writes one for a folder: it holds a model of this library."""
    from hf_geossl.hub.run_folder import read_config

    try:
        read_config(folder)
    except ValueError:
        return False
    return True


def _check_local(options: Namespace) -> None:
    """Refuses what is said of a repository where everything lies on this machine."""
    of_data = [name for name in ("dataset_config", "dataset_revision") if getattr(options, name) is not None]
    if of_data and Path(options.dataset).exists():
        raise UsageError(f"--{of_data[0]} means nothing for the local {options.dataset}: leave it out")
    if options.revision is not None and all(Path(model).exists() for model in options.models):
        raise UsageError("--revision means nothing for models on this machine: leave it out")


def _measure(
    model: str, file: Path, settings: dict[str, dict[str, Setting]], options: Namespace, store: "SampleStore"
) -> dict[str, dict[str, object]]:
    from hf_geossl.evaluation.evaluate import evaluate_model
    from hf_geossl.evaluation.options import DEFAULT_CACHE
    from hf_geossl.evaluation.samples import Columns

    columns = {name: getattr(options, f"{name}_column") for name in COLUMNS}
    results: dict[str, dict[str, object]] = evaluate_model(
        model,
        options.tasks,
        options.dataset,
        limit=options.limit,
        quick=options.quick,
        output=file,
        settings=settings,
        image_size=options.image_size,
        train_split=options.train_split,
        test_split=options.test_split,
        columns=Columns(
            **columns, **{key: getattr(options, key) for key in ("depth_scale", "bbox_format", "reduce_labels")}
        ),
        config_name=options.dataset_config,
        dataset_revision=options.dataset_revision,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        seed=options.seed,
        bootstrap=options.bootstrap,
        cache_dir=None if options.no_cache else Path(options.cache_dir or DEFAULT_CACHE),
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        revision=options.revision,
        pictures=not options.no_pictures,
        overwrite=options.overwrite,
        store=store,
    )
    return results


def _parser() -> Parser:
    parser = _Parser(
        "evaluate", "Measures what features are worth: numbers with intervals, pictures, a comparison of models."
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="A folder, an id on the Hub, or timm:NAME; several to compare them.")
    add(
        "--tasks",
        default=",".join(DEFAULT_TASKS),
        help=f"Names from the list below, or {ALL} that apply to the model. Default: %(default)s.",
    )
    add(
        "--dataset",
        default=SCENES,
        help="scenes (embedded); a folder of images, of parquet or tar files, of a saved DatasetDict, or of clips laid out as "
        "DAVIS; or an id on the Hub. Default: %(default)s.",
    )
    add("--limit", type=int, help="At most so many images of each split; whole splits (40,000 scenes) without it.")
    add(
        "--quick",
        action="store_true",
        help="Few images and short training of heads: each task in under a minute on two cores. Shows that all runs and gross "
        "differences; the results are marked, and no numbers to publish.",
    )
    add(
        "--output",
        help=f"JSON file for the numbers, pictures in a folder of its name; for several models a folder. Default: {RESULTS} "
        "in a model's folder, and NAME_results.json here for other models.",
    )
    add("--report", help="Write a page (.html) or a table (.md) of all models.")
    add(
        "--set",
        action="append",
        default=[],
        metavar="TASK.SETTING=VALUE",
        help="A setting of a task, such as segmentation.steps=1000.",
    )
    add("--image_size", type=int, help="Side of the images in pixels; the model's own by default.")
    add("--seed", type=int, default=0, help="Of all random numbers. Default: 0.")
    add("--bootstrap", type=int, default=1000, help="Resamples for the 95 %% intervals; 0 for none. Default: 1000.")
    add("--batch_size", type=int, default=64, help="Images that are encoded at a time. Default: 64.")
    add("--num_workers", type=int, help="Processes that read and render images. Default: one a core.")
    add("--device", help="cpu, cuda, ...; a GPU if there is one.")
    add("--cache_dir", help="Where features are cached from call to call; a folder in HF_HOME by default.")
    add("--no_cache", action="store_true", help="Cache no features.")
    add("--no_pictures", action="store_true", help="Draw nothing; pictures are drawn when a task is measured.")
    add("--overwrite", action="store_true", help="Measure again what is in the file, and replace other results in it.")
    add("--revision", help="Branch, tag or commit of a model on the Hub.")
    add("--trust_remote_code", action="store_true", help="Let code of the model's repository run.")
    add("--train_split", default="train", help="What heads are trained on. Default: train.")
    add("--test_split", default="test", help="What is measured. Default: test.")
    add("--dataset_config", help="Configuration of a dataset on the Hub; of the scenes their mode, topdown or object.")
    add("--dataset_revision", help="Branch, tag or commit of a dataset on the Hub.")
    add_columns(parser)
    return parser


def add_columns(parser: Parser) -> None:
    """Adds what the columns of a labelled dataset are called and mean."""
    add = parser.add_argument
    add("--image_column", default="image", help="Default: %(default)s.")
    add("--label_column", default="label", help="Class of an image. Default: %(default)s.")
    add("--semantic_column", default="annotation", help="Map of classes. Default: %(default)s.")
    add("--reduce_labels", action="store_true", help="0 means no class in that map (as in ADE20k).")
    add("--depth_column", default="depth_map", help="Map of depths. Default: %(default)s.")
    add("--depth_scale", type=float, help="Metres a unit of it. Default: 1, or 0.001 where it holds whole numbers.")
    add("--objects_column", default="objects", help="Boxes and categories. Default: %(default)s.")
    add(
        "--bbox_format", help="coco, pascal_voc, yolo, xyxy_fractions or xywh_fractions. Default: what fits the images."
    )


def parse_settings(words: Sequence[str]) -> dict[str, dict[str, Setting]]:
    """Reads settings of tasks.

    Args:
        words (`Sequence[str]`): `"task.setting=value"`, values as YAML writes them.

    Returns:
        `dict[str, dict]`: values by task and setting.

    Raises:
        ValueError: If one has another form, or its task does not exist.
    """
    settings: dict[str, dict[str, Setting]] = {}
    for word in words:
        parts = re.fullmatch(r"(\w+)\.(\w+)=(.*)", word)
        if parts is None:
            raise ValueError(f"--set takes TASK.SETTING=VALUE, such as segmentation.steps=1000, got {word!r}")
        check_tasks([parts[1]])
        try:
            settings.setdefault(parts[1], {})[parts[2]] = _number(yaml.safe_load(parts[3]))
        except yaml.YAMLError:
            raise ValueError(f"the value of --set {word} cannot be read") from None
    return settings


def _number(value: Setting) -> Setting:
    """Reads 1e-3, which YAML 1.1 takes for a text, as a number."""
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def output_files(models: Sequence[str], output: str | None) -> list[Path]:
    """Decides where the results of each model go.

    Args:
        models (`Sequence[str]`): As they were named.
        output (`str`, *optional*): A file for one model, a folder for several.

    Returns:
        `list[Path]`: a file a model, all different.

    Raises:
        ValueError: If a model is named twice, or a file stands where a folder is needed.
    """
    from hf_geossl.evaluation.evaluate import default_output

    if len(set(models)) < len(models):
        raise ValueError("a model is named twice")
    names = [
        re.sub(r"[^\w.-]+", "_", Path(model).resolve().name if Path(model).is_dir() else model.removeprefix(TIMM))
        for model in models
    ]
    if output is None:
        return [default_output(model) or Path(f"{name}_{RESULTS}") for model, name in zip(models, names, strict=True)]
    if len(models) == 1:
        return [Path(output) / RESULTS if Path(output).is_dir() else Path(output)]
    if Path(output).is_file() or Path(output).suffix == ".json":
        raise ValueError(f"--output must be a folder for the results of several models, got {output}")
    numbered = [name if names.index(name) == i else f"{name}_{i + 1}" for i, name in enumerate(names)]
    return [Path(output) / f"{name}.json" for name in numbered]
