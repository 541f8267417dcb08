"""The arguments of `geossl pretrain`: read without importing what they are of, and equal to it."""

import dataclasses

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_geossl.cli.arguments import (
    TAKEN_BACK,
    Argument,
    DataArguments,
    data_arguments,
    kind_of,
    transformers_arguments,
)
from hf_geossl.cli.usage import UsageError
from hf_geossl.data.images import DEFAULT_MAX_PIXELS


def test_transformers_arguments_are_those_of_the_installed_version() -> None:
    """Names, defaults and help of the class that they are read for, without importing it."""
    theirs = {entry.name: entry for entry in dataclasses.fields(TrainingArguments) if entry.init}
    ours = {argument.name: argument for argument in transformers_arguments()}
    assert list(ours) == list(theirs)
    for name, argument in ours.items():
        if argument.default != "":
            assert argument.default == theirs[name].default, name
        if "log_level" not in name:  # whose help is computed
            assert argument.help == " ".join(theirs[name].metadata.get("help", "").split()), name


def test_values_are_read_as_transformers_own_parser_reads_them() -> None:
    words = {
        "per_device_train_batch_size": "16",
        "learning_rate": "1e-4",
        "bf16": "true",
        "torch_compile": "no",
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "warmup_steps": "0.1",
        "save_total_limit": "3",
        "report_to": "none",
        "eval_strategy": "no",
        "run_name": "a name",
        "fsdp_config": '{"min_num_params": 3}',
    }
    (theirs,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        [word for name, text in words.items() for word in (f"--{name}", text)] + ["--use_cpu"], look_for_args_file=False
    )
    known = {argument.name: argument for argument in transformers_arguments()}
    (ours,) = [TrainingArguments(**{name: known[name].read(text) for name, text in words.items()}, use_cpu=True)]
    for name in words:
        assert getattr(ours, name) == getattr(theirs, name), name


def test_several_trackers_are_named_with_commas() -> None:
    (report_to,) = [argument for argument in transformers_arguments() if argument.name == "report_to"]
    assert report_to.read("tensorboard") == "tensorboard"
    assert report_to.read("tensorboard,trackio, wandb") == ["tensorboard", "trackio", "wandb"]


def test_words_of_an_enumeration_are_known() -> None:
    known = {argument.name: argument for argument in transformers_arguments()}
    assert {"adamw_torch", "adamw_torch_fused", "sgd"} <= set(known["optim"].choices)
    with pytest.raises(UsageError, match="--optim has no choice 'adamw_torhc'; did you mean 'adamw_torch'?"):
        known["optim"].read("adamw_torhc")


@pytest.mark.parametrize(
    ("argument", "text", "value"),
    [
        (Argument("a", "data", "int"), "-3", -3),
        (Argument("a", "data", "float"), "1e-3", 1e-3),
        (Argument("a", "data", "bool"), "True", True),
        (Argument("a", "data", "bool"), "0", False),
        (Argument("a", "data", "int", optional=True), "None", None),
        (Argument("a", "data", default="none", optional=True), "none", "none"),
        (Argument("a", "data", "dict"), '{"b": [1]}', {"b": [1]}),
        (Argument("a", "data", "int"), "none", TAKEN_BACK),
        (Argument("a", "data", choices=("b",)), "None", TAKEN_BACK),
        (Argument("a", "data", "dict"), "file.json", "file.json"),
    ],
)
def test_values(argument: Argument, text: str, value: object) -> None:
    assert argument.read(text) == value
    assert type(argument.read(text)) is type(value)


@pytest.mark.parametrize(
    ("argument", "text", "message"),
    [
        (Argument("a", "data", "int"), "3.5", "--a must be a whole number, got '3.5'"),
        (Argument("a", "data", "float"), "much", "--a must be a number, got 'much'"),
        (Argument("a", "data", "bool"), "on", "--a must be true or false, got 'on'"),
        (Argument("a", "data", "dict"), "{", "--a must be JSON, got '{'"),
    ],
)
def test_values_of_another_kind(argument: Argument, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        argument.read(text)
    assert str(error.value) == message


def test_kinds_of_annotations() -> None:
    assert kind_of(int) == ("int", False, False)
    assert kind_of(float | int | None) == ("float", False, True)
    assert kind_of(bool) == ("bool", False, False)
    assert kind_of(tuple[float, float], (0.3, 1.0)) == ("float", True, False)
    assert kind_of(list[int] | None, None) == ("int", True, True)
    assert kind_of(str, None) == ("str", False, True)


def test_data_arguments_have_the_streams_own_limit() -> None:
    assert DataArguments().max_pixels == DEFAULT_MAX_PIXELS
    assert {argument.name: argument.default for argument in data_arguments()} == vars(DataArguments())
