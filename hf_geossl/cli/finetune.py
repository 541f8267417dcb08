"""`geossl finetune`: a trunk and labelled images become a model of classes, masks, depth or boxes in a folder."""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_geossl.cli.arguments import TAKEN_BACK, Argument, add_arguments, kind_of, transformers_arguments
from hf_geossl.cli.evaluate import COLUMNS, add_columns
from hf_geossl.cli.pretrain import resume_from
from hf_geossl.cli.usage import (
    GO_ON,
    Parser,
    UsageError,
    hide_loading_bars,
    next_steps,
    require_folder,
    require_if_local,
    require_reachable,
)
from hf_geossl.methods import FINE_TUNING_CURVE, FINE_TUNING_SAMPLES
from hf_geossl.tasks.finetuning.settings import DEFAULTS, TASKS, AdaptationSettings, HeadSettings

if TYPE_CHECKING:
    from hf_geossl.tasks.finetuning.finetune import FineTuning
    from hf_geossl.tasks.finetuning.splits import LabelledDataset

_EPILOG = """All of transformers' training arguments are taken too, such as --max_steps 1000, --per_device_train_batch_size 32,
--bf16 or --load_best_model_at_end. Without --max_steps and --num_train_epochs a run has 500 steps, or 5 passes over the images
where these are more. Defaults that differ from transformers': {defaults}."""


def finetune(argv: Sequence[str]) -> int:
    """Fine-tunes a model, or measures one that was.

    Args:
        argv (`Sequence[str]`): What follows `geossl finetune`.

    Returns:
        `int`: 0; 128 + the number of the signal that stopped the run.
    """
    options = _parser().read(argv)
    for path in (options.model, options.dataset):
        require_if_local(path)
    if options.evaluate_only:
        return _evaluate(options)
    if options.task is None:
        raise UsageError(f"--task is missing: one of {', '.join(TASKS)}")
    require_reachable(options.model, options.dataset)
    values = {name: value for name, value in vars(options).items() if value not in (TAKEN_BACK, [TAKEN_BACK])}
    training = {name: values[name] for name in _training_names() if name in values}
    training.setdefault("output_dir", f"geossl-{options.task}")
    command = f"geossl finetune {shlex.join(argv)}"
    from hf_geossl.tasks.finetuning.arguments import FineTuningArguments
    from hf_geossl.tasks.finetuning.finetune import prepare_finetuning

    hide_loading_bars()
    args = FineTuningArguments(**training)
    resume = resume_from(args)
    head = HeadSettings(**{entry.name: values[entry.name] for entry in fields(HeadSettings) if entry.name in values})
    again = shlex.join([str(args.output_dir), options.dataset, *_data_words(options), "--evaluate_only"])
    tuning = prepare_finetuning(
        options.model,
        _dataset(options),
        options.task,
        args,
        head,
        command=command,
        measured_by=f"geossl finetune {again}",
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    if args.process_index == 0:
        print(describe_start(tuning))
    results = tuning.run(resume)
    if (signal := tuning.trainer.preemption.signal) is not None:
        if args.process_index == 0:
            print(f"stopped at step {tuning.trainer.state.global_step}. Go on with:")
            print(f"  {command.replace(GO_ON, '')}{GO_ON}")
        return 128 + signal
    if results is not None:
        _print_end(tuning, results)
    return 0


def describe_start(tuning: "FineTuning") -> str:
    """Says what begins."""
    train, test = tuning.splits
    args = tuning.trainer.args
    classes = f" of {len(tuning.names)} classes" if tuning.names else ""
    return (
        f"{tuning.folder}: {tuning.task.name}{classes}, {args.max_steps} steps of {args.global_batch_size} of "
        f"{len(train):,} images ({train.name}) at {tuning.start.image_size} pixels; {len(test):,} are measured ({test.name})\n"
        f"{tuning.trainer.trained}"
    )


def _print_end(tuning: "FineTuning", results: dict[str, Any]) -> None:
    from hf_geossl.evaluation.registry import ABOUT

    folder = tuning.folder
    print(f"\nThe model is in {folder} (trained {tuning.trainer.state.global_step} steps). Load it anywhere:\n")
    print(f"  from transformers import AutoModel{tuning.task.suffix}")
    print(f'  model = AutoModel{tuning.task.suffix}.from_pretrained("{folder}", trust_remote_code=True)\n')
    print_result(next(entry for name, entry in results.items() if name != ABOUT))
    for picture in (FINE_TUNING_SAMPLES, FINE_TUNING_CURVE):
        if (folder / picture.file).is_file():
            print(f"{picture.caption}: {folder / picture.file}")
    print(f"Measure it again:\n  {tuning.measured_by}")
    place = shlex.quote(str(folder))
    steps = [(f"geossl predict {place} path/to/images --output_dir predictions", "what it says of your images")]
    steps += [(f"geossl demo {place}", "look at it in your browser")] if find_spec("gradio") else []
    if tuning.publication is not None:
        print(f"Published: {tuning.publication.url}")
    else:
        steps.append((f"geossl publish {place} user/name --dry_run", "what would be sent"))
    print(f"\n{next_steps(*steps)}")


def print_result(entry: dict[str, Any]) -> None:
    """Prints numbers to the last digit, with intervals and floors."""
    from hf_geossl.hub.headlines import floor_columns

    floors = entry.get("details", {}).get("floors", {})
    for name, value in entry.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            interval = entry.get("intervals", {}).get(name)
            said = [f"95 % interval {interval[0]:.4g} to {interval[1]:.4g}"] if interval else []
            reached = floor_columns(list(floors.get(name, {}).items()), name)
            said += [f"{floor} {number:.4g}" for floor, number in reached.items()]
            print(f"{name} {value!r}" + (f" ({', '.join(said)})" if said else ""))


def _evaluate(options: Namespace) -> int:
    """Measures a fine-tuned model."""
    folder = require_folder(options.model)
    from hf_geossl.tasks.finetuning.finetune import measure_folder

    hide_loading_bars()
    size = getattr(options, "per_device_eval_batch_size", DEFAULTS["per_device_eval_batch_size"])
    device = "cpu" if getattr(options, "use_cpu", False) else None
    task, split, result = measure_folder(folder, _dataset(options), batch_size=size, device=device)
    print(f"{folder}: {task.name}, measured on {len(split):,} images ({split.name})")
    print_result(result)
    return 0


def _dataset(options: Namespace) -> "LabelledDataset":
    from hf_geossl.evaluation.samples import Columns
    from hf_geossl.tasks.finetuning.splits import LabelledDataset

    if options.dataset_revision is not None and Path(options.dataset).exists():
        raise UsageError(f"--dataset_revision means nothing for the local {options.dataset}: leave it out")
    columns = {name: getattr(options, f"{name}_column") for name in COLUMNS}
    meaning = {key: getattr(options, key) for key in ("depth_scale", "bbox_format", "reduce_labels")}
    return LabelledDataset(
        options.dataset,
        options.train_split,
        options.test_split,
        options.limit,
        Columns(**columns, **meaning),
        options.dataset_config,
        options.dataset_revision,
    )


def _data_words(options: Namespace) -> list[str]:
    """What of a command says which data are measured and how they are read."""
    parser = _parser()
    names = [*("train_split", "test_split", "limit", "dataset_config", "dataset_revision"), *_COLUMN_NAMES]
    words = []
    for name in names:
        value = getattr(options, name)
        if value != parser.get_default(name):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    for name in ("per_device_eval_batch_size", "use_cpu"):
        if hasattr(options, name):
            words += [f"--{name}", str(getattr(options, name)).lower()]
    return words


_COLUMN_NAMES = (*(f"{name}_column" for name in COLUMNS), "depth_scale", "bbox_format", "reduce_labels")


def _parser() -> Parser:
    parser = Parser(
        "finetune",
        "Trains a head on a trunk, or all of it, on labelled images; leaves a folder that transformers opens, and measures it.",
    )
    parser.epilog = _EPILOG.format(defaults=", ".join(f"{name} {value}" for name, value in DEFAULTS.items()))
    add = parser.add_argument
    add("model", metavar="MODEL", help="A folder, an id on the Hub, or timm:NAME; a fine-tuned folder to measure it.")
    add(
        "dataset",
        metavar="DATASET",
        help="scenes (embedded); a folder of images, of parquet or tar files; or an id on the Hub.",
    )
    add("--task", choices=TASKS, help="What is learned.")
    add("--evaluate_only", action="store_true", help="Measure the fine-tuned MODEL, and train nothing.")
    add("--train_split", default="train", help="What is trained on. Default: train.")
    add(
        "--test_split",
        help="What is measured. Default: test, or validation; where there is neither, a fifth of the training images is held out.",
    )
    add("--limit", type=int, help="At most so many images of each split.")
    add("--dataset_config", help="Configuration of a dataset on the Hub; of the scenes their mode, topdown or object.")
    add("--dataset_revision", help="Branch, tag or commit of a dataset on the Hub.")
    add("--revision", help="Branch, tag or commit of a model on the Hub.")
    add("--trust_remote_code", action="store_true", help="Let code of the model's repository run.")
    add_columns(parser)
    add_arguments(parser, [*_arguments(HeadSettings), *_arguments(AdaptationSettings)], shown=True)
    add_arguments(parser, transformers_arguments())
    return parser


def _arguments(settings: type[HeadSettings] | type[AdaptationSettings]) -> list[Argument]:
    found = []
    for entry in fields(settings):
        kind, many, optional = kind_of(entry.type, entry.default)
        default: Any = entry.default
        found.append(Argument(entry.name, "training", kind, default, entry.metadata["help"], many, optional))
    return found


def _training_names() -> list[str]:
    return [entry.name for entry in fields(AdaptationSettings)] + [entry.name for entry in transformers_arguments()]
