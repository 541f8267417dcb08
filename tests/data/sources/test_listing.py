"""The one rule for folders: which split, class and truth the names of files mean, the same for streams and labelled rows."""

import io
import logging
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_geossl.data.sources.listing import arrange
from hf_geossl.data.sources.opening import open_rows
from hf_geossl.data.sources.split_names import SPLIT_WORDS, canonical
from hf_geossl.data.streams import load_stream
from hf_geossl.data.wording import Place
from hf_geossl.evaluation.samples import load_samples


def write(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (shade, 0, 0)).save(path)


# layout -> files, each of its own shade; what each split has: (file, class); and what is said
Layout = tuple[str, dict[str, str], str]
LAYOUTS: dict[str, Layout] = {
    "splits and classes": (
        "train/cat/a.png train/dog/b.png test/cat/c.png",
        {"train": "train/cat/a.png=cat train/dog/b.png=dog", "test": "test/cat/c.png=cat"},
        "",
    ),
    "classes that hold a split's word": (
        "train/train_station/a.png train/crash-test/b.png test/crash-test/c.png test/train/d.png",
        {
            "train": "train/train_station/a.png=train_station train/crash-test/b.png=crash-test",
            "test": "test/crash-test/c.png=crash-test test/train/d.png=train",
        },
        "",
    ),
    "years, and deeper folders": (
        "train2017/cat/day/1/a.png train2017/cat/b.png val2017/dog/night/c.png",
        {
            "train": "train2017/cat/day/1/a.png=cat train2017/cat/b.png=cat",
            "validation": "val2017/dog/night/c.png=dog",
            "val2017": "val2017/dog/night/c.png=dog",
        },
        "",
    ),
    "several folders of a split": (
        "train2014/cat/a.png train2017/dog/b.png val/cat/c.png",
        {
            "train": "train2014/cat/a.png=cat train2017/dog/b.png=dog",
            "train2014": "train2014/cat/a.png=cat",
            "val": "val/cat/c.png=cat",
        },
        "the folders train2014, train2017 are the split train together",
    ),
    "splits below folders that hold all": (
        "ILSVRC/Data/CLS-LOC/train/cat/a.png ILSVRC/Data/CLS-LOC/train/dog/b.png ILSVRC/Data/CLS-LOC/val/c.png",
        {
            "train": "ILSVRC/Data/CLS-LOC/train/cat/a.png=cat ILSVRC/Data/CLS-LOC/train/dog/b.png=dog",
            "dev": "ILSVRC/Data/CLS-LOC/val/c.png=",
        },
        "",
    ),
    "splits below classes": (
        "cup/train/good/a.png cup/test/bent/b.png pen/train/good/c.png pen/test/good/d.png",
        {
            "train": "cup/train/good/a.png=good pen/train/good/c.png=good",
            "test": "cup/test/bent/b.png=bent pen/test/good/d.png=good",
        },
        "",
    ),
    "a picture beside the splits": (
        "photos/logo.png photos/train/cat/a.png photos/train/dog/b.png photos/eval/cat/c.png",
        {"train": "photos/train/cat/a.png=cat photos/train/dog/b.png=dog", "test": "photos/eval/cat/c.png=cat"},
        "1 file outside of the splits (test, train) left out, such as photos/logo.png",
    ),
    "splits without classes": ("train/a.png val/b.png", {"train": "train/a.png=", "validation": "val/b.png="}, ""),
    "classes without splits": ("cat/a.png dog/x/b.png", {"train": "cat/a.png=cat dog/x/b.png=dog"}, ""),
    "a class called train": (
        "bus/a.png car/b.png train/c.png",
        {"train": "bus/a.png=bus car/b.png=car train/c.png=train"},
        "the folder train is taken as a class, as it lies beside bus, car, which are no splits",
    ),
    "names that only hold the word": (
        "trainA/a.png trainB/b.png testA/c.png",
        {"train": "trainA/a.png=trainA trainB/b.png=trainB testA/c.png=testA"},
        "3 folders taken as no split (testA, trainA, trainB)",
    ),
    "splits of some classes only": (
        "cat/train/a.png cat/test/b.png dog/c.png",
        {"train": "cat/train/a.png=cat cat/test/b.png=cat dog/c.png=dog"},
        "2 folders taken as no split (test, train)",
    ),
    "nothing but images": ("a.png b.JPG c.v2.png", {"train": "a.png= b.JPG= c.v2.png="}, ""),
    "marks of addresses and patterns": (
        "train/a [1]/x%20::y.png train/b*/ü ß.png test/a [1]/z#?.png",
        {"train": "train/a [1]/x%20::y.png=a [1]|train/b*/ü ß.png=b*", "test": "test/a [1]/z#?.png=a [1]"},
        "",
    ),
    "hidden files": (
        "cat/a.png .cache/b.png cat/._a.png __MACOSX/cat/a.png __other__/c.png",
        {"train": "cat/a.png=cat __other__/c.png=__other__"},
        "3 hidden files and folders left out",
    ),
    "files of other kinds": (
        "cat/a.png cat/b.png dog/c.png dog/d.png dog/notes.md",
        {"train": "cat/a.png=cat cat/b.png=cat dog/c.png=dog dog/d.png=dog"},
        "1 file of another kind (.md) left out; 4 images taken",
    ),
}


def as_folder(files: dict[str, bytes], place: Path) -> str:
    for name, content in files.items():
        path = place / "data [x]::y" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(place / "data [x]::y")


def as_link(files: dict[str, bytes], place: Path) -> str:
    """A folder whose files are links to others of random names."""
    for number, (name, content) in enumerate(files.items()):
        path = place / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (place / "content").mkdir(exist_ok=True)
        (place / f"content/{number}").write_bytes(content)
        path.symlink_to(place / f"content/{number}")
    return str(place / "data")


def as_zip(files: dict[str, bytes], place: Path) -> str:
    (place / "all::of [it]").mkdir()
    with zipfile.ZipFile(place / "all::of [it]/data.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(place / "all::of [it]/data.zip")


def as_tar(files: dict[str, bytes], place: Path) -> str:
    with tarfile.open(place / "data.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(place)  # the only file there


@pytest.mark.parametrize("layout", [*LAYOUTS])
@pytest.mark.parametrize("kind", [as_folder, as_link, as_zip, as_tar])
def test_streams_and_labelled_rows_follow_one_rule(
    layout: str,
    kind: Callable[[dict[str, bytes], Path], str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names, splits, said = LAYOUTS[layout]
    if kind is as_tar and "/" not in names:
        pytest.skip("a tar without folders is WebDataset")
    shades = {name: 7 * number for number, name in enumerate(_names(names))}
    path = kind({name: _picture(shade) for name, shade in shades.items()}, tmp_path)
    classes: set[tuple[str, ...]] = set()
    seen: dict[str, str] = {}
    with caplog.at_level(logging.WARNING):
        for split, text in splits.items():
            pairs = text.split("|" if " [" in text else None)
            expected = dict(sorted(pair.rsplit("=", 1) for pair in pairs))
            stream = load_stream(path, split)
            assert stream.num_images == len(expected)
            images = {sample["key"]: sample["image"].getpixel((4, 4))[0] for sample in stream.one_epoch()}
            assert images == {name: shades[name] for name in expected}
            opened = open_rows(path, split).rows
            assert isinstance(opened, datasets.Dataset)
            label = opened.features.get("label")
            classes.add(tuple(label.names) if isinstance(label, datasets.ClassLabel) else ())
            found = [label.names[row["label"]] if label and row["label"] is not None else "" for row in opened]
            assert found == list(expected.values())
            read = [sample["image"][0, 4, 4].item() for sample in load_samples(path, split, size=9)]
            assert read == [shades[name] for name in expected]
            if split in SPLIT_WORDS:
                assert not seen.keys() & images.keys()
                seen |= dict.fromkeys(images, split)
    assert len(classes) == 1
    assert (said in caplog.text) if said else not caplog.text
    assert len(caplog.messages) == len(set(caplog.messages))
    with pytest.raises(ValueError, match=f"its splits are {', '.join(sorted(set(map(canonical, splits))))}"):
        load_stream(path, "minival")


def _picture(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (9, 9), (shade, 0, 0)).save(content, "png")
    return content.getvalue()


def _names(text: str) -> list[str]:
    return re.findall(r"\S.*?\.(?:png|JPG|md)(?=\s|$)", text)


@pytest.mark.parametrize(
    ("files", "links", "read", "said"),
    [
        ("in/a.png out/b.png", "train:in test:out", {"train": "train/a.png", "test": "test/b.png"}, "2 files outside"),
        ("all/a.png all/b.png", "train:all", {"train": "train/a.png train/b.png"}, "2 files outside"),
        ("cat/a.png", "dog:cat", {"train": "cat/a.png"}, "1 link to images that are there too left out (dog/a.png is"),
        ("train/a.png test/b.png", "test/c.png:../train/a.png", {"test": "test/b.png"}, "1 link to images"),
        ("cat/a.png dog/b.png", "cat/up:..", {"train": "cat/a.png dog/b.png"}, ""),
        ("cat/a.png", "cat/x:../dog dog/y:../cat dog/b.png:../cat/a.png", {"train": "cat/a.png"}, "link"),
    ],
)
def test_an_image_comes_once_whatever_links_lead_to_it(
    files: str, links: str, read: dict[str, str], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(files.split()):
        write(tmp_path / name, number)
    for link in links.split():
        name, _, target = link.partition(":")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    with caplog.at_level(logging.WARNING):
        for split, names in read.items():
            assert {sample["key"] for sample in load_stream(str(tmp_path), split).one_epoch()} == set(names.split())
    assert (said in caplog.text) if said else not caplog.text


def test_names_that_are_no_text_are_read_and_labelled(tmp_path: Path) -> None:
    for number, name in enumerate([b"caf\xe9/\xff.png", b"caf\xe9/a\nb.png", "\u200d/c.png".encode()]):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(_picture(10 * number))
    keys = {sample["key"] for sample in load_stream(str(tmp_path)).one_epoch()}
    assert keys == {"caf\\xe9/\\xff.png", "caf\\xe9/a\nb.png", "\u200d/c.png"}
    shades = {
        sample["image"][0, 0, 0].item(): sample["label"] for sample in load_samples(str(tmp_path), "train", size=9)
    }
    assert shades == {0: 0, 10: 0, 20: 1}


@pytest.mark.parametrize(
    ("archives", "classes", "said"),
    [
        ("train.zip:cat,dog test.zip:cat", {"train": "cat dog", "test": "cat"}, "folders of their names (test, train)"),
        ("train/x.zip:cat,dog test/x.zip:cat", {"train": "cat dog", "test": "cat"}, "folders of their names"),
        ("p_1.zip:cat,dog p_2.zip:cat", {"train": "cat cat dog"}, "2 archives taken as numbered parts of one folder"),
        ("cat.zip:1,2 dog.zip:1", {"train": "cat cat dog"}, "folders of their names (cat, dog)"),
        ("train.tar:cat,dog test.tar:cat", {"train": "cat dog", "test": "cat"}, "folders of their names (test, train)"),
    ],
)
def test_several_archives(
    archives: str, classes: dict[str, str], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for entry in archives.split():
        name, _, folders = entry.partition(":")
        make = as_zip if name.endswith("zip") else as_tar
        (tmp_path / "made").mkdir()
        made = Path(make({f"{folder}/a.png": _picture(0) for folder in folders.split(",")}, tmp_path / "made"))
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (made if made.is_file() else made / "data.tar").rename(tmp_path / "data" / name)
        shutil.rmtree(tmp_path / "made")
    with caplog.at_level(logging.WARNING):
        for split, expected in classes.items():
            rows = open_rows(str(tmp_path / "data"), split).rows
            names = rows.features["label"].names
            assert sorted(names[row["label"]] for row in rows) == expected.split()
            assert len(list(load_stream(str(tmp_path / "data"), split).one_epoch())) == len(rows)
    assert said in caplog.text


@pytest.mark.parametrize(
    ("images", "maps"),
    [
        ("train/images/{}.png", "train/masks/{}.png"),
        ("images/train/{}.png", "annotations/train/{}.png"),
        ("JPEGImages/{}.png", "SegmentationClass/{}.png"),
        ("train/img/city/{}.png", "train/gt/city/{}_mask.png"),
        ("train_images/{}.png", "train_masks/{}_mask.png"),
        ("data/images-train/{}.png", "data/labels-train/{}.png"),
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


def test_maps_beside_their_images_are_truth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An image without a map stays; where few have one, the names mean nothing."""
    for number in range(3):
        write(tmp_path / f"train/{number}.jpg", 10 * number)
        if number:
            Image.fromarray(np.full((9, 9), number, np.uint8)).save(tmp_path / f"train/{number}_mask.png")
    keys = {sample["key"] for sample in load_stream(str(tmp_path)).one_epoch()}
    assert keys == {f"train/{number}.jpg" for number in range(3)}
    assert "2 files called after the image beside (train/1_mask.png, train/2_mask.png) taken as maps" in caplog.text
    rows = open_rows(str(tmp_path), "train").rows
    assert [row["annotation"] and Path(row["annotation"]["path"]).name for row in rows] == [
        None, "1_mask.png", "2_mask.png",
    ]  # fmt: skip
    for number in range(3, 9):
        write(tmp_path / f"train/{number}.jpg", 10 * number)
    assert len(list(load_stream(str(tmp_path)).one_epoch())) == 11


def test_labels_of_metadata_replace_folders_in_a_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/0.png", "b/1.png", "@eaDir/0.png"):
        write(tmp_path / name, 1)
    (tmp_path / "metadata.csv").write_text("file_name,label\na/0.png,5\nb/1.png,6\n")
    rows = open_rows(str(tmp_path), "train").rows
    assert [row["label"] for row in rows] == [5, 6]
    assert "the labels of metadata count, not the 2 folders" in caplog.text
    assert "1 hidden file or folder left out (@eaDir)" in caplog.text


def test_every_image_of_a_random_tree_is_in_one_split_or_said(caplog: pytest.LogCaptureFixture) -> None:
    """The splits are disjoint, classes are the same for all of them, and what is in none is counted in lines."""
    words = "train|val|test|train2017|Test_images|cat|dog|train_station|images|masks|data|a::b|[1]|dev|trainA|labels"
    draw = np.random.default_rng(0)
    for trial in range(400):
        pool = draw.choice(words.split("|"), draw.integers(1, 6), replace=False).tolist()
        names = sorted({
            "/".join([*draw.choice(pool, draw.integers(0, 5)), f"{draw.choice([*'abcd'])}.png"])
            for _ in range(draw.integers(1, 12))
        })  # fmt: skip
        place, seen, classes = Place(f"random tree {trial}"), [], set()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for split in SPLIT_WORDS:
                with suppress(ValueError):  # there is no such split
                    items, all_classes = arrange(names, split, place, {})
                    seen += [item.name for item in items]
                    classes.add(tuple(all_classes))
        said = re.findall(r": (\d+) files? (?:outside|in folders of truth|called after)", "\n".join(caplog.messages))
        assert len(seen) == len(set(seen))
        assert len(names) - len(seen) == sum(map(int, said)), (names, caplog.messages)
        assert len(classes) <= 1


def test_classes_that_differ_in_case_alone_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/Cat/0.png", "train/dog/1.png", "test/cat/2.png", "test/dog/3.png"):
        write(tmp_path / name, 1)
    assert open_rows(str(tmp_path), "test").rows.features["label"].names == ["Cat", "cat", "dog"]
    assert "the folders Cat, cat are classes of their own, though their names differ in case alone" in caplog.text
