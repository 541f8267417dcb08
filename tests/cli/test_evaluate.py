"""`geossl evaluate`: its settings, its files and its help; what is measured is tested with `evaluate_model`."""

import dataclasses
from pathlib import Path

import pytest

import hf_geossl.cli.evaluate as command
from hf_geossl.cli.evaluate import _parser, output_files, parse_settings
from hf_geossl.cli.main import main
from hf_geossl.evaluation import report
from hf_geossl.evaluation.registry import ABOUT, FAILED, TASKS
from hf_geossl.evaluation.samples import Columns
from tests.helpers.small_recipes import error_line


def test_defaults_are_those_of_the_library() -> None:
    options = vars(_parser().read(["model"]))
    columns = dataclasses.asdict(Columns())
    assert {name: options.get(f"{name}_column", options.get(name)) for name in columns} == columns


def test_settings_are_read_as_yaml_writes_them() -> None:
    words = ["segmentation.steps=1000", "segmentation.learning_rate=1e-3", "knn.neighbours=[1, 2e1]", "knn.name=none"]
    assert parse_settings(words) == {
        "segmentation": {"steps": 1000, "learning_rate": 0.001},
        "knn": {"neighbours": [1, 20.0], "name": "none"},
    }
    with pytest.raises(ValueError, match="--set takes TASK.SETTING=VALUE"):
        parse_settings(["steps=1000"])
    with pytest.raises(ValueError, match="there is no task 'segmantation'; did you mean 'segmentation'?"):
        parse_settings(["segmantation.steps=1000"])
    with pytest.raises(ValueError, match="the value of --set knn.a=\\[1 cannot be read"):
        parse_settings(["knn.a=[1"])


def test_every_model_has_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "b" / "run").mkdir(parents=True)
    first, second = str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")
    assert output_files([first], None) == [tmp_path / "a" / "run" / "results.json"]
    assert output_files(["timm:vit_tiny", "user/name"], None) == [
        Path("vit_tiny_results.json"),
        Path("user_name_results.json"),
    ]
    assert output_files([first], str(tmp_path)) == [tmp_path / "results.json"]
    assert output_files([first], "x.json") == [Path("x.json")]
    assert output_files([first, second], "out") == [Path("out/run.json"), Path("out/run_2.json")]
    with pytest.raises(ValueError, match="a model is named twice"):
        output_files([first, first], "out")
    with pytest.raises(ValueError, match="must be a folder for the results of several models"):
        output_files([first, second], "out.json")


def test_help_describes_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    for name, task in TASKS.items():
        assert f"  {name} " in text
        assert task.summary in text


def test_a_missing_model_among_one_is_an_error_before_anything_is_imported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert error_line(capsys, "evaluate", "./nowhere") == "geossl: there is no file or folder ./nowhere"
    assert "there is no file or folder a/b/c" in error_line(capsys, "evaluate", "user/name", "--dataset", "a/b/c")


@pytest.mark.parametrize("word", ["--dataset_config", "--dataset_revision", "--revision"])
def test_words_for_repositories_mean_nothing_for_what_lies_here(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_line(capsys, "evaluate", str(tmp_path), "--dataset", str(tmp_path), word, "x")
    assert message.startswith(f"geossl: {word} means nothing for")
    assert message.endswith("leave it out")


@pytest.mark.parametrize(("failed", "status"), [({}, 0), ({"linear": "no"}, 1), ({"knn": "no", "linear": "no"}, 2)])
def test_the_exit_status_says_whether_there_is_a_number(
    failed: dict[str, str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {ABOUT: {FAILED: failed}, **{name: {} for name in ("knn", "linear") if name not in failed}}
    monkeypatch.setattr(command, "_measure", lambda *arguments: results)
    monkeypatch.setattr(report, "read_measured", lambda files: [])
    monkeypatch.setattr(report, "terminal_table", lambda measured: "")
    assert command.evaluate([str(tmp_path), "--tasks", "knn,linear"]) == status


def test_the_next_command_is_one_that_works(tmp_path: Path) -> None:
    """A card is written of models of this library alone."""
    for kind, cards in (("loca", 1), ("vit", 0)):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        argv = [str(tmp_path), "--limit", "20"]
        steps = command._what_next(_parser().read(argv), argv, output_files([str(tmp_path)], None))
        assert [step.split()[:2] for step, _ in steps] == [["geossl", "card"]] * cards + [["geossl", "evaluate"]]
