"""The scripts of examples/ that use a trained model run on one."""

import sys
from pathlib import Path

import pytest

from hf_geossl import LOCAConfig, LOCAModel
from hf_geossl.hub.export import make_image_processor
from tests.examples.test_methods import load
from tests.helpers.photographs import write_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = LOCAConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    LOCAModel(config).save_pretrained(tmp_path / "model")
    make_image_processor((32, 32)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    load(name).main()


def test_models_are_compared(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(model), "--tasks", "rotation", "--limit", "8", "--output", str(tmp_path / "comparison")]
    run("compare_models", words, monkeypatch)
    printed = capsys.readouterr().out
    assert "rotation: accuracy 0." in printed
    assert "random" in printed
    assert "| rotation | accuracy |" in printed
    assert (tmp_path / "comparison/report.html").is_file()


def test_the_nearest_image_is_the_image_itself(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "photos", 6)
    query = sorted(folder.iterdir())[2]
    words = [str(model), str(folder), str(query), "--table", str(tmp_path / "f.parquet"), "--count", "2"]
    run("search", words, monkeypatch)
    printed = capsys.readouterr().out
    first = next(line for line in printed.splitlines() if line.split()[:1] == [str(query)])
    assert first.split()[1:3] == ["1", query.name]
    assert float(first.split()[-1]) == pytest.approx(1, abs=1e-3)
