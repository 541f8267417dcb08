"""Lists the arguments of a method: from `arguments.json`, and where that lacks it from its classes.

The table is there so that help and errors need no import of torch and transformers. It is made from the classes by
`python -m hf_geossl.cli.describe`.
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from hf_geossl.cli.arguments import (
    INIT_CHANNELS,
    INIT_FROM,
    SECTIONS,
    START,
    Argument,
    Value,
    data_arguments,
    kind_of,
    transformers_arguments,
)
from hf_geossl.methods import METHODS, Method

TABLE = Path(__file__).with_name("arguments.json")
# fields of every configuration that pretraining does not read, or that a method fixes
NOT_FOR_PRETRAINING = {
    "use_class_token",
    "use_mask_token",
    "position_interpolation",
    "apply_layernorm",
    "reshape_hidden_states",
    "semantic_loss_ignore_index",
    "decoder_type",
    "decoder_channels",
    "max_depth",
    "init_from",  # an argument that more follows from
    "image_format",  # resolved from --channels, --value_range and the images
}
RENAMED = {"split": "model_split"}  # fields of a configuration that arguments of the data have the name of


def method_arguments(method: str) -> list[Argument]:
    """Gives all arguments of a method, in the order of the sections.

    Args:
        method (`str`): Its name. One that the table lacks is described from its classes.

    Returns:
        `list[Argument]`: each name once.
    """
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    if method in table:
        own = [Argument(**{**entry, "choices": tuple(entry.get("choices", ()))}) for entry in table[method]]
    else:
        own = describe_method(method)
    taken = {argument.name for argument in own}
    theirs = [argument for argument in transformers_arguments() if argument.name not in taken]
    every = [*data_arguments(), START, INIT_FROM, INIT_CHANNELS, *own, *theirs]
    return sorted(every, key=lambda argument: SECTIONS.index(argument.section))


def describe_method(name: str) -> list[Argument]:
    """Lists the arguments of a method's configuration, views and training.

    Args:
        name (`str`): The method's.

    Returns:
        `list[Argument]`: without those of transformers that the method leaves as they are.
    """
    method = METHODS[name]
    return [*_model_arguments(method), *_view_arguments(method), *_training_arguments(method)]


def shared_settings(method: Method) -> list[str]:
    """Names the settings of the views that the configuration has too: they are the model's, and given once."""
    fields = {entry.name for entry in dataclasses.fields(method.load("config"))}
    return [name for name in _flat_settings(method) if name in fields]


def _flat_settings(method: Method) -> dict[str, "dataclasses.Field[object]"]:
    """The settings of the views but for what the images are, which arguments of the data say."""
    flat = method.load("views").flat_settings()
    return {name: entry for name, entry in flat.items() if entry.metadata["place"][0] != "image"}


def _model_arguments(method: Method) -> Iterator[Argument]:
    config = method.load("config")
    bases = [base for base in reversed(config.__mro__) if base.__module__.startswith("hf_geossl") or base is config]
    own = _declared(bases) - NOT_FOR_PRETRAINING - set(method.fixed)
    texts = _docstring_entries(bases)
    for entry in dataclasses.fields(config):
        if entry.name in own and not entry.name.startswith("_"):
            yield _argument(RENAMED.get(entry.name, entry.name), "model", entry, texts.get(entry.name, ""))


def _view_arguments(method: Method) -> Iterator[Argument]:
    shared = shared_settings(method)
    for name, entry in _flat_settings(method).items():
        if name not in shared:
            yield _argument(name, "views", entry, entry.metadata.get("help", ""))


def _training_arguments(method: Method) -> Iterator[Argument]:
    arguments = method.load("arguments")
    bases = [base for base in arguments.__mro__ if not base.__module__.startswith("transformers")]
    own, texts = _declared(bases), _docstring_entries(list(reversed(bases)))
    for entry in dataclasses.fields(arguments):
        if entry.name in own:
            yield _argument(entry.name, "training", entry, texts.get(entry.name, ""))


def _declared(classes: list[type]) -> set[str]:
    return {name for cls in classes for name in inspect.get_annotations(cls)}


def _argument(name: str, section: str, entry: "dataclasses.Field[object]", text: str) -> Argument:
    kind, many, optional = kind_of(entry.type, entry.default)
    default: Value = list(entry.default) if isinstance(entry.default, tuple) else entry.default  # type: ignore[assignment]
    return Argument(
        name, section, kind, default, " ".join(re.sub(r"[`\"]", "", text).replace("%%", "%").split()), many, optional
    )


def _docstring_entries(classes: list[type]) -> dict[str, str]:
    """Reads what docstrings say of arguments, by name."""
    entries: dict[str, str] = {}
    for cls in classes:
        text = re.sub(r"\s+", " ", inspect.getdoc(cls) or "")
        pattern = r"((?:\w+, )*\w+) \(([^()]*(?:\([^()]*\)[^()]*)*)\): (.*?)(?= (?:\w+, )*\w+ \(`| Raises:| Source:|$)"
        for match in re.finditer(pattern, text):
            for name in match[1].split(", "):
                entries[name] = match[3].strip()
    return entries


def _as_entry(argument: Argument) -> dict[str, Value]:
    """Gives what differs from an empty `Argument`, for the table."""
    empty = Argument("", "")
    return {key: value for key, value in dataclasses.asdict(argument).items() if value != getattr(empty, key)}


def make_table() -> str:
    """Gives the text of the table: a line for each argument."""
    methods = []
    for name in METHODS:
        lines = ",\n".join(f"  {json.dumps(_as_entry(argument))}" for argument in describe_method(name))
        methods.append(f"{json.dumps(name)}: [\n{lines}\n]")
    return "{" + ",\n".join(methods) + "}\n"


if __name__ == "__main__":
    TABLE.write_text(make_table(), encoding="utf-8")
