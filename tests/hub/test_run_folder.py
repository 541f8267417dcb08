"""Which model of a folder is shown or published, and what is said of folders that hold none."""

import json
from pathlib import Path

import pytest

from hf_geossl.hub import run_folder
from tests.helpers.demo_models import mark_whole


def model(folder: Path, architecture: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gtsa", "architectures": [architecture]}))
    return folder


def test_the_newest_whole_checkpoint_is_preferred_to_the_trunk(tmp_path: Path) -> None:
    run = model(tmp_path / "run", "GTSAModel")
    assert run_folder.find_model(run)[::2] == (run, "")
    for step in (9, 20, 100):
        mark_whole(model(run / f"checkpoint-{step}", "GTSAForPreTraining"))
    (run / "checkpoint-100" / "config.json").write_text(
        json.dumps({"model_type": "gtsa", "architectures": ["GTSAForPreTraining"], "more": 1})
    )
    (run / "checkpoint-x").mkdir()
    assert [path.name for path in run_folder.list_checkpoints(run)] == [
        "checkpoint-100", "checkpoint-20", "checkpoint-9",
    ]  # fmt: skip
    assert "config.json has" in str(run_folder.why_not_whole(run / "checkpoint-100"))
    found, config, words = run_folder.find_model(run)
    assert (found.name, config["architectures"], words) == (
        "checkpoint-20", ["GTSAForPreTraining"], " in checkpoint-20",
    )  # fmt: skip
    assert run_folder.find_model(run / "checkpoint-9")[::2] == (run / "checkpoint-9", "")
    assert run_folder.list_checkpoints(tmp_path / "nothing") == []


def test_a_checkpoint_that_was_never_finished_says_so(tmp_path: Path) -> None:
    checkpoint = model(tmp_path / "checkpoint-1", "GTSAForPreTraining")
    assert run_folder.why_not_whole(checkpoint) == "it has no COMPLETE.json, so it was never finished"
    (checkpoint / "COMPLETE.json").write_text("{")
    assert run_folder.why_not_whole(checkpoint) == "its COMPLETE.json is damaged"
    (checkpoint / "COMPLETE.json").unlink()
    mark_whole(checkpoint)
    (checkpoint / "config.json").unlink()
    assert "config.json has no bytes of" in str(run_folder.why_not_whole(checkpoint))


def test_a_composed_model_says_who_publishes_it(tmp_path: Path) -> None:
    config = {
        "model_type": "geossl_upernet",
        "architectures": ["UperNetForX"],
        "backbone_config": {"model_type": "gtsa"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for read in (run_folder.read_config, run_folder.find_model):
        with pytest.raises(
            ValueError, match="holds UperNetForX over a trunk .* and `hf upload USER/NAME .*` publishes it"
        ):
            read(tmp_path)


def test_a_checkpoint_has_the_processor_of_its_run(tmp_path: Path) -> None:
    run = model(tmp_path / "run", "GTSAModel")
    checkpoint = model(run / "checkpoint-3", "GTSAForPreTraining")
    (run / "preprocessor_config.json").write_text("{}")
    assert run_folder.processor_files(checkpoint) == [run / "preprocessor_config.json"]
    assert run_folder.processor_files(model(run / "other", "GTSAModel")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no config.json"),
        ("{", "config.json of m cannot be read"),
        ("[]", "config.json of m is no configuration"),
        ('{"model_type": "bert"}', "a model of type 'bert', and this library's are gtsa, loca, equicoherent"),
    ],
)
def test_what_is_no_model_of_this_library_is_said_in_a_line(tmp_path: Path, content: str | None, message: str) -> None:
    (tmp_path / "m").mkdir()
    if content is not None:
        (tmp_path / "m" / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        run_folder.read_config(tmp_path / "m")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="there is no folder 'gone'"):
        run_folder.read_config(tmp_path / "gone")
