"""Which images there are to predict, and which have been: files that changed or are gone are predicted again."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from hf_geossl.tasks.prediction.records import STATE, Records, find_images, state_of


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_images_are_found_and_what_is_none_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    for name in ("train/a.png", "b.jpg", "out/masks/b.png", "photos/c.png", ".hidden/d.png"):
        touch(data / name)
    (data / "list.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        found = find_images([str(data)], data / "out")
    assert list(found) == ["b.jpg", "photos/c.png", "train/a.png"]
    assert found["photos/c.png"] == data / "photos/c.png"
    assert "1 file left out that is no image by the ending" in caplog.text
    assert "1 hidden file or folder left out" in caplog.text
    several = find_images([str(data / "b.jpg"), str(touch(tmp_path / "b.jpg"))], tmp_path / "out")
    assert list(several) == ["1/b.jpg", "b.jpg"]
    numbered = touch(tmp_path / "numbered" / "1" / "b.jpg"), touch(tmp_path / "numbered" / "b.jpg")
    every = find_images([str(tmp_path / "numbered"), str(tmp_path / "b.jpg")], tmp_path / "out")
    assert sorted(every.values()) == sorted([*numbered, tmp_path / "b.jpg"])  # none in the place of another
    assert list(find_images([f"{data}/*/*.png"], data / "out")) == ["photos/c.png", "train/a.png"]
    with pytest.raises(FileNotFoundError, match="'none' does not exist"):
        find_images(["none"], tmp_path)
    with pytest.raises(ValueError, match="would lie among the images of .*data: choose another output_dir"):
        find_images([str(data)], data)


def test_a_list_names_images_by_the_folder_that_they_share(tmp_path: Path) -> None:
    images = [touch(tmp_path / f"data/{name}") for name in ("a/0.png", "b/0.png")]
    (tmp_path / "list.txt").write_text(f"{images[1]}\ndata/a/0.png\n")
    assert find_images([str(tmp_path / "list.txt")], tmp_path / "out") == {"a/0.png": images[0], "b/0.png": images[1]}


def test_truth_beside_images_is_not_predicted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        touch(tmp_path / f"images/{number}.png")
        touch(tmp_path / f"masks/{number}.png")
    with caplog.at_level(logging.WARNING):
        assert list(find_images([str(tmp_path)], tmp_path / "out")) == [f"images/{number}.png" for number in range(3)]
    assert "3 files left out as truth of others" in caplog.text


def test_what_is_done_is_known_and_what_changed_is_not(tmp_path: Path) -> None:
    image, out = touch(tmp_path / "a.png"), tmp_path / "out"
    records = Records(out, {"model": "m"}, overwrite=False)
    assert not records.is_done("a.png", image)
    name = records.name_for("a.png", "masks", ".png")
    assert name == "masks/a.png"
    assert records.name_for("a.jpg", "masks", ".png") == "masks/a.jpg.png"
    assert records.name_for("A.bmp", "masks", ".png") == "masks/A.bmp.png"  # the same as a.png on some disks
    assert records.name_for("a.jpg.jpg", "masks", ".png") == "masks/a.jpg.jpg.png"
    assert records.name_for("A.jpg", "masks", ".png") == "masks/A.jpg_.png"
    touch(out / name)
    records.add({"image": "a.png", "state": state_of(image), "files": [name]})
    with open(out / STATE, "a") as file:
        file.write('{"image": "b.png", "st')  # killed
    again = Records(out, {"model": "m"}, overwrite=False)
    assert again.is_done("a.png", image)
    assert list(again.by_image) == ["a.png"]
    assert len((out / STATE).read_text().splitlines()) == 2
    assert again.name_for("a.jpg", "masks", ".png") == "masks/a.jpg.png"
    (out / name).unlink()
    assert not again.is_done("a.png", image)
    touch(out / name)
    Image.new("RGB", (5, 5)).save(image)
    assert not again.is_done("a.png", image)
    touch(out / "own.png")
    assert not Records(out, {"model": "other"}, overwrite=True).by_image
    assert sorted(path.name for path in out.rglob("*.png")) == ["own.png"]  # which no run wrote


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Records(tmp_path, {"model": "m", "tile_size": None}, overwrite=False)
    with pytest.raises(ValueError, match="made otherwise \\(tile_size was None, is now 64\\): .*--overwrite"):
        Records(tmp_path, {"model": "m", "tile_size": 64}, overwrite=False)
    Records(tmp_path, {"model": "m", "tile_size": 64}, overwrite=True)
    assert json.loads((tmp_path / STATE).read_text().splitlines()[0])["tile_size"] == 64
