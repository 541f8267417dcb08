"""Recipes: YAML in sections (`data`, `model`, `views`, `training`) that holds arguments of `geossl pretrain`."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

from hf_geossl.cli.arguments import SECTIONS, Argument, Value
from hf_geossl.cli.usage import UsageError, nearest
from hf_geossl.methods import METHODS

Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]


def _without_booleans(resolvers: Resolvers) -> Resolvers:
    return {
        first: [(tag, pattern) for tag, pattern in entries if not tag.endswith(":bool")]
        for first, entries in resolvers.items()
    }


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans, which are true and false alone: 'off' and 'no' are words, and values of some arguments."""

    yaml_implicit_resolvers = _without_booleans(yaml.SafeLoader.yaml_implicit_resolvers)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    """A mapping, of which no key may come twice: YAML would take the last and drop the others."""
    loader.flatten_mapping(node)
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise yaml.constructor.ConstructorError(
            None, None, f"{twice[0]} stands in it twice: leave one of the two out", node.start_mark
        )
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF"))


@dataclass(frozen=True)
class Recipe:
    """What a recipe holds.

    Args:
        source (`str`): What the user called it, for messages.
        name (`str`): Its name.
        method (`str`): The method that it is for.
        entries (`tuple`): (section or None where it stands in none, key, value) of each line.
    """

    source: str
    name: str
    method: str
    entries: tuple[tuple[str | None, str, Value], ...]

    def words(self, arguments: list[Argument]) -> list[str]:
        """Gives the recipe as words of a command line.

        Args:
            arguments (`list[Argument]`): All arguments of the method.

        Returns:
            `list[str]`: `--key=value`, or `--key` and several values.

        Raises:
            UsageError: If there is no such argument, or it belongs in another section.
        """
        known = {argument.name: argument for argument in arguments}
        words = []
        names = [key for _, key, _ in self.entries]
        for section, key, value in self.entries:
            if names.count(key) > 1:
                raise UsageError(f"{self.source}: {key} stands in it twice: leave one of the two out")
            if key not in known:
                raise UsageError(f"{self.source}: unknown key {key!r}{nearest(key, list(known))}")
            if section not in (None, known[key].section):
                raise UsageError(f"{self.source}: {key} belongs in section {known[key].section}, not in {section}")
            if isinstance(value, list) and not known[key].many:
                raise UsageError(f"{self.source}: {key} takes one value, not a list")
            if isinstance(value, list):
                words += [f"--{key}", *map(_word, value)]
            else:
                words.append(f"--{key}={_word(value)}")
        return words


def _word(value: Value) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return "none" if value is None else str(value)


def recipes() -> dict[str, Path]:
    """Gives the recipes that come with the package, by name."""
    folder = Path(str(resources.files("hf_geossl") / "training" / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(source: str) -> Recipe:
    """Reads a recipe, or a user's own YAML file.

    Args:
        source (`str`): The name of a recipe, or a path that ends in .yaml or .yml. Keys may stand in sections or in none.

    Returns:
        `Recipe`: with `method` "gtsa" where the file names none.

    Raises:
        UsageError: With one line, if there is no such recipe, or it is no YAML of keys and values.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        known = recipes()
        if source not in known:
            raise UsageError(f"there is no recipe {source!r}{nearest(source, list(known))} (or give a .yaml file)")
        path = known[source]
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe loader
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{source} must hold lines 'key: value', got {type(content).__name__}")
    method = str(content.pop("method", next(iter(METHODS))))
    if method not in METHODS:
        raise UsageError(f"method {method!r} is unknown{nearest(method, list(METHODS))}")
    return Recipe(source, path.stem, method, tuple(_entries(source, content)))


def _entries(source: str, content: dict[str, Value]) -> Iterator[tuple[str | None, str, Value]]:
    for key, value in content.items():
        if key not in SECTIONS:
            yield None, key, value
        elif isinstance(value, dict):
            yield from ((key, name, entry) for name, entry in value.items())
        elif value is not None:  # a section without lines
            raise UsageError(f"{source}: section {key} must hold lines 'key: value', got {value!r}")
