"""The table of arguments is what the classes say."""

import dataclasses
import json

import pytest
from transformers import TrainingArguments

from hf_geossl.cli.describe import TABLE, describe_method, make_table, method_arguments, shared_settings
from hf_geossl.methods import METHODS


def test_the_table_is_up_to_date() -> None:
    assert TABLE.read_text(encoding="utf-8") == make_table(), "run: python -m hf_geossl.cli.describe"


def test_settings_that_model_and_views_share_are_asked_for_once() -> None:
    for name, shared in {"gtsa": "num_intermediate", "loca": "patch_size", "equicoherent": "host"}.items():
        assert shared in shared_settings(METHODS[name])
        sections = [argument.section for argument in describe_method(name) if argument.name == shared]
        assert sections == ["model"]


def test_what_pretraining_fixes_is_no_argument() -> None:
    names = {name: {argument.name for argument in describe_method(name)} for name in METHODS}
    assert "initializer_range" in names["gtsa"]
    assert "initializer_range" not in names["loca"]
    assert "semantic_loss_ignore_index" not in names["equicoherent"]
    (weight,) = [argument for argument in describe_method("gtsa") if argument.name == "rotation_weight"]
    assert weight.section == "training"  # the configuration's own is left to it
    assert {"model_split", "host"} <= names["equicoherent"]
    assert "split" not in names["equicoherent"]


def test_help_is_what_the_docstrings_say() -> None:
    known = {argument.name: argument for argument in describe_method("gtsa")}
    assert known["hidden_size"].help == "Width of the tokens."
    assert known["hidden_size"].default == 384
    assert known["global_scale"].many
    assert all(argument.help for argument in known.values()), [a.name for a in known.values() if not a.help]


@pytest.mark.parametrize("method", METHODS)
def test_every_name_stands_once_and_a_method_wins_over_transformers(method: str) -> None:
    arguments = method_arguments(method)
    names = [argument.name for argument in arguments]
    assert len(set(names)) == len(names)
    known = {argument.name: argument for argument in arguments}
    fields = METHODS[method].load("arguments").__dataclass_fields__
    assert set(fields) - set(names) <= {name for name, entry in fields.items() if not entry.init}
    assert known["weight_decay"].default == fields["weight_decay"].default != TrainingArguments.weight_decay


def test_a_method_that_the_table_lacks_is_described_from_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(json.loads(TABLE.read_text())) == set(METHODS)
    expected = describe_method("loca")
    monkeypatch.setitem(METHODS, "fourth", dataclasses.replace(METHODS["loca"], name="fourth"))
    assert [argument for argument in method_arguments("fourth") if argument in expected] == expected
