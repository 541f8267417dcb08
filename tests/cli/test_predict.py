"""`geossl predict` writes a folder, and says in one line what is wrong with its arguments."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_geossl.cli.main import main
from tests.helpers.task_folders import picture, task_folder


def test_a_folder_is_predicted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(task_folder("linear", tmp_path / "model"))
    Image.fromarray(picture(40, 60)).save(tmp_path / "a.png")
    out = str(tmp_path / "out")
    command = ["predict", model, str(tmp_path / "a.png"), "--output_dir", out, "--tile-size", "32", "--device", "cpu"]
    assert main(command) == 0
    assert f"segmentation of 1 image: {out}" in capsys.readouterr().out
    assert np.asarray(Image.open(f"{out}/masks/a.png")).shape == (40, 60)
    assert main([*command, "--no_overlays"]) == 2
    assert "overlays was True, is now False" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/none", "a.png"], "there is no file or folder /none"),
        (["model", "/none.png"], "there is no file or folder /none.png"),
        (["model", ".", "--tile_sise", "3"], "unknown argument --tile_sise; did you mean '--tile_size'?"),
        (["model", ".", "--tile_size", "x"], "--tile_size: invalid int value: 'x'"),
        (["model", ".", "--batch_size", "0"], "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *arguments]) == 2
    assert capsys.readouterr().err == f"geossl: {message}\n"
