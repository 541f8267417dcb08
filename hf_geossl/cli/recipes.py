"""What `geossl pretrain` is told: recipes, YAML files and every argument of the command line."""

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from hf_geossl.data.images import DEFAULT_MAX_PIXELS
from hf_geossl.modeling.configuration_equicoherent import EquiCoherentConfig
from hf_geossl.modeling.configuration_gtsa import GTSAConfig
from hf_geossl.modeling.configuration_loca import LOCAConfig
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.pretraining_equicoherent import EquiCoherentForPreTraining
from hf_geossl.modeling.pretraining_gtsa import GTSAForPreTraining
from hf_geossl.modeling.pretraining_loca import LOCAForPreTraining
from hf_geossl.training.arguments_equicoherent import EquiCoherentTrainingArguments
from hf_geossl.training.arguments_gtsa import GTSATrainingArguments
from hf_geossl.training.arguments_loca import LOCATrainingArguments
from hf_geossl.training.trainer_equicoherent import EquiCoherentTrainer
from hf_geossl.training.trainer_gtsa import GTSATrainer
from hf_geossl.training.trainer_loca import LOCATrainer
from hf_geossl.views.color import ColorRecipe
from hf_geossl.views.equicoherent import EquiCoherentViews
from hf_geossl.views.gtsa import GTSAViews
from hf_geossl.views.loca import LOCAViews
from hf_geossl.views.transformation_path import TransformationPath

# fields of a configuration that pretraining does not read, that a method fixes, or that a training argument sets
_NOT_FOR_PRETRAINING = {
    "use_class_token",
    "use_mask_token",
    "position_interpolation",
    "apply_layernorm",
    "reshape_hidden_states",
    "semantic_loss_ignore_index",
    "correspondence_weight",
    "rotation_weight",
}
_PREFIXED = {"split": "model_split"}  # fields of a configuration that data arguments have the name of
_NOT_FOR_METHOD = {"loca": {"initializer_range"}}  # it has its own initialisation


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
        default=None, metadata={"help": "Checkpoint to start from; its configuration replaces the model arguments."}
    )
    eval_dataset: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Held-out images to measure on after training (and by --eval_strategy), as --dataset."},
    )
    eval_split: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Which part of eval_dataset: 'validation', or 'train' of another dataset that has none."},
    )
    eval_images: int = dataclasses.field(default=512, metadata={"help": "How many images of it are taken at most."})


@dataclasses.dataclass(frozen=True)
class Method:
    """What `geossl pretrain` needs to know of a method."""

    config: Any
    model: Any
    views: Any
    arguments: Any
    trainer: Any

    @property
    def shared(self) -> list[str]:
        """Arguments of the views that the configuration holds: asked once, and the views take the model's."""
        fields = {entry.name for entry in dataclasses.fields(self.config)}
        return [name for name in inspect.signature(self.views).parameters if name in fields]


METHODS = {
    "gtsa": Method(GTSAConfig, GTSAForPreTraining, GTSAViews, GTSATrainingArguments, GTSATrainer),
    "loca": Method(LOCAConfig, LOCAForPreTraining, LOCAViews, LOCATrainingArguments, LOCATrainer),
    "equicoherent": Method(
        EquiCoherentConfig,
        EquiCoherentForPreTraining,
        EquiCoherentViews,
        EquiCoherentTrainingArguments,
        EquiCoherentTrainer,
    ),
}


def _simple_type(annotation: Any, default: Any) -> Any:
    """The type that a command line can give: `list` for tuples, the widest of a union."""
    if isinstance(default, (tuple, list)):
        return list[type(default[0])]  # type: ignore[misc]
    options = typing.get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    sequences = [option for option in options if typing.get_origin(option) in (tuple, list)]
    if default is None and sequences:
        return list[typing.get_args(sequences[0])[0]] | None  # type: ignore[misc]
    simple = next((option for option in (float, int, bool, str) if option in options), str)
    return simple | None if default is None or type(None) in options else simple


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


def _model_arguments(config: Any) -> type:
    bases = [base for base in reversed(config.__mro__) if issubclass(base, GeometricViTConfig)]
    own = {name for base in bases for name in base.__annotations__}
    left_out = _NOT_FOR_PRETRAINING | _NOT_FOR_METHOD.get(config.model_type, set())
    fields = {
        _PREFIXED.get(entry.name, entry.name): (entry.type, entry.default)
        for entry in dataclasses.fields(config)
        if entry.name in own and not entry.name.startswith("_") and entry.name not in left_out
    }
    described = _described(*bases)
    return _dataclass_of(
        "ModelArguments", fields, {_PREFIXED.get(name, name): text for name, text in described.items()}
    )


def model_fields(model_arguments: Any) -> dict[str, Any]:
    """The fields of a configuration, from the model arguments of `parse_pretrain`."""
    names = {given: name for name, given in _PREFIXED.items()}
    return {names.get(name, name): value for name, value in dataclasses.asdict(model_arguments).items()}


def make_config(method: Method, model_arguments: Any) -> Any:
    """The configuration that the user has asked for.

    Args:
        method (`Method`): The method.
        model_arguments: The model arguments of `parse_pretrain`.

    Returns:
        `GeometricViTConfig`: the method's configuration.

    Raises:
        UsageError: With one line, in the command line's words, if a value is of another type or out of its range.
    """
    try:
        return method.config(**model_fields(model_arguments))
    except StrictDataclassError as error:
        message = " ".join(str(error.__cause__ or error).split())
        for name, given in _PREFIXED.items():  # the field, not the same word in a sentence
            message = re.sub(rf"\b{name}(?=='| must\b)", given, message)
        raise UsageError(message) from error


def _view_arguments(method: Method) -> type:
    fields = {
        name: (parameter.annotation, parameter.default)
        for name, parameter in inspect.signature(method.views).parameters.items()
        if name not in method.shared
    }
    return _dataclass_of("ViewArguments", fields, _described(ColorRecipe, TransformationPath, method.views))


class _Loader(yaml.SafeLoader):
    """YAML whose only booleans are true and false: 'off' and 'no' are words, and values of some arguments."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF"))


class _Parser(HfArgumentParser):
    def error(self, message: str) -> Any:
        choice = re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message)
        if choice:
            near = nearest(choice.group(1), [word.strip(" '") for word in choice.group(2).split(",")])
            message = f"{message.split(' (choose')[0]}{near}"
        raise UsageError(message)


def nearest(word: str, valid: Sequence[str], prefix: str = "") -> str:
    """The end of an error message: the valid word that is closest to a wrong one, or some of the valid ones."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.4)
    return f"; did you mean '{prefix}{close[0]}'?" if close else f"; valid are {', '.join(sorted(valid)[:12])}"


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
            raise UsageError(f"there is no recipe {name!r}{nearest(name, list(known))} (or give a .yaml file)")
        path = known[name]
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe loader
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


def _parser(method: Method, defaults: str = "their defaults") -> _Parser:
    types: list[Any] = [DataArguments, _model_arguments(method.config), _view_arguments(method), method.arguments]
    parser = _Parser(
        types,
        prog="geossl pretrain",
        usage="geossl pretrain RECIPE_OR_YAML [--key value ...]",
        allow_abbrev=False,
        description=f"Recipes: {', '.join(recipes())}. A YAML file of 'key: value' lines may hold any argument below, "
        "and 'method'. What is given on the command line wins. A value of 'none' takes an argument back. Below are the "
        f"arguments of {method.config.model_type}, with {defaults}. 'geossl pretrain RECIPE --help' shows those of the "
        "recipe's method, with the recipe's values.",
    )
    parser.add_argument("--method", choices=list(METHODS), default="gtsa", help="The method that the recipe is for.")
    return parser


def parse_pretrain(argv: Sequence[str]) -> tuple[Method, str, list[Any]]:
    """Reads recipe and command line.

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
        raise UsageError(f"method {method_name!r} is unknown{nearest(str(method_name), list(METHODS))}")
    method = METHODS[method_name]
    parser = _parser(method, f"the values of {name}")
    valid = [action.dest for action in parser._actions if action.dest != "help"]
    for key in recipe:
        if key not in valid:
            raise UsageError(f"{argv[0]}: unknown key {key!r}{nearest(key, valid)}")
    recipe.setdefault("output_dir", f"geossl-{name}")
    if {"-h", "--help"} & set(argv):
        parser.set_defaults(**recipe)
        parser.print_help()
        raise SystemExit(0)
    tokens = [token for key, value in recipe.items() for token in _tokens(key, value)] + list(argv[1:])
    optional = {  # HfArgumentParser rewrites the fields' types, not the annotations
        name
        for dataclass_type in parser.dataclass_types
        for name, annotation in typing.get_type_hints(dataclass_type).items()
        if type(None) in typing.get_args(annotation) and name != "report_to"  # whose "none" is a word
    }
    # a later 'none' takes an argument back, so that its dataclass's None is meant
    taken_back: set[str] = set()
    given: list[str] = []
    skip = False
    for index, token in enumerate(tokens):
        if token.startswith("--"):
            key, _, value = token[2:].partition("=")
            key = key.replace("-", "_")
            following = value or (tokens[index + 1] if index + 1 < len(tokens) else "")
            skip = following.lower() == "none" and key != "report_to"
            if skip and key in valid and key not in optional:
                raise UsageError(f"--{key} needs a value, got 'none'")
            (taken_back.add if skip else taken_back.discard)(key)
        if not skip:
            given.append(token)
    namespace, unknown = parser.parse_known_args(given)
    wrong = [token for token in unknown if token.startswith("-")] or unknown
    if wrong:
        key = wrong[0].lstrip("-").split("=")[0].replace("-", "_")
        raise UsageError(f"unknown argument {wrong[0]}{nearest(key, valid, '--')}")
    for key in taken_back:
        if key not in valid:
            raise UsageError(f"unknown argument --{key}{nearest(key, valid, '--')}")
        setattr(namespace, key, None)
    parsed = []
    for dataclass_type in parser.dataclass_types:
        names = [entry.name for entry in dataclasses.fields(dataclass_type) if entry.init]
        parsed.append(dataclass_type(**{key: getattr(namespace, key) for key in names}))
    return method, name, parsed
