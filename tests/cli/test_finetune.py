"""`geossl finetune`: from a trunk to a folder that says its number, and sentences for what cannot be done."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.cli.main import main
from tests.helpers.labelled_photographs import write_labelled_photographs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled_photographs(tmp_path_factory.mktemp("labelled") / "photographs")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trunk") / "trunk"
    with torch.random.fork_rng(devices=[]):
        config = GTSAConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
        GTSAModel(config).save_pretrained(folder)
    return folder


def test_the_number_at_the_end_is_measured_again(
    trunk: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tuned"
    words = ["finetune", str(trunk), str(photographs), "--task", "classification", "--output_dir", str(folder)]
    words += ["--max_steps", "2", "--use_cpu", "--disable_tqdm", "true", "--train_layers", "head"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "classification of 3 classes, 2 steps of 16 of 12 images" in said
    assert "0 of the trunk's" in said
    numbers = re.findall(r"^(?:accuracy|mean_per_class_accuracy) \S+", said, re.MULTILINE)
    assert len(numbers) == 2
    saved = json.loads((folder / "results.json").read_text()).values()
    entry = next(value for value in saved if "accuracy" in value)
    assert all(float(number) == entry[name] for name, number in map(str.split, numbers))  # to the last digit
    command = said.partition("Measure it again:\n")[2].splitlines()[0].split()
    assert command[:2] == ["geossl", "finetune"]
    assert main(command[1:]) == 0
    assert re.findall(r"^(?:accuracy|mean_per_class_accuracy) \S+", capsys.readouterr().out, re.MULTILINE) == numbers
    assert main(words) == 2
    assert "is not empty: choose another --output_dir, or go on with the run in it" in capsys.readouterr().err
    assert main([*words, "--resume_from_checkpoint", "true"]) == 0  # the end of a finished run again
    assert re.findall(r"^(?:accuracy|mean_per_class_accuracy) \S+", capsys.readouterr().out, re.MULTILINE) == numbers


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trunk", "photographs"], "--task is missing: one of classification, segmentation, depth, detection"),
        (["trunk", "photographs", "--task", "boxes"], "--task: there is no 'boxes'"),
        (["trunk", "photographs", "--task", "depth", "--max_step", "3"], "unknown argument --max_step; did you mean"),
        (
            ["trunk", "photographs", "--task", "depth", "--decoder", "upernet"],
            "must be one of dpt, linear, got 'upernet'",
        ),
        (["trunk", "photographs", "--task", "depth", "--image_size", "30"], "multiple of trunk's patch size 8, got 30"),
        (["trunk", "photographs", "--task", "segmentation", "--semantic_column", "masks"], "has no column 'masks'"),
        (
            ["trunk", "photographs", "--task", "classification", "--class_names", "a", "b"],
            "names 2 classes, and the truth has",
        ),
        (["trunk", "photographs", "--evaluate_only"], "trunk holds GTSAModel, and no fine-tuned model"),
        (["trunk", "photographs/nowhere/at_all", "--task", "depth"], "there is no file or folder"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: list[str],
    sentence: str,
    trunk: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = str(trunk), words[1].replace("photographs", str(photographs))
    assert main(["finetune", model, data, *words[2:], *(["--use_cpu"] if len(words) > 2 else [])]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("geossl: ")
    assert sentence in error


def test_a_mask_of_another_frame_is_one_sentence(
    trunk: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    shutil.copytree(photographs, tmp_path / "data")
    Image.new("L", (20, 60)).save(tmp_path / "data" / "train" / "000_map.png")
    words = ["finetune", str(trunk), str(tmp_path / "data"), "--task", "segmentation", "--use_cpu"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "the map in 'annotation' of image 0 has 20 x 60 pixels, its image 48 x 48" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    rows = [json.loads(line) for line in (photographs / "train" / "metadata.jsonl").read_text().splitlines()]
    (tmp_path / "data" / "train" / "metadata.jsonl").write_text(
        "\n".join(json.dumps(row | {"label": "disc"}) for row in rows)
    )
    words[4] = "classification"
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "must show at least two classes, all 12 of data (train) are of 'disc'" in capsys.readouterr().err
