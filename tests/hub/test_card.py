"""A card is made from what lies in a folder, and says what is in the weights."""

import json
import logging
from pathlib import Path

import pytest
import torch

from hf_geossl.hub.card import write_card
from hf_geossl.hub.export import export_model
from hf_geossl.hub.run_record import weights_digest, write_record
from tests.helpers.methods import METHODS

RECORD = {"weights": "teacher", "steps": 8, "weights_step": 8, "precision": "fp32"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export_model(METHODS["gtsa"].model("ForPreTraining"), tmp_path / "my-model")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["Model", "ForImageClassification", "ForPreTraining"])
def test_any_saved_model_gets_a_card_without_a_record(tmp_path: Path, method: str, kind: str) -> None:
    METHODS[method].model(kind).save_pretrained(tmp_path / "m")
    card = write_card(tmp_path / "m", license="mit").read_text()
    assert card.startswith("---\n")
    assert 'from_pretrained("m"' in card
    assert "| hidden size | 32 |" in card
    assert "| weights | float32 |" in card
    assert "The weights are published under mit." in card
    assert "## Training" not in card


def test_the_card_says_of_which_step_and_format_the_weights_are(folder: Path) -> None:
    write_record(RECORD, folder)
    assert "| weights | float32 |" in write_card(folder).read_text()
    write_record({**RECORD, "weights_step": 4, "precision": "bf16"}, folder)
    METHODS["gtsa"].model("Model").to(torch.bfloat16).save_pretrained(folder)
    card = write_card(folder).read_text()
    assert "| optimizer steps | 8 |" in card
    assert "| weights | bfloat16, of optimizer step 4, the best checkpoint's |" in card
    assert "| precision | bf16 |" in card


@pytest.mark.parametrize("missing", [*RECORD, "all"])
def test_no_missing_key_of_the_record_stops_a_card(folder: Path, missing: str) -> None:
    write_record({} if missing == "all" else {k: v for k, v in RECORD.items() if k != missing}, folder)
    card = write_card(folder).read_text()
    assert ", by hf_geossl" not in card  # no versions are known
    write_record({**RECORD, "versions": {"hf_geossl": "9.9"}, "losses": [{"step": 1, "loss": 2.0}]}, folder)
    card = write_card(folder).read_text()
    assert ", by hf_geossl 9.9." in card
    assert "| software | hf_geossl 9.9 |" in card
    assert "| 1 | 2.0000 |" in card


def test_pictures_and_results_of_the_folder_are_on_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "features.png").write_bytes(b"")
    about = {"dataset": "scenes", "weights_digest": weights_digest(folder)}
    (folder / "results.json").write_text(json.dumps({"about": about, "knn": {"accuracy": 0.625}}))
    card = write_card(folder).read_text()
    assert "](features.png)" in card
    assert "positions.png" not in card
    assert "| knn | accuracy | 0.625 | scenes |" in card
    (folder / "results.json").write_text(json.dumps({"about": {"weights_digest": "other"}, "knn": {"accuracy": 0.625}}))
    with caplog.at_level(logging.WARNING):
        assert "0.625" not in write_card(folder).read_text()
    assert "the results are of other weights than my-model holds now" in caplog.text


def test_a_rendered_card_is_replaced_and_a_written_one_keeps_its_text(folder: Path) -> None:
    path = write_card(folder, name="user/name")
    assert 'from_pretrained("user/name"' in path.read_text()
    assert 'from_pretrained("my-model"' in write_card(folder).read_text()
    path.write_text("---\nlicense: cc0-1.0\n---\n# Mine\n")
    card = write_card(folder).read_text()
    assert "# Mine" in card
    assert "license: cc0-1.0" in card
    assert "pipeline_tag: image-feature-extraction" in card
    path.write_text("# Mine\nhf_AbCdEfGhIjKlMnOpQrStUvWxYz0123\n")
    with pytest.raises(ValueError, match="line 2 of README.md holds what looks like a token"):
        write_card(folder)


def test_a_folder_without_a_model_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no config.json"):
        write_card(tmp_path)
    with pytest.raises(ValueError, match="there is no folder 'gone'"):
        write_card(tmp_path / "gone")
