"""What `geossl pretrain` reads of recipe and command line, and its help."""

import re
from dataclasses import replace

import pytest

from hf_geossl import GTSATrainingArguments, LOCATrainingArguments
from hf_geossl.cli.arguments import DataArguments
from hf_geossl.cli.describe import method_arguments
from hf_geossl.cli.main import main
from hf_geossl.cli.pretrain_arguments import SHOWN, parse_pretrain
from hf_geossl.cli.recipes import read_recipe, recipes
from hf_geossl.cli.usage import UsageError


def _help(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", *argv])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_shows_what_people_set_by_section(capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(capsys, "--help")
    lines = text.splitlines()
    assert [line.rstrip(":") for line in lines if re.fullmatch(r"[a-z][\w ]*:", line, re.IGNORECASE)] == [*SHOWN]
    arguments = [line for line in lines if line.startswith("  --")]
    assert 35 <= len(arguments) <= 50
    for piece in (
        "--teacher_momentum X ",
        "(default: 0.996)",
        "--hidden_size N ",
        "(default: 384)",
        "--dataset WORD ",
        "(default: scenes)",
        "(default: 0.3 1)",
        "loca_base_imnet1k",
        "--help_all shows all of them",
        "'geossl pretrain RECIPE --help' shows those of the recipe's method",
    ):
        assert piece in text
    assert "Deprecated" not in text


def test_all_help_shows_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(capsys, "--help_all")
    for name in [*GTSATrainingArguments.__dataclass_fields__, "dataset", "image_column", "hidden_size", "global_size"]:
        if GTSATrainingArguments.__dataclass_fields__.get(name) is None or (
            GTSATrainingArguments.__dataclass_fields__[name].init
        ):
            assert re.search(rf"^  --{name} ", text, re.MULTILINE), name


def test_help_of_a_recipe_shows_its_methods_arguments_and_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(capsys, "loca_base_imnet1k", "--help_all")
    for name, entry in LOCATrainingArguments.__dataclass_fields__.items():
        assert not entry.init or f"--{name} " in text, name
    for piece in ("--num_prototypes ", "--focal_size ", "--eval_dataset ", "arguments of loca"):
        assert piece in text
    for piece in ("(default: 18765)", "(default: 768)", "(default: ILSVRC/imagenet-1k)"):
        assert piece in text
    assert "--rotation_weight" not in text
    assert text.count("--patch_size ") == 1
    assert len(_help(capsys, "loca_base_imnet1k", "--help").splitlines()) < 70


def test_without_arguments_help_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain"])
    assert stop.value.code == 2
    assert "usage: geossl pretrain RECIPE_OR_YAML" in capsys.readouterr().out


def test_the_command_line_wins_and_none_takes_back() -> None:
    given = parse_pretrain(["quickstart", "--num_local", "3", "--num-local=5", "--base_learning_rate", "none"])
    assert given.views["num_local"] == 5
    assert given.training["base_learning_rate"] is None
    assert given.training["output_dir"] == "geossl-quickstart"
    assert "weight_decay" not in given.training  # its class knows
    assert parse_pretrain(["quickstart", "--base_learning_rate", "none", "--base_learning_rate", "0.1"]).training[
        "base_learning_rate"
    ] == pytest.approx(0.1)


def test_switches_and_several_values() -> None:
    given = parse_pretrain(["quickstart", "--bf16", "--no_picture", "--num_matches", "3", "4", "--exact-resize", "yes"])
    assert given.training["bf16"] is True
    assert given.training["picture"] is False
    assert given.model["num_matches"] == [3, 4]
    assert given.views["exact_resize"] is True
    assert parse_pretrain(["quickstart", "--model_name_or_path", "a/b"]).model_name_or_path == "a/b"


def test_a_list_can_be_taken_back() -> None:
    recipe = ["equicoherent_vicreg_small", "--projector_sizes"]
    assert parse_pretrain([*recipe, "8", "9"]).model["projector_sizes"] == [8, 9]
    assert "projector_sizes" not in parse_pretrain([*recipe, "none"]).model  # the configuration's own
    assert parse_pretrain(["equicoherent_quickstart", "--blur_probability", "none"]).views["blur_probability"] is None


@pytest.mark.parametrize("recipe", [*recipes()])
def test_own_images_need_one_argument(recipe: str) -> None:
    """What a recipe says of its own dataset goes with it, each value by name; what the user gives stays."""
    own = parse_pretrain([recipe]).data
    given = parse_pretrain([recipe, "--dataset", "photos"])
    assert given.data == replace(
        DataArguments(), dataset="photos", eval_images=own.eval_images, shuffle_block=own.shuffle_block
    )
    told = " ".join(given.left_out)
    for name in ("dataset_config", "eval_dataset", "eval_split", "image_column", "revision", "split"):
        default = getattr(DataArguments(), name)
        assert (f"{name}={getattr(own, name)}" in told) == (getattr(own, name) != default), name
    both = parse_pretrain([recipe, "--dataset", "photos", "--eval_dataset", "others", "--eval_split", "test"])
    assert (both.data.eval_dataset, both.data.eval_split) == ("others", "test")
    assert parse_pretrain([recipe, "--dataset", own.dataset]).data == own
    assert parse_pretrain([recipe, "--dataset", own.dataset]).left_out == ()


@pytest.mark.parametrize(
    ("recipe", "given", "yields"),
    [
        ("quickstart", "num_train_epochs=2", "max_steps"),
        ("quickstart", "learning_rate=0.1", "base_learning_rate"),
        ("loca_quickstart", "eval_dataset=none", "eval_split"),
        ("dino_small_coco", "host=vicreg", "num_local"),
    ],
)
def test_a_recipes_value_yields_to_what_excludes_it(recipe: str, given: str, yields: str) -> None:
    parsed = parse_pretrain([recipe, f"--{given}"])
    plain = parse_pretrain([recipe])
    before, after = ({**one.views, **one.training, "eval_split": one.data.eval_split} for one in (plain, parsed))
    assert before[yields] is not None
    assert after.get(yields) is None
    assert [
        line.startswith(f"--{given.partition('=')[0]} is given, so {recipe}'s {yields}=") for line in parsed.left_out
    ] == [True]
    both = parse_pretrain([recipe, f"--{given}", f"--{yields}={before[yields]}"])
    assert not any(f"{recipe}'s" in line for line in both.left_out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--eval_split", "test"], ["--eval_split means nothing without --eval_dataset, and is left out"]),
        (["--hub_model_id", "a/b"], ["--hub_model_id means nothing without --push_to_hub true, and is left out"]),
        (["--hub_model_id", "a/b", "--push_to_hub", "true"], []),
        (["--eval_steps", "5"], ["--eval_steps means nothing without --eval_strategy steps, and is left out"]),
        (["--eval_images", "8"], ["--eval_images means nothing without --eval_dataset, and is left out"]),
        (["--eval_images", "8", "--eval_dataset", "photos"], []),
        (["--eval_split", "none"], []),
        (
            ["--max_steps", "9", "--num_train_epochs", "2"],
            ["--max_steps is given too, so --num_train_epochs is left out"],
        ),
        (["--max_steps", "none", "--num_train_epochs", "2"], []),
        (["--max_steps", "-1", "--num_train_epochs", "2"], []),
    ],
)
def test_arguments_without_a_meaning_are_said(words: list[str], said: list[str]) -> None:
    left_out = parse_pretrain(["quickstart", "--eval_dataset", "none", *words]).left_out
    assert [line for line in left_out if "quickstart's" not in line] == said


def test_every_argument_can_be_taken_back() -> None:
    for recipe in ("quickstart", "loca_quickstart", "equicoherent_quickstart"):
        for argument in method_arguments(read_recipe(recipe).method):
            parsed = parse_pretrain([recipe, f"--{argument.name}", "none"])
            values = {**vars(parsed.data), **parsed.model, **parsed.views, **parsed.training}
            default = getattr(DataArguments(), argument.name, None)
            expected = (
                "none"
                if argument.default == "none"
                else f"geossl-{recipe}"
                if argument.name == "output_dir"
                else default
            )
            assert values.get(argument.name) == expected or argument.optional, argument.name


def test_the_model_to_start_from_and_its_arguments_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--hidden_size is part of the model that --model_name_or_path names"):
        parse_pretrain(["quickstart", "--model_name_or_path", "a/b", "--hidden_size", "8"])


def test_heads_of_a_recipe_yield_to_a_width_that_they_do_not_divide():
    given = parse_pretrain(["quickstart", "--hidden_size", "32"])
    assert given.model["num_attention_heads"] == 1  # the recipe's are 96 / 3 = 32 wide
    assert given.left_out == (
        "--hidden_size 32 is given, which quickstart's num_attention_heads=3 does not divide: it is 1",
    )
    assert parse_pretrain(["quickstart", "--hidden_size", "192"]).model["num_attention_heads"] == 3
    both = parse_pretrain(["quickstart", "--hidden_size", "32", "--num_attention_heads", "3"])
    assert both.model["num_attention_heads"] == 3
    assert both.left_out == ()
