"""The exported trunk is the teacher's or the student's, beside its processor and what is known of the run."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_geossl.hub.export import export_model, make_image_processor
from tests.helpers.methods import METHODS


@pytest.mark.parametrize("weights", ["teacher", "student"])
def test_weights_are_those_asked_for_and_the_record_names_them(tmp_path: Path, weights: str) -> None:
    model = METHODS["gtsa"].model("ForPreTraining")
    before = torch.get_rng_state()
    folder = export_model(model, tmp_path / "m", weights=weights, record={"steps": 3}, arguments={"max_steps": 3})
    assert torch.equal(before, torch.get_rng_state())
    trunk = model.teacher.gtsa if weights == "teacher" else model.gtsa
    saved = load_file(folder / "model.safetensors")
    for name, value in saved.items():
        assert torch.equal(value, trunk.state_dict()[name]), name
    assert json.loads((folder / "training_run.json").read_text()) == {"weights": weights, "steps": 3}
    assert yaml.safe_load((folder / "training_args.yaml").read_text()) == {"max_steps": 3}
    assert not (folder / "README.md").exists()
    assert not list(folder.glob(".export-*"))


def test_without_a_record_there_is_none_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    export_model(METHODS["loca"].model("ForPreTraining"), tmp_path, image_processor=make_image_processor((32, 48)))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "training_run.json").exists()
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"height": 32, "width": 48}


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    alone = METHODS["equicoherent"].model("ForPreTraining", host="simclr")
    with pytest.raises(ValueError, match="this method has no teacher"):
        export_model(alone, tmp_path / "m", weights="teacher")
    with pytest.raises(ValueError, match="weights must be 'teacher' or 'student', got 'mean'"):
        export_model(alone, tmp_path / "m", weights="mean")
    assert not (tmp_path / "m").exists()
