"""Arguments of `geossl pretrain`: what one is, those of the data, and those of transformers.

The latter are read from the text of the file of the installed version, for importing it takes seconds.
"""

import argparse
import ast
import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from hf_geossl.cli.usage import Parser, UsageError, nearest

SECTIONS = ("data", "model", "views", "training")
BOOLEANS = {
    word: word in ("true", "yes", "t", "y", "1")
    for word in ["true", "yes", "t", "y", "1", "false", "no", "f", "n", "0"]
}
TAKEN_BACK = "\0none"  # as if the argument had not been given: its default holds
Value = bool | int | float | str | None | list["Value"] | dict[str, "Value"]


@dataclass(frozen=True)
class Argument:
    """An argument of the command line, and a key of a recipe.

    Args:
        name (`str`): Its name.
        section (`str`): Where it stands in a recipe: one of `SECTIONS`.
        kind (`str`): "int", "float", "bool" or "str"; "dict" is a text, or JSON of a dictionary.
        default: Its value where it is not given; the text `""` where only its class knows.
        help (`str`): What it is, in sentences of which the first is enough.
        many (`bool`): Whether it takes several values.
        optional (`bool`): Whether it can be None, for which a user writes none.
        choices (`tuple[str, ...]`): The valid words, where they are known.
    """

    name: str
    section: str
    kind: str = "str"
    default: Value = ""
    help: str = ""
    many: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Value:
        """Reads a value.

        Args:
            text (`str`): A word of the command line.

        Returns:
            The value; `TAKEN_BACK` for a "none" that it cannot be.

        Raises:
            UsageError: If it is of another kind.
        """
        if text.lower() == "none" and self.default != "none":  # a word of report_to
            return None if self.optional else TAKEN_BACK
        if self.choices and text not in self.choices:
            raise UsageError(f"--{self.name} has no choice {text!r}{nearest(text, self.choices)}")
        try:
            if self.kind == "dict" and text.lstrip().startswith("{"):
                dictionary: dict[str, Value] = json.loads(text)
                return dictionary
            if self.kind == "bool":
                return BOOLEANS[text.lower()]
            if self.name == SEVERAL and "," in text:
                return [word.strip() for word in text.split(",")]
            return {"int": int, "float": float}.get(self.kind, str)(text)
        except (KeyError, ValueError):
            kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "dict": "JSON"}[self.kind]
            raise UsageError(f"--{self.name} must be {kind}, got {text!r}") from None


SEVERAL = "report_to"  # one word, or several with commas between


@dataclass
class DataArguments:
    """Where the images come from."""

    dataset: str = field(
        default="scenes",
        metadata={
            "help": "Hub dataset, folder or glob of images, parquet, WebDataset tars, 'scenes', or 'photographs'."
        },
    )
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of a Hub dataset; of scenes, such as 'scene-128' or 'topdown-96'."},
    )
    split: str = field(default="train", metadata={"help": "Which part of the dataset."})
    image_column: str = field(default="image", metadata={"help": "The column with the images."})
    channels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Channels to read: rgb (the default), gray, all, or numbers of the files' channels from 1, such as 4,3,2,8. "
            "The model's num_channels follows from it."
        },
    )
    value_range: list[str] | None = field(
        default=None,
        metadata={
            "help": "Stored values that become 0 and 1: 0,4095 (or a pair a channel, 0,4095;0,255), type, percentiles:1,99, or "
            "window:center,width. Chosen from the images by default: 0 to 255 for 8 bits."
        },
    )
    channel_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the channels that are read, such as red,green,blue,infrared."}
    )
    shuffle_block: int = field(default=1000, metadata={"help": "Samples that are permuted together."})
    revision: str | None = field(default=None, metadata={"help": "Revision of a Hub dataset."})
    skip_broken: bool = field(default=True, metadata={"help": "Skip and count images that do not decode."})
    max_broken_share: float = field(default=0.1, metadata={"help": "Share of broken images that stops the run."})
    max_pixels: int = field(default=2**26, metadata={"help": "Images of more pixels are refused, not decoded."})
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Held-out images to measure on after training (and by --eval_strategy), as --dataset."},
    )
    eval_split: str | None = field(
        default=None,
        metadata={"help": "Which part of eval_dataset: 'validation', or 'train' of another dataset that has none."},
    )
    eval_images: int = field(default=512, metadata={"help": "How many images of it are taken at most."})
    probe_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Images with classes that k-NN and a linear probe are measured on while training, as --dataset: its train "
            "and validation (or test) split. The scenes by default where those are trained on; 'off' is without."
        },
    )
    probe_label_column: str = field(default="label", metadata={"help": "The column with the classes of probe_dataset."})


START = Argument(
    "model_name_or_path",
    "model",
    default=None,
    help="Checkpoint to start from; its configuration replaces the model arguments.",
    optional=True,
)
INIT_FROM = Argument(
    "init_from",
    "model",
    default=None,
    help="ViT whose trunk student and teacher start from, heads are fresh: a Hub id or folder of transformers or of this "
    "library, timm:NAME, or a checkpoint file. A run of the same method brings its heads along.",
    optional=True,
)
INIT_CHANNELS = Argument(
    "init_channels",
    "model",
    default="mean",
    help="How its filters become those of other channels: mean, or repeat for its bands in turn; scaled by 3 / channels.",
    choices=("mean", "repeat"),
)


def add_arguments(parser: Parser, arguments: Sequence[Argument], *, shown: bool = False) -> None:
    """Adds arguments to a parser, whose result has those that are given.

    Args:
        parser (`Parser`): Of a command.
        arguments (`Sequence[Argument]`): What can be given: `--key value`, `--key` and `--no_key` for switches, and several
            values where there may be several.
        shown (`bool`): Whether the parser's own help lists them.
    """
    for argument in arguments:
        default = "" if argument.default in ("", None) else f" Default: {argument.default}."
        options: dict[str, Any] = {
            "type": argument.read,
            "default": argparse.SUPPRESS,
            "help": f"{argument.help}{default}".replace("%", "%%") if shown else argparse.SUPPRESS,
        }
        if argument.many:
            options["nargs"] = "+"
        elif argument.kind == "bool":
            options |= {"nargs": "?", "const": True}
        parser.add_argument(f"--{argument.name}", **options)
        if argument.default is True:
            options = {"dest": argument.name, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            parser.add_argument(f"--no_{argument.name}", action="store_false", **options)


def kind_of(annotation: object, default: object = MISSING) -> tuple[str, bool, bool]:
    """Says how a value of a type is written on a command line.

    Args:
        annotation: The type.
        default (*optional*): The default; a tuple or list tells the kind of its entries.

    Returns:
        `(str, bool, bool)`: kind, many and optional of an `Argument`.
    """
    options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    optional = type(None) in options
    if isinstance(default, tuple | list):
        return type(default[0]).__name__, True, optional
    if default is None:
        sequences = [option for option in options if getattr(option, "__origin__", None) in (tuple, list)]
        if sequences:
            return get_args(sequences[0])[0].__name__, True, True
    simple = next((option for option in (float, int, bool) if option in options), str)
    return simple.__name__, False, optional or default is None


def data_arguments() -> list[Argument]:
    """Gives the arguments of `DataArguments`."""
    return [
        Argument(entry.name, "data", kind, getattr(DataArguments, entry.name), entry.metadata["help"], many, optional)
        for entry in fields(DataArguments)
        for kind, many, optional in [kind_of(entry.type, entry.default)]
    ]


@cache
def transformers_arguments() -> tuple[Argument, ...]:
    """Reads transformers' training arguments from the text of their file.

    Returns:
        `tuple[Argument, ...]`: in the order of the file.
    """
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ImportError("transformers is missing: pip install transformers")
    tree = ast.parse(Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    words = {name: _words(node) for name, node in classes.items()}
    return tuple(
        _read_field(node.target.id, ast.unparse(node.annotation), node.value, words)
        for node in classes["TrainingArguments"].body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Call)
        and not any(keyword.arg == "init" for keyword in node.value.keywords)
    )


def _words(node: ast.ClassDef) -> tuple[str, ...]:
    """The texts that a class gives names to: the members of an enumeration."""
    values = [line.value for line in node.body if isinstance(line, ast.Assign)]
    return tuple(value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def _read_field(name: str, annotation: str, call: ast.Call, words: dict[str, tuple[str, ...]]) -> Argument:
    options = annotation.split(" | ")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    default = _literal(given.get("default"))
    metadata = _literal(given.get("metadata"))
    choices = next((words[option] for option in options if option in words), ())
    if any(option.startswith("dict") for option in options):
        kind = "dict"
    else:
        kind = next(
            (option for option in ("float", "int", "bool") if option in options and "str" not in options), "str"
        )
    many = any(option.startswith("list") for option in options) and "str" not in options
    text = str(metadata.get("help", "")) if isinstance(metadata, dict) else ""
    return Argument(name, "training", kind, default, " ".join(text.split()), many, "None" in options, choices)


def _literal(node: ast.expr | None) -> Value:
    """The value of a literal; `""` where it must be computed."""
    try:
        value: Value = "" if node is None else ast.literal_eval(node)
    except ValueError:
        return ""
    return value
