"""The one rule for folders: which split, class and truth the names of files mean, the same for streams and labelled rows."""

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_geossl.data.sources.listing import divide, split_of
from hf_geossl.data.sources.opening import open_rows
from hf_geossl.data.streams import load_stream
from hf_geossl.data.wording import Place
from hf_geossl.evaluation.samples import load_samples


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train Train TRAINING train2017 train_images images_train train-images trainset training_set train_2",
        ),
        ("validation", "val valid validation dev val2017 val_images images-val VAL validation_set"),
        ("test", "test testing eval evaluation test2014 test_images testset"),
        (None, "train_station crash-test contest trains validity devices evaluate testimony cat images 2017 untrained"),
    ],
)
def test_folders_called_after_splits(split: str | None, names: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


def write(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (shade, 0, 0)).save(path)


# layout -> files (each of its own shade, in the order of the names), and what each split has: (file, class)
LAYOUTS: dict[str, tuple[str, dict[str, dict[str, str | None]]]] = {
    "splits and classes": (
        "train/cat/a.png train/dog/b.png test/cat/c.png",
        {"train": {"train/cat/a.png": "cat", "train/dog/b.png": "dog"}, "test": {"test/cat/c.png": "cat"}},
    ),
    "classes that hold a split's word": (
        "train/train_station/a.png train/crash-test/b.png test/crash-test/c.png test/train/d.png",
        {
            "train": {"train/train_station/a.png": "train_station", "train/crash-test/b.png": "crash-test"},
            "test": {"test/crash-test/c.png": "crash-test", "test/train/d.png": "train"},
        },
    ),
    "spelled with years, deeper folders": (
        "train2017/cat/day/1/a.png train2017/cat/b.png val2017/dog/night/c.png",
        {
            "train": {"train2017/cat/day/1/a.png": "cat", "train2017/cat/b.png": "cat"},
            "validation": {"val2017/dog/night/c.png": "dog"},
        },
    ),
    "splits below one folder": (
        "photos/train/cat/a.png photos/test/dog/b.png",
        {"train": {"photos/train/cat/a.png": "cat"}, "test": {"photos/test/dog/b.png": "dog"}},
    ),
    "splits without classes": (
        "train/a.png val/b.png",
        {"train": {"train/a.png": None}, "validation": {"val/b.png": None}},
    ),
    "classes without splits": ("cat/a.png dog/x/b.png", {"train": {"cat/a.png": "cat", "dog/x/b.png": "dog"}}),
    "a class called train": (
        "bus/a.png car/b.png train/c.png",
        {"train": {"bus/a.png": "bus", "car/b.png": "car", "train/c.png": "train"}},
    ),
    "nothing but images": ("a.png b.JPG", {"train": {"a.png": None, "b.JPG": None}}),
    "marks of addresses and patterns": (
        "train/a [1]/x%20::y.png train/b*/ü ß.png test/a [1]/z#?.png",
        {
            "train": {"train/a [1]/x%20::y.png": "a [1]", "train/b*/ü ß.png": "b*"},
            "test": {"test/a [1]/z#?.png": "a [1]"},
        },
    ),
    "hidden files": ("cat/a.png .cache/b.png cat/._a.png __MACOSX/cat/a.png", {"train": {"cat/a.png": "cat"}}),
}


def as_folder(files: dict[str, int], place: Path) -> str:
    for name, shade in files.items():
        write(place / "data [x]" / name, shade)
    return str(place / "data [x]")


def as_zip(files: dict[str, int], place: Path) -> str:
    as_folder(files, place)
    with zipfile.ZipFile(place / "data.zip", "w") as archive:
        for name in files:
            archive.write(place / "data [x]" / name, name)
    return str(place / "data.zip")


@pytest.mark.parametrize("layout", [*LAYOUTS])
@pytest.mark.parametrize("kind", [as_folder, as_zip])
def test_streams_and_labelled_rows_follow_one_rule(
    layout: str, kind: Callable[[dict[str, int], Path], str], tmp_path: Path
) -> None:
    names, splits = LAYOUTS[layout]
    files = {name: 7 * number for number, name in enumerate(_names(names))}
    path = kind(files, tmp_path)
    seen: list[str] = []
    for split, expected in splits.items():
        stream = load_stream(path, split)
        assert stream.num_images == len(expected)
        images = {sample["key"]: sample["image"].getpixel((4, 4))[0] for sample in stream.one_epoch()}
        assert images.keys() == expected.keys()
        for name, shade in images.items():
            assert abs(shade - files[name]) <= 3, name  # JPEG rounds
        opened = open_rows(path, split).rows
        assert isinstance(opened, datasets.Dataset)
        classes = opened.features["label"].names if "label" in opened.features else None
        labels = {_name(row["image"]["path"], tmp_path): classes and classes[row["label"]] for row in opened}
        assert labels == expected
        samples = load_samples(path, split, size=8)
        assert len(list(samples)) == len(expected)
        seen += images
    assert len(seen) == len(set(seen))
    assert (
        len(
            {
                tuple(
                    open_rows(path, split).rows.features.get("label", datasets.Value("null")).__dict__.get("names", ())
                )
                for split in splits
            }
        )
        == 1
    )
    with pytest.raises(ValueError, match=f"its splits are {', '.join(sorted(splits))}"):
        load_stream(path, "minival")


def _names(text: str) -> list[str]:
    import re

    return re.findall(r"\S.*?\.(?:png|JPG)(?=\s|$)", text)


def _name(address: str, place: Path) -> str:
    if address.startswith("archive://"):
        return address.removeprefix("archive://").partition(f"::{place}")[0]
    return Path(address).relative_to(place / "data [x]").as_posix()


def test_a_class_beside_others_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert divide(["bus/a.png", "car/b.png", "train/c.png"], Place(f"{tmp_path}/photos")).depth is None
    assert caplog.messages == [
        "photos: the folder train is taken as a class, as it lies beside bus, car, which are no splits"
    ]


@pytest.mark.parametrize(
    ("images", "maps"),
    [
        ("train/images/{}.png", "train/masks/{}.png"),
        ("images/train/{}.png", "annotations/train/{}.png"),
        ("JPEGImages/{}.png", "SegmentationClass/{}.png"),
        ("train/img/city/{}.png", "train/gt/city/{}_mask.png"),
    ],
)
def test_folders_of_maps_are_truth(images: str, maps: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No map is taken for an image, and each goes with the image of its name; one image has none."""
    for number in range(5):
        write(tmp_path / images.format(number), 10 * number)
        if number:
            path = tmp_path / maps.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9), number, np.uint8)).save(path)
    stream = load_stream(str(tmp_path))
    assert {sample["key"] for sample in stream.one_epoch()} == {images.format(number) for number in range(5)}
    assert f"{tmp_path.name}: 4 files in folders of truth beside the images" in caplog.text
    assert "4 images have one by name" in caplog.text
    rows = open_rows(str(tmp_path), "train").rows
    found = {Path(row["image"]["path"]).stem: row["annotation"] for row in rows}
    assert found["0"] is None
    assert all(Path(found[str(number)]["path"]).stem.startswith(str(number)) for number in range(1, 5))
    semantic = {
        sample["index"]: int(sample["semantic"].max())
        for sample in load_samples(str(tmp_path), "train", size=8)
        if "semantic" in sample
    }
    assert semantic == {1: 1, 2: 2, 3: 3, 4: 4}
