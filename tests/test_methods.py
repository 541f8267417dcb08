"""The table of methods: every reference leads somewhere, and every list of methods is read from it."""

import ast
from dataclasses import fields, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_geossl.methods import METHODS, Method

REFERENCES = ("config", "model", "pretraining", "views", "arguments", "trainer", "card")
OF_THE_DEMO = ("demo_limits", "demo_tabs")  # whose files import gradio, which is an extra
rows = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@rows
def test_every_reference_leads_to_what_it_names(method: Method) -> None:
    for name in REFERENCES:
        reference = getattr(method, name)
        if reference:
            assert method.load(name).__name__ == reference.partition(":")[2]
    for name in OF_THE_DEMO:
        module, _, function = getattr(method, name).partition(":")
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        defined = {node.name for node in ast.parse(Path(spec.origin).read_text()).body if hasattr(node, "name")}
        assert function in defined
    for picture in method.pictures:
        assert picture.load().__name__ == picture.maker.partition(":")[2]
    for converter in method.converters:
        assert callable(converter.load())
    assert METHODS[method.name] is method


@rows
def test_a_row_fits_its_classes(method: Method) -> None:
    config = method.load("config")
    assert config.model_type == method.name
    assert method.load("pretraining").config_class is config
    assert method.load("trainer").arguments_class is method.load("arguments")
    names = {entry.name for entry in fields(config)}
    assert {*method.fixed, *method.trained_fields} <= names


@rows
def test_public_names_are_found_where_the_row_says(method: Method) -> None:
    names = method.public_names()
    assert len(names) == 12
    for name, module in names.items():
        found = getattr(import_module(module), name)
        assert found.__module__ == module
        assert name.startswith(method.title)


def test_a_reference_that_leads_nowhere_says_so() -> None:
    row = replace(METHODS["gtsa"], views="hf_geossl.views.gtsa:Nothing")
    with pytest.raises(AttributeError, match="Nothing"):
        row.load("views")
