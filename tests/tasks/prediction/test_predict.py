"""A folder of images is predicted once: broken images are counted, an interrupted run goes on, and ends as the whole one."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_geossl.tasks import PredictionSettings, predict_images
from hf_geossl.tasks.prediction import predict
from hf_geossl.tasks.prediction.task_models import open_task_model
from tests.helpers.task_folders import KINDS, picture

FolderOf = Callable[[str], Path]
MADE = {
    "classification": {"labels.csv"},
    "segmentation": {"masks/a.png", "masks/sub/b.png"},
    "depth": {"depth/a.tif", "depth/sub/b.tif"},
    "detection": {"boxes.json", "boxes.csv"},
}
ALWAYS = {"predict.json", "predict.jsonl", "contact_sheet.png", "overlays/a.png", "overlays/sub/b.png"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(picture(40, 60)).save(folder / "a.png")
    Image.fromarray(picture(90, 70, 1)).save(folder / "sub/b.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_of_model_writes_its_files(name: str, folder_of: FolderOf, images: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = PredictionSettings(tile_size=64, score_threshold=0.1)
    summary = predict_images(folder_of(name), images, tmp_path / "out", settings, device="cpu", say=said.append)
    assert set(written(tmp_path / "out")) == ALWAYS | MADE[KINDS[name]]
    assert (summary["task"], summary["images"], summary["broken"]["count"]) == (KINDS[name], 2, 1)
    assert said[0].startswith("left out broken.png: ")
    assert said[-1] == "1 of 3 images could not be used"
    assert ("1 image predicted in tiles" in said) == (name != "classes")


def test_an_interrupted_run_goes_on_and_ends_as_the_whole_one(
    folder_of: FolderOf, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = open_task_model(folder_of("linear"), device="cpu"), PredictionSettings(tile_size=64)
    (images / "broken.png").unlink()
    predict_images(model, images, tmp_path / "whole", settings, say=lambda line: None)
    own, calls = predict.predict_image, []

    def stopping(*args: Any) -> Any:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(args)
        return own(*args)

    monkeypatch.setattr(predict, "predict_image", stopping)
    out, said = tmp_path / "out", list[str]()
    with pytest.raises(KeyboardInterrupt):
        predict_images(model, images, out, settings, say=said.append)
    assert set(written(out)) == {"predict.jsonl", "masks/a.png", "overlays/a.png"}
    monkeypatch.setattr(predict, "predict_image", own)
    predict_images(model, images, out, settings, say=said.append)
    assert said[-2] == "1 image of 2 predicted before, left as they are"
    assert written(out) == written(tmp_path / "whole")
    monkeypatch.setattr(predict, "predict_image", None)  # nothing is predicted again
    predict_images(model, images, out, settings, say=said.append)
    assert written(out) == written(tmp_path / "whole")
    with pytest.raises(ValueError, match="tile_size was 64, is now 32"):
        predict_images(model, images, out, PredictionSettings(tile_size=32))
    with pytest.raises(ValueError, match="images was .*/images'\\], is now .*/images/a.png"):
        predict_images(model, images / "a.png", out, settings)
    with pytest.raises(ValueError, match="weights was .*, is now"):
        predict_images(folder_of("upernet"), images, out, settings, device="cpu")


def test_images_that_are_scaled_down_strongly_are_said(folder_of: FolderOf, tmp_path: Path) -> None:
    Image.fromarray(picture(200, 300)).save(tmp_path / "a.png")
    said: list[str] = []
    predict_images(folder_of("linear"), tmp_path / "a.png", tmp_path / "out", device="cpu", say=said.append)
    assert said == [
        "1 image of up to 300 x 200 pixels scaled to 32 x 32, as the model's processor does: --tile_size predicts in tiles at a "
        "scale of your choice"
    ]


def test_what_a_model_cannot_take_costs_itself(folder_of: FolderOf, images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (3000, 2)).save(images / "thin.png")
    tifffile.imwrite(images / "floats.tif", picture(20, 20).astype(np.float32) * 3, photometric="rgb")
    os.mkfifo(images / "pipe.png")
    (images / "loop.png").symlink_to("loop.png")
    said: list[str] = []
    predict_images(folder_of("yolos"), images, tmp_path / "out", device="cpu", say=said.append)
    assert any(line.startswith("left out thin.png: the model's processor makes no input of 3000 x 2") for line in said)
    assert any(
        re.fullmatch("left out floats.tif: .* no fixed range; the model takes RGB of 8 bits", line) for line in said
    )
    assert "left out pipe.png: the file cannot be read (it is no regular file)" in said
    assert "left out loop.png: the file cannot be read (Too many levels of symbolic links)" in said
    assert said[-1] == "5 of 7 images could not be used"


def test_no_image_that_can_be_used_is_an_error(folder_of: FolderOf, images: Path, tmp_path: Path) -> None:
    for name in ("a.png", "sub"):
        path = images / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match="none of 1 image could be predicted, such as broken.png: "):
        predict_images(folder_of("linear"), images, tmp_path / "out", device="cpu", say=lambda line: None)


@pytest.mark.parametrize("name", ["classes", "linear", "dpt", "yolos"])
def test_images_of_one_size_are_predicted_together_as_they_are_alone(
    name: str, folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(picture(40, 60 if number % 4 else 90, number)).save(folder / f"{number}.png")
    model, sizes = open_task_model(folder_of(name), device="cpu"), list[int]()
    own = model.predict
    monkeypatch.setattr(model, "predict", lambda inputs: (sizes.append(len(inputs)), own(inputs))[1])
    records = {}
    for batch_size in (1, 4):
        settings = PredictionSettings(batch_size=batch_size, score_threshold=0.1)
        predict_images(model, folder, tmp_path / str(batch_size), settings, overlays=False, say=lambda line: None)
        lines = (tmp_path / str(batch_size) / "predict.jsonl").read_text().splitlines()[1:]
        records[batch_size] = [json.loads(line) for line in lines]
    assert sizes == [1] * 5 + ([1, 3, 1] if name == "yolos" else [4, 1])  # its processor keeps the shape of images
    for alone, together in zip(records[1], records[4], strict=True):
        assert alone["image"] == together["image"]
        for key in ("probabilities", "pixels", "range", "boxes", "labels", "scores"):
            assert np.allclose(alone.get(key, 0), together.get(key, 0), atol=1e-4), key
    if name == "linear":  # an image that is missing is predicted beside the same ones, to the same bits
        written_before = written(tmp_path / "4")
        (tmp_path / "4/masks/2.png").unlink()
        predict_images(model, folder, tmp_path / "4", settings, overlays=False, say=lambda line: None)
        assert sizes[-1] == 4
        assert written(tmp_path / "4")["masks/2.png"] == written_before["masks/2.png"]
        monkeypatch.setattr(predict, "_MOST_PIXELS", 40 * 60)  # larger ones fill no memory beside others
        predict_images(model, folder, tmp_path / "large", settings, overlays=False, say=lambda line: None)
        assert sizes[-3:] == [1, 3, 1]
