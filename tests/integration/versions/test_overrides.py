"""What our trainers override and read of transformers' fits the installed version, whichever setup.py allows."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

from hf_geossl.methods import METHODS

TRAINERS = [METHODS[name].load("trainer") for name in METHODS]


def _own_classes() -> list[type]:
    classes = {cls for trainer in TRAINERS for cls in trainer.__mro__ if cls.__module__.startswith("hf_geossl")}
    return sorted(classes, key=lambda cls: cls.__name__)


def _overrides() -> Iterator[tuple[type, str]]:
    """Private methods that a class of ours defines and transformers' Trainer has too."""
    for cls in _own_classes():
        for name, value in vars(cls).items():
            private = name.startswith("_") and not name.endswith("__")
            if private and inspect.isfunction(value) and inspect.isfunction(getattr(Trainer, name, None)):
                yield cls, name


def differences(ours: inspect.Signature, theirs: inspect.Signature) -> list[str]:
    """Why `ours` would not take what `theirs` takes; the same parameters in the same order, or a rest that takes them."""
    kinds = inspect.Parameter
    rest = {p.kind for p in ours.parameters.values() if p.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)}
    named = [name for name, p in ours.parameters.items() if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    expected = [
        name for name, p in theirs.parameters.items() if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    ]
    found = []
    while len(named) > len(expected) and ours.parameters[named[-1]].default is not kinds.empty:
        del named[-1]  # more than theirs, which nobody has to give
    if named != expected[: len(named)]:
        found.append(f"parameters {', '.join(named)} instead of {', '.join(expected)}")
    missing = expected[len(named) :]
    by_name_only = [name for name in missing if theirs.parameters[name].kind is kinds.KEYWORD_ONLY]
    if missing and kinds.VAR_KEYWORD not in rest:
        found.append(f"{', '.join(missing)} cannot be given by name")
    if len(missing) > len(by_name_only) and kinds.VAR_POSITIONAL not in rest:
        found.append(f"{', '.join(missing)} cannot be given by place")
    for name in named:
        if name in theirs.parameters and (ours.parameters[name].default is kinds.empty) > (
            theirs.parameters[name].default is kinds.empty
        ):
            found.append(f"{name} has no default")
    return found


@pytest.mark.parametrize(("cls", "name"), list(_overrides()), ids=lambda value: getattr(value, "__name__", value))
def test_overridden_methods_take_what_transformers_gives(cls: type, name: str) -> None:
    ours, theirs = (inspect.signature(getattr(owner, name)) for owner in (cls, Trainer))
    assert differences(ours, theirs) == [], f"transformers {transformers.__version__}"


def test_other_signatures_are_noticed() -> None:
    def theirs(self: Any, model: Any, trial: Any = None, *, resume: bool = False) -> None: ...

    def same(self: Any, model: Any, trial: Any = None, *, resume: bool = False) -> None: ...

    def rest(self: Any, model: Any, *args: Any, **kwargs: Any) -> None: ...

    def other_order(self: Any, trial: Any = None, model: Any = None, *, resume: bool = False) -> None: ...

    def without(self: Any, model: Any, trial: Any = None) -> None: ...

    def by_place_only(self: Any, *args: Any) -> None: ...

    def no_default(self: Any, model: Any, trial: Any, *, resume: bool = False) -> None: ...

    found = [differences(inspect.signature(ours), inspect.signature(theirs)) for ours in (same, rest)]
    assert found == [[], []]
    for ours in (other_order, without, by_place_only, no_default):
        assert differences(inspect.signature(ours), inspect.signature(theirs)), ours.__name__


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return ast.unparse(node)


def _names_read(cls: type) -> set[str]:
    """Private names that a module's methods read off `self`, its parts (the accelerator) and `super()`."""
    tree = ast.parse(Path(inspect.getsourcefile(cls) or "").read_text())
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and isinstance(node.ctx, ast.Load)
        and _root(node) in ("self", "super()")
    }


def _names_given(cls: type) -> set[str]:
    """Private names that our module gives something: functions, classes, attributes that are set."""
    tree = ast.parse(Path(inspect.getsourcefile(cls) or "").read_text())
    named = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return named | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }


def test_private_names_that_are_read_exist_in_the_installed_versions() -> None:
    """Not all versions of a library have them: a run on transformers 5.17 once died at its end of a name of 5.24's."""
    import accelerate.accelerator
    import accelerate.state
    import transformers.trainer

    libraries = (transformers.trainer, accelerate.accelerator, accelerate.state)
    text = "\n".join(Path(library.__file__).read_text() for library in libraries)
    known = {name for library in (Trainer, TrainingArguments, torch.nn.Module) for name in dir(library)}
    ours = {name for cls in _own_classes() for name in _names_given(cls)}
    missing = {
        f"{cls.__name__}: {name}"
        for cls in _own_classes()
        for name in _names_read(cls) - ours - known
        if f".{name}" not in text and f"def {name}" not in text
    }
    assert missing == set(), f"transformers {transformers.__version__}, accelerate {accelerate.__version__}"
