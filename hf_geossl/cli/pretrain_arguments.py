"""What `geossl pretrain` was given: a recipe and a command line, read and shown without importing torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_geossl.cli.arguments import (
    INIT_CHANNELS,
    INIT_FROM,
    SECTIONS,
    START,
    TAKEN_BACK,
    Argument,
    DataArguments,
    Value,
    add_arguments,
)
from hf_geossl.cli.describe import method_arguments
from hf_geossl.cli.recipes import Recipe, read_recipe, recipes
from hf_geossl.cli.usage import Parser, UsageError
from hf_geossl.methods import METHODS, Method

HELP = {
    "-h": True,
    "--help": True,
    "--help_all": False,
    "--help-all": False,
}  # whether only what is usually set is shown
USAGE = "geossl pretrain RECIPE_OR_YAML [--key value ...]"
# what people set: shown by --help, in this order
SHOWN = {
    "data": "dataset dataset_config split image_column channels value_range skip_broken eval_dataset eval_images probe_dataset",
    "model": "init_from model_name_or_path hidden_size num_hidden_layers num_attention_heads image_size patch_size drop_path_rate host "
    "transformation num_prototypes",
    "views": "global_size local_size num_local global_scale local_scale reference_size focal_size num_focal",
    "training": "max_steps per_device_train_batch_size gradient_accumulation_steps base_learning_rate learning_rate "
    "warmup_steps weight_decay teacher_momentum freeze_trunk_steps lora_rank bf16 fp16 use_cpu torch_compile "
    "gradient_checkpointing dataloader_num_workers seed",
    "checkpoints and Hub": "output_dir resume_from_checkpoint save_steps save_total_limit logging_steps probe_every_steps eval_strategy picture "
    "report_to push_to_hub hub_model_id",
}
# what transformers says of these is about text, or about what is not done here
CLEARER = {
    "max_steps": "Optimizer steps of the run.",
    "per_device_train_batch_size": "Images of a batch on one device.",
    "gradient_accumulation_steps": "Batches of an optimizer step.",
    "learning_rate": "Peak of the learning rate, whatever the batch.",
    "use_cpu": "Train on the CPU where there is a GPU too.",
    "seed": "Of the weights, the order of the images and all that is random.",
    "dataloader_num_workers": "Processes that read images and make views.",
    "resume_from_checkpoint": "A checkpoint to go on from, or true for the newest in output_dir.",
    "save_steps": "Steps between two checkpoints; below 1 a share of the run.",
    "save_total_limit": "How many checkpoints are left on the disk.",
    "eval_strategy": "steps to measure on eval_dataset every eval_steps, or no.",
    "report_to": "Trackers: tensorboard, trackio, wandb, mlflow; several with commas between.",
    "push_to_hub": "Publish the model when it is saved.",
    "hub_model_id": "The repository, user/name.",
}
_IMAGES = "channels channel_names value_range mean std"
# argument that the user gave -> what a recipe says beside its own value of it, and means nothing for another one
YIELDING = {
    "dataset": "dataset_config split image_column revision eval_dataset eval_split probe_dataset probe_label_column "
    + _IMAGES,
    "channels": _IMAGES.removeprefix("channels "),
    "value_range": "mean std",
    "host": "num_local",  # some take local views and some do not
    "eval_dataset": "eval_split",
    "model_name_or_path": "init_from init_channels",
    "num_train_epochs": "max_steps",
    "learning_rate": "base_learning_rate",
    "fp16": "bf16",
    "bf16": "fp16",
}


@dataclass(frozen=True)
class Pretraining:
    """What a run was given; what was not is left to the defaults of the classes.

    Args:
        recipe (`str`): Name of the recipe.
        method (`Method`): The method.
        model_name_or_path (`str`, *optional*): The checkpoint to start from.
        init_from (`str`, *optional*): The ViT whose trunk to start from.
        init_channels (`str`): How its filters become those of other channels.
        data (`DataArguments`): The images.
        model, views, training (`dict`): Values by name, those of the recipe and of the command line.
        left_out (`tuple[str, ...]`): A sentence for each group of the recipe's values that yield to what was given.
    """

    recipe: str
    method: Method
    model_name_or_path: str | None = None
    init_from: str | None = None
    init_channels: str = INIT_CHANNELS.default  # type: ignore[assignment]
    data: DataArguments = field(default_factory=DataArguments)
    model: Mapping[str, Value] = field(default_factory=dict)
    views: Mapping[str, Value] = field(default_factory=dict)
    training: Mapping[str, Value] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def parse_pretrain(argv: Sequence[str]) -> Pretraining:
    """Reads recipe and command line; what is given on the command line wins.

    Args:
        argv (`Sequence[str]`): What follows `geossl pretrain`.

    Returns:
        `Pretraining`: what was given.

    Raises:
        UsageError: With one line that names the key and the nearest valid one.
        SystemExit: After help has been printed.
    """
    asked = [word for word in argv if word in HELP]
    if not argv or argv[0] in HELP:
        method = next(iter(METHODS))
        print(describe_arguments(method_arguments(method), method, shown=not asked or HELP[asked[0]]))
        raise SystemExit(0 if argv else 2)
    if argv[0].startswith("-"):
        raise UsageError(f"the recipe comes first: geossl pretrain {' or '.join(recipes())}, or a .yaml file")
    recipe = read_recipe(argv[0])
    arguments = method_arguments(recipe.method)
    parser = make_parser(arguments)
    of_recipe = _read(parser, recipe.words(arguments))
    if asked:
        values = _without_taken_back(of_recipe)
        print(describe_arguments(arguments, recipe.method, values, recipe, shown=HELP[asked[0]]))
        raise SystemExit(0)
    of_user = _read(parser, argv[1:])
    defaults = {argument.name: argument.default for argument in arguments}
    of_recipe, left_out = yield_to(of_user, of_recipe, recipe.name, defaults)
    of_recipe, fitted = _fit_heads(of_user, of_recipe, recipe.name)
    left_out += fitted
    left_out += _unused(of_user, of_recipe)
    values = {"output_dir": f"geossl-{recipe.name}", **_without_taken_back({**of_recipe, **of_user})}
    given: dict[str, dict[str, Any]] = {
        section: {a.name: values[a.name] for a in arguments if a.section == section and a.name in values}
        for section in SECTIONS
    }
    start, source, channels = (given["model"].pop(a.name, a.default) for a in (START, INIT_FROM, INIT_CHANNELS))
    if start is not None and source is not None:
        raise UsageError(
            f"--{START.name} and --{INIT_FROM.name} both name what to start from: leave one of the two out"
        )
    own = [name for name in of_user if name in given["model"]]
    if start is not None and own:
        raise UsageError(f"--{own[0]} is part of the model that --{START.name} names: leave one of the two out")
    return Pretraining(
        recipe.name,
        METHODS[recipe.method],
        start,
        source,
        channels,
        DataArguments(**given["data"]),
        given["model"],
        given["views"],
        given["training"],
        left_out,
    )


def yield_to(
    of_user: Mapping[str, Value], of_recipe: Mapping[str, Value], recipe: str, defaults: Mapping[str, Value]
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Leaves out what a recipe says of something that the user has replaced.

    Args:
        of_user, of_recipe (`Mapping`): Values by name.
        recipe (`str`): Name of the recipe.
        defaults (`Mapping`): Values by name where neither gives one.

    Returns:
        `(dict, tuple[str, ...])`: what is left of the recipe's values, and a sentence for each group that yields.
    """
    remaining, left_out = dict(of_recipe), []
    for name, dependent in YIELDING.items():
        if name not in of_user or of_user[name] == of_recipe.get(name):
            continue
        yielding = {
            other: remaining.pop(other) for other in dependent.split() if other in remaining and other not in of_user
        }
        values = [f"{other}={_written(value)}" for other, value in yielding.items() if value != defaults[other]]
        if values:
            verb = "is" if len(values) == 1 else "are"
            advice = "; --eval_dataset names held-out images to measure on" if "eval_dataset" in yielding else ""
            left_out.append(f"--{name} is given, so {recipe}'s {', '.join(values)} {verb} left out{advice}")
    return remaining, tuple(left_out)


def _fit_heads(
    of_user: Mapping[str, Value], of_recipe: Mapping[str, Value], recipe: str
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Replaces a recipe's number of heads where it does not divide the user's width: heads as wide as the recipe's, about."""
    width, theirs, heads = (
        values.get(name)
        for values, name in (
            (of_user, "hidden_size"),
            (of_recipe, "hidden_size"),
            ({**of_recipe, **of_user}, "num_attention_heads"),
        )
    )
    if not isinstance(width, int) or not isinstance(theirs, int) or not isinstance(heads, int):
        return dict(of_recipe), ()
    if "num_attention_heads" in of_user or width < 1 or heads < 1 or width % heads == 0:
        return dict(of_recipe), ()
    wanted = width * heads / theirs
    fitting = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - wanted))
    said = (
        f"--hidden_size {width} is given, which {recipe}'s num_attention_heads={heads} does not divide: it is {fitting}"
    )
    return {**of_recipe, "num_attention_heads": fitting}, (said,)


def _unused(of_user: Mapping[str, Value], of_recipe: Mapping[str, Value]) -> tuple[str, ...]:
    """A sentence for each argument of the user that something else leaves without a meaning."""
    values = _without_taken_back({**of_recipe, **of_user})
    said = []
    if values.get("eval_dataset") is None:
        said = [
            f"--{name} means nothing without --eval_dataset, and is left out"
            for name in ("eval_split", "eval_images")
            if of_user.get(name) not in (None, TAKEN_BACK)
        ]
    if values.get("probe_dataset") is None and of_user.get("probe_label_column") not in (None, TAKEN_BACK):
        said.append("--probe_label_column means nothing without --probe_dataset, and is left out")
    if values.get(INIT_FROM.name) is None and of_user.get(INIT_CHANNELS.name) not in (None, TAKEN_BACK):
        said.append(f"--{INIT_CHANNELS.name} means nothing without --{INIT_FROM.name}, and is left out")
    if not values.get("push_to_hub"):
        said += [
            f"--{name} means nothing without --push_to_hub true, and is left out"
            for name in ("hub_model_id", "hub_strategy", "hub_revision")
            if of_user.get(name) not in (None, TAKEN_BACK)
        ]
    if values.get("eval_strategy") in (None, "no") and of_user.get("eval_steps") not in (None, TAKEN_BACK):
        said.append("--eval_steps means nothing without --eval_strategy steps, and is left out")
    if {"max_steps", "num_train_epochs"} <= _without_taken_back(of_user).keys() and of_user["max_steps"] != -1:
        said.append("--max_steps is given too, so --num_train_epochs is left out")
    return tuple(said)


def _without_taken_back(values: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value not in (TAKEN_BACK, [TAKEN_BACK])}


def _read(parser: Parser, words: Sequence[str]) -> dict[str, Value]:
    """The values by name; `none` alone takes an argument of several values back."""
    return {name: None if value == [None] else value for name, value in vars(parser.read(words)).items()}


def make_parser(arguments: Sequence[Argument]) -> Parser:
    """Makes the parser of some arguments; its result has those that are given.

    Args:
        arguments (`Sequence[Argument]`): What can be given.

    Returns:
        `Parser`: `--key value`, `--key` and `--no_key` for switches, and several values where there may be several.
    """
    parser = Parser("pretrain", "", usage=USAGE)
    add_arguments(parser, arguments)
    return parser


def describe_arguments(
    arguments: Sequence[Argument],
    method: str,
    values: Mapping[str, Value] | None = None,
    recipe: Recipe | None = None,
    *,
    shown: bool = True,
) -> str:
    """Writes the help of `geossl pretrain`.

    Args:
        arguments (`Sequence[Argument]`): All that can be given.
        method (`str`): The method that they are of.
        values (`Mapping`, *optional*): Those of a recipe, in the place of the defaults.
        recipe (`Recipe`, *optional*): The recipe.
        shown (`bool`): Whether to show only what people usually set.

    Returns:
        `str`: a line an argument, by section.
    """
    defaults = f"the values of {recipe.name}" if recipe else "their defaults"
    known = {argument.name: argument for argument in arguments}
    sections = {
        section: [known.pop(name) for name in names.split() if name in known and not is_deprecated(known[name])]
        for section, names in SHOWN.items()
    }
    lines = [
        f"usage: {USAGE}",
        "",
        f"Recipes: {', '.join(recipes())}.",
        f"A YAML file of 'key: value' lines, in the sections {', '.join(SECTIONS)} or in none, may hold any argument, and "
        "'method'.",
        "What is given on the command line wins, and what a recipe says of its own dataset or length yields to another",
        "--dataset or --num_train_epochs. A value of 'none' takes an argument back.",
        f"Below are the arguments of {method}, with {defaults}; {'--help_all shows all of them' if shown else 'all of them'}.",
        "'geossl pretrain RECIPE --help' shows those of the recipe's method, with the recipe's values.",
    ]
    if not shown:
        for section in SECTIONS:
            sections[section] += [argument for argument in known.values() if argument.section == section]
    for section, entries in sections.items():
        lines += ["", f"{section}:"]
        lines += [_line(entry, (values or {}).get(entry.name, entry.default), shown) for entry in entries]
    return "\n".join(lines)


def is_deprecated(argument: Argument) -> bool:
    """Whether an argument is another name of one that replaces it."""
    return argument.help.startswith("Deprecated")


def _line(argument: Argument, value: Value, short: bool) -> str:
    text = CLEARER.get(argument.name, argument.help)
    text = (re.split(r"(?<=[.;])\s", text)[0] if short else text).rstrip(".;")
    word = {"int": "N", "float": "X", "bool": "true|false"}.get(argument.kind, "WORD")
    name = f"--{argument.name} {word}{' ...' if argument.many else ''}"
    default = "" if value in ("", None) else f" (default: {_written(value)})"
    return f"  {name:38} {text[:1].upper()}{text[1:]}{default}"


def _written(value: Value) -> str:
    if isinstance(value, list):
        return " ".join(map(_written, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
