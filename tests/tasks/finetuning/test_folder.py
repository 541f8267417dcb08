"""What lies in a folder: a model whole or absent, and results that its card knows to be of these weights."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from hf_geossl.hub.card import render_card
from hf_geossl.hub.results import measured_results, read_results
from hf_geossl.tasks.finetuning.folder import result_name, save_folder, write_results
from hf_geossl.tasks.finetuning.kinds import find_task
from hf_geossl.tasks.finetuning.models import Start
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import LabelledDataset

RESULT = {
    "accuracy": 0.75,
    "intervals": {"accuracy": [0.5, 0.9]},
    "details": {"floors": {"accuracy": {"constant": 0.4}}},
}


@pytest.fixture
def saved(trunk: Path, tmp_path: Path) -> Path:
    task = find_task("classification")
    folder = tmp_path / "tuned"
    save_folder(Start.open(trunk).build(task, ["cat", "dog"], HeadSettings()), task, folder)
    return folder


def test_the_folder_is_a_plain_one_of_transformers(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_gtsa.py"} <= names
    assert all(path.is_file() for path in saved.iterdir())  # nothing staged is left
    processor = json.loads((saved / "preprocessor_config.json").read_text())
    assert (processor["size"], processor["resample"]) == ({"height": 32, "width": 32}, 3)


def test_the_card_has_the_number_with_its_interval_and_floor(saved: Path) -> None:
    task, split = find_task("classification"), _split()
    write_results(
        saved, task, RESULT, LabelledDataset("scenes"), split, 32, "geossl finetune tuned scenes --evaluate_only"
    )
    results = read_results(measured_results(saved) or {})
    assert [(one.task, one.hub_task, one.value) for one in results] == [
        (result_name(task), "image-classification", 0.75)
    ]
    assert results[0].measured == "0.75 (95 %: 0.5 to 0.9; constant: 0.4)"
    card = render_card(saved, "tuned", results=results)
    assert (
        "| finetuned_classification | accuracy | 0.75 (95 %: 0.5 to 0.9; constant: 0.4) | scenes (test), 6 images |"
        in card
    )
    assert "geossl finetune tuned scenes --evaluate_only" in card
    (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes() + b" ")
    assert measured_results(saved) is None  # other weights


@pytest.mark.parametrize("name", ["classification", "segmentation", "depth", "detection"])
def test_the_code_of_the_card_says_what_is_in_a_picture(
    name: str, trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its size: a picture is not as large as what the model sees."""
    monkeypatch.chdir(tmp_path)
    task = find_task(name)
    save_folder(
        Start.open(trunk).build(task, [] if name == "depth" else ["cat", "dog"], HeadSettings()), task, Path("m")
    )
    Image.effect_noise((60, 44), 80).save("photo.jpg")
    card, found = render_card(Path("m"), "m"), dict[str, Any]()
    with torch.no_grad():
        exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], found)
    if name == "classification":
        assert found["label"] in ("cat", "dog")
    elif name == "detection":
        assert {"scores", "labels", "boxes"} == found["found"].keys()
        assert "Finds objects of 2 classes in an image" in card
    else:
        assert found["classes" if name == "segmentation" else "depth"].shape == (44, 60)


def _split() -> Any:
    samples = SimpleNamespace(description={"split": "test"}, size=32, fingerprint="0" * 64)
    return _Split(samples=samples, held_out=False)


class _Split(SimpleNamespace):
    def __len__(self) -> int:
        return 6
