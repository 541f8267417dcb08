"""The command `geossl`."""

import argparse
import dataclasses
import difflib
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any

import torch
import transformers
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, set_seed

from hf_geossl.modeling.configuration_gtsa import GTSAConfig
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.pretraining_gtsa import GTSAForPreTraining
from hf_geossl.publishing import convert_dino_checkpoint, convert_gtsa_checkpoint, convert_timm_checkpoint
from hf_geossl.training.arguments import GTSATrainingArguments
from hf_geossl.training.checkpoints import CheckpointError, newest_whole_checkpoint
from hf_geossl.training.color_recipe import ColorRecipe
from hf_geossl.training.export import PICTURE, export_model, make_image_processor
from hf_geossl.training.images import DEFAULT_MAX_PIXELS
from hf_geossl.training.streams import BrokenStreamError, load_stream
from hf_geossl.training.trainer import NonFiniteLossError
from hf_geossl.training.trainer_gtsa import GTSATrainer
from hf_geossl.training.views_gtsa import GTSAViews

# fields of a configuration that pretraining does not read, or that a training argument of the same name sets
_NOT_FOR_PRETRAINING = {
    "apply_layernorm",
    "reshape_hidden_states",
    "semantic_loss_ignore_index",
    "correspondence_weight",
    "rotation_weight",
}


class UsageError(Exception):
    """The user's words do not fit; the message is one line."""


@dataclasses.dataclass
class DataArguments:
    """Where the images come from."""

    dataset: str = dataclasses.field(
        default="scenes",
        metadata={"help": "Hub dataset, folder or glob of images, parquet, WebDataset tars, or 'scenes'."},
    )
    dataset_config: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Configuration of a Hub dataset; of scenes, such as 'scene-128' or 'topdown-96'."},
    )
    split: str = dataclasses.field(default="train", metadata={"help": "Which part of the dataset."})
    image_column: str = dataclasses.field(default="image", metadata={"help": "The column with the images."})
    shuffle_block: int = dataclasses.field(default=1000, metadata={"help": "Samples that are permuted together."})
    revision: str | None = dataclasses.field(default=None, metadata={"help": "Revision of a Hub dataset."})
    skip_broken: bool = dataclasses.field(default=True, metadata={"help": "Skip and count images that do not decode."})
    max_broken_share: float = dataclasses.field(
        default=0.1, metadata={"help": "Share of broken images that stops the run."}
    )
    max_pixels: int = dataclasses.field(
        default=DEFAULT_MAX_PIXELS, metadata={"help": "Images of more pixels are refused, not decoded."}
    )
    model_name_or_path: str | None = dataclasses.field(
        default=None, metadata={"help": "Checkpoint to start the weights from; otherwise they are random."}
    )


@dataclasses.dataclass(frozen=True)
class Method:
    """What `geossl pretrain` needs to know of a method."""

    config: Any
    model: Any
    views: Any
    arguments: Any
    trainer: Any


METHODS = {"gtsa": Method(GTSAConfig, GTSAForPreTraining, GTSAViews, GTSATrainingArguments, GTSATrainer)}


def _simple_type(annotation: Any, default: Any) -> Any:
    """The type that a command line can give: `list` for tuples, the widest of a union."""
    if isinstance(default, (tuple, list)):
        return list[type(default[0])]  # type: ignore[misc]
    options = typing.get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    simple = next((option for option in (float, int, bool, str) if option in options), str)
    return simple | None if default is None else simple


def _described(*classes: type) -> dict[str, str]:
    """What docstrings say of their arguments, by name."""
    found: dict[str, str] = {}
    for cls in classes:
        text = re.sub(r"\s+", " ", inspect.getdoc(cls) or "")
        for match in re.finditer(
            r"((?:\w+, )*\w+) \(([^()]*(?:\([^()]*\)[^()]*)*)\): (.*?)(?= (?:\w+, )*\w+ \(`| Raises:| Source:|$)", text
        ):
            for name in match.group(1).split(", "):
                found[name] = match.group(3).replace("%", "%%").strip()
    return found


def _dataclass_of(name: str, fields: dict[str, tuple[Any, Any]], help_texts: dict[str, str]) -> type:
    """A dataclass for `HfArgumentParser` from `{name: (annotation, default)}`."""
    made = []
    for key, (annotation, default) in fields.items():
        metadata = {"help": help_texts.get(key, "")}
        if isinstance(default, (tuple, list)):
            entry: Any = dataclasses.field(default_factory=partial(list, list(default)), metadata=metadata)
        else:
            entry = dataclasses.field(default=default, metadata=metadata)
        made.append((key, _simple_type(annotation, default), entry))
    return dataclasses.make_dataclass(name, made)


def _model_arguments(config: type) -> type:
    own = {**GeometricViTConfig.__annotations__, **config.__annotations__}
    fields = {
        entry.name: (entry.type, entry.default)
        for entry in dataclasses.fields(config)
        if entry.name in own and not entry.name.startswith("_") and entry.name not in _NOT_FOR_PRETRAINING
    }
    return _dataclass_of("ModelArguments", fields, _described(GeometricViTConfig, config))


def _view_arguments(views: type) -> type:
    parameters = list(inspect.signature(views).parameters.values())
    fields = {parameter.name: (parameter.annotation, parameter.default) for parameter in parameters}
    return _dataclass_of("ViewArguments", fields, _described(ColorRecipe, views))


class _Parser(HfArgumentParser):
    def error(self, message: str) -> Any:
        choice = re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message)
        if choice:
            near = _nearest(choice.group(1), [word.strip(" '") for word in choice.group(2).split(",")])
            message = f"{message.split(' (choose')[0]}{near}"
        raise UsageError(message)


def _nearest(word: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {', '.join(sorted(valid)[:12])}"


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("hf_geossl.training") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _read_recipe(name: str) -> tuple[str, dict[str, Any]]:
    """Name and contents of a recipe or of the user's own YAML file."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = recipes()
        if name not in known:
            raise UsageError(f"there is no recipe {name!r}{_nearest(name, list(known))} (or give a .yaml file)")
        path = known[name]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{name} must hold lines 'key: value', got {type(content).__name__}")
    return path.stem, content


def _tokens(key: str, value: Any) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"--{key}", *("none" if item is None else str(item) for item in values)]


def _parser(method: Method) -> _Parser:
    types: list[Any] = [DataArguments, _model_arguments(method.config), _view_arguments(method.views), method.arguments]
    parser = _Parser(
        types,
        prog="geossl pretrain RECIPE_OR_YAML",
        allow_abbrev=False,
        description=f"Recipes: {', '.join(recipes())}. A YAML file of 'key: value' lines may hold any argument below, "
        "and 'method'. What is given on the command line wins. A value of 'none' takes an argument back.",
    )
    parser.add_argument("--method", choices=list(METHODS), default="gtsa", help="The method that the recipe is for.")
    return parser


def parse_pretrain(argv: Sequence[str]) -> tuple[Method, str, list[Any]]:
    """
    Reads recipe and command line.

    Args:
        argv (`Sequence[str]`): What follows `geossl pretrain`.

    Returns:
        `tuple[Method, str, list]`: the method, the recipe's name, and its data, model, view and training arguments.

    Raises:
        UsageError: With one line that names the key and the nearest valid one.
    """
    if not argv or argv[0] in ("-h", "--help"):
        _parser(METHODS["gtsa"]).print_help()
        raise SystemExit(0 if argv else 2)
    if argv[0].startswith("-"):
        raise UsageError(f"the recipe comes first: geossl pretrain {' or '.join(recipes())}, or a .yaml file")
    name, recipe = _read_recipe(argv[0])
    method_name = recipe.get("method", "gtsa")
    if method_name not in METHODS:
        raise UsageError(f"method {method_name!r} is unknown{_nearest(str(method_name), list(METHODS))}")
    method = METHODS[method_name]
    parser = _parser(method)
    valid = [action.dest for action in parser._actions if action.dest != "help"]
    for key in recipe:
        if key not in valid:
            raise UsageError(f"{argv[0]}: unknown key {key!r}{_nearest(key, valid)}")
    recipe.setdefault("output_dir", f"geossl-{name}")
    tokens = [token for key, value in recipe.items() for token in _tokens(key, value)] + list(argv[1:])
    # a later 'none' takes an argument back, so that its dataclass's None is meant
    taken_back: set[str] = set()
    given: list[str] = []
    skip = False
    for index, token in enumerate(tokens):
        if token.startswith("--"):
            key, _, value = token[2:].partition("=")
            key = key.replace("-", "_")
            following = value or (tokens[index + 1] if index + 1 < len(tokens) else "")
            (taken_back.add if following.lower() == "none" else taken_back.discard)(key)
            skip = following.lower() == "none"
        if not skip:
            given.append(token)
    namespace, unknown = parser.parse_known_args(given)
    wrong = [token for token in unknown if token.startswith("-")] or unknown
    if wrong:
        key = wrong[0].lstrip("-").split("=")[0].replace("-", "_")
        raise UsageError(f"unknown argument {wrong[0]}{_nearest(key, valid)}")
    for key in taken_back:
        if key not in valid:
            raise UsageError(f"unknown argument --{key}{_nearest(key, valid)}")
        setattr(namespace, key, None)
    parsed = []
    for dataclass_type in parser.dataclass_types:
        names = [entry.name for entry in dataclasses.fields(dataclass_type) if entry.init]
        parsed.append(dataclass_type(**{key: getattr(namespace, key) for key in names}))
    return method, name, parsed


def _resume_from(args: Any) -> str | bool | None:
    """What to resume from; refuses to start in a folder that holds something."""
    folder, asked = Path(args.output_dir), args.resume_from_checkpoint
    if asked is not None and asked.lower() in ("true", "false"):
        asked = asked.lower() == "true"
    if asked is True and newest_whole_checkpoint(folder) is None:
        print(f"{folder.name} holds no whole checkpoint yet: the run starts from the beginning", file=sys.stderr)
        return None
    if not asked and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"the output folder {args.output_dir} is not empty: choose another --output_dir, or go on with the run in it "
            "by --resume_from_checkpoint true"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {args.output_dir} is a file, not a folder")
    return asked or None


def pretrain(argv: Sequence[str]) -> int:
    """`geossl pretrain`: trains as a recipe says and leaves a folder that `AutoModel` opens."""
    method, _, (data, model_arguments, view_arguments, args) = parse_pretrain(argv)
    resume = _resume_from(args)
    if args.device.type == "cpu":  # workers and threads that contend for a core slow each other down many times over
        torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) - args.dataloader_num_workers)))
    set_seed(args.seed)
    stream = load_stream(
        data.dataset,
        data.split,
        config_name=data.dataset_config,
        image_column=data.image_column,
        shuffle_block=data.shuffle_block,
        seed=args.seed if args.data_seed is None else args.data_seed,
        skip_broken=data.skip_broken,
        revision=data.revision,
        max_broken_share=data.max_broken_share,
        max_pixels=data.max_pixels,
    )
    config = method.config(**dataclasses.asdict(model_arguments))
    if data.model_name_or_path is None:
        model = method.model(config)
    else:
        model = method.model.from_pretrained(data.model_name_or_path)
    trainer = method.trainer(
        model=model,
        args=args,
        train_dataset=stream,
        views=method.views(**{key: _as_tuple(value) for key, value in dataclasses.asdict(view_arguments).items()}),
    )
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(
        f"{args.output_dir}: {parameters / 1e6:.1f} M trained parameters, {trainer.args.max_steps} steps of "
        f"{trainer.args.global_batch_size} images from {data.dataset}"
    )
    trainer.train(resume_from_checkpoint=resume)
    if trainer.pause.signal is not None:
        print(
            f"stopped at step {trainer.state.global_step}. Go on with:\n  geossl pretrain {' '.join(argv)} --resume_from_checkpoint true"
        )
        return 128 + trainer.pause.signal
    trainer.save_model()
    print(f"\nThe model lies in {args.output_dir} (trained {trainer.state.global_step} steps). Load it anywhere:\n")
    print("  from transformers import AutoModel")
    print(f'  model = AutoModel.from_pretrained("{args.output_dir}", trust_remote_code=True)\n')
    if (Path(args.output_dir) / PICTURE).is_file():
        print(f"Features before and after: {Path(args.output_dir) / PICTURE}")
    return 0


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def convert(argv: Sequence[str]) -> int:
    """`geossl convert`: foreign checkpoints to folders that `AutoModel` opens."""
    converters: dict[str, Callable[..., Any]] = {
        "gtsa": convert_gtsa_checkpoint,
        "timm": convert_timm_checkpoint,
        "dino": convert_dino_checkpoint,
    }
    parser = argparse.ArgumentParser(prog="geossl convert", description=convert.__doc__)
    parser.add_argument("source", choices=sorted(converters), help="Whose checkpoint it is.")
    parser.add_argument("file", help="The .pth or .safetensors file; nothing in it is executed.")
    parser.add_argument("output", help="Folder to write.")
    parser.add_argument("--num_attention_heads", type=int, help="Heads; by default one for each 64 channels.")
    parser.add_argument(
        "--weights",
        choices=("full", "student", "teacher"),
        default="full",
        help="Of a GTSA checkpoint: the whole pretraining model (AutoModel opens its student), or one trunk; of a DINO "
        "checkpoint: which network ('full' is the teacher).",
    )
    options = parser.parse_args(argv)
    folder = Path(options.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{options.output} exists and is not empty: choose another folder")
    keywords: dict[str, Any] = {}
    if options.num_attention_heads is not None:
        width = 64 * options.num_attention_heads
        keywords["config"] = GTSAConfig(
            hidden_size=width,
            num_attention_heads=options.num_attention_heads,
            position_interpolation_offset=0.0 if options.source == "timm" else 0.1,
        )
    if options.source == "dino":
        keywords["weights"] = "student" if options.weights == "student" else "teacher"
    model = converters[options.source](options.file, **keywords)
    size = model.config.image_height_width
    views = GTSAViews(global_size=size[0])
    processor = make_image_processor(views)
    if options.source == "gtsa" and options.weights != "full":
        export_model(model, folder, weights=options.weights, image_processor=processor)
    else:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f'converted to {options.output}: AutoModel.from_pretrained("{options.output}", trust_remote_code=True)')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; errors of the user's are one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"pretrain": pretrain, "convert": convert}
    transformers.utils.logging.disable_progress_bar()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: geossl COMMAND ...\n\ncommands:")
        for name, command in commands.items():
            print(f"  {name:10} {(command.__doc__ or '').split(': ', 1)[1]}")
        print("\ngeossl COMMAND --help shows every argument.")
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise UsageError(f"there is no command {arguments[0]!r}{_nearest(arguments[0], list(commands))}")
        return commands[arguments[0]](arguments[1:])
    except (UsageError, CheckpointError, BrokenStreamError, NonFiniteLossError) as error:
        print(f"geossl: {error}", file=sys.stderr)
        return 2
    except StrictDataclassError as error:
        print(f"geossl: {' '.join(str(error.__cause__ or error).split())}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"geossl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("geossl: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
