"""Local files: which ones a path means, of which kind and split."""

import json
import logging
import os
import shutil

import datasets
import pytest

from hf_geossl.data.sources.files import Files, as_path, find_files
from hf_geossl.data.sources.listing import kind_of
from hf_geossl.data.streams import load_stream
from tests.helpers.images import write_folder, write_one_parquet, write_tar


def test_splits_are_folders_called_after_them(tmp_path):
    write_folder(tmp_path / "photos/train", 5)
    write_folder(tmp_path / "photos/val", 3)
    assert len(list(load_stream(str(tmp_path / "photos")).one_epoch())) == 5
    assert len(list(load_stream(str(tmp_path / "photos"), "validation").one_epoch())) == 3
    assert len(list(load_stream(str(tmp_path / "photos/**/*.png"), "validation").one_epoch())) == 3
    with pytest.raises(ValueError, match="its splits are train, validation"):
        load_stream(str(tmp_path / "photos"), "test")


def test_a_link_that_leads_nowhere_is_a_broken_image(tmp_path, caplog):
    write_folder(tmp_path / "photos", 20)
    (tmp_path / "photos/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    stream = load_stream(str(tmp_path / "photos"))
    with caplog.at_level(logging.WARNING):
        assert len(list(stream.one_epoch())) == 20
    assert "skipped gone.jpg: the file cannot be read (No such file or directory)" in caplog.text


def test_files_that_are_left_out_are_counted_in_a_warning(tmp_path, caplog):
    write_folder(tmp_path / "classes", 9)
    (tmp_path / "classes/class_0").rename(tmp_path / "classes/train")
    (tmp_path / "classes/class_1").rename(tmp_path / "classes/val2017")
    with caplog.at_level(logging.WARNING):
        assert len(list(load_stream(str(tmp_path / "classes")).one_epoch())) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "classes: 3 files outside of the splits (train, validation) left out, such as class_2/002.png; if such a folder is "
        "no split, rename it"
    ]
    caplog.clear()
    write_folder(tmp_path / "phone", 1)
    for number in range(3):
        (tmp_path / f"phone/{number}.heic").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        load_stream(str(tmp_path / "phone"))
    assert [record.getMessage() for record in caplog.records] == [
        "phone: 3 files of other kinds (.heic) left out; 1 image taken; pictures of these kinds are read "
        "once saved as PNG"
    ]


def test_a_folder_that_cannot_be_read_is_warned_of(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path / "photos", 9)
    scan = os.scandir

    def refuse(path):  # permissions do not bind root, who may run this test
        if str(path).endswith("class_1"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        assert load_stream(str(tmp_path / "photos")).source.identity["files"] == 6
    assert "photos: the folder class_1 cannot be read and is left out (Permission denied)" in caplog.text


@pytest.mark.parametrize("name", ["flight [2023]", "why?", "all*"])
def test_existing_paths_with_the_marks_of_a_glob_open(name, tmp_path):
    write_folder(tmp_path / name, 4)
    assert len(list(load_stream(str(tmp_path / name)).one_epoch())) == 4
    write_one_parquet(tmp_path / name / "class_0/[1].parquet", 3)
    assert len(list(load_stream(str(tmp_path / name / "class_0/[1].parquet")).one_epoch())) == 3


def test_a_glob_of_folders_and_an_empty_folder_say_so(tmp_path):
    write_folder(tmp_path / "photos", 4)
    with pytest.raises(FileNotFoundError, match="matches folders only; let it match their files"):
        load_stream(str(tmp_path / "photos/*"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty' holds no files; pass a path with images \(\.jpg"):
        load_stream(str(tmp_path / "empty"))


def test_the_name_of_a_source_tells_nothing_about_the_machine(tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", 2)
    write_one_parquet(tmp_path / "one.parquet", 2)
    write_tar(tmp_path / "one.tar", 2)
    for path, name in (
        ("photos", "photos"), ("photos/", "photos"), ("photos/**/*.png", "*.png"),
        ("one.parquet", "one.parquet"), ("one.tar", "one.tar"),
    ):  # fmt: skip
        assert load_stream(f"{tmp_path}/{path}").source.name == name
    monkeypatch.chdir(tmp_path / "photos")
    assert load_stream(".").source.name == "photos"


def test_splits_of_datasets_are_names_and_none_is_refused(tmp_path):
    write_folder(tmp_path / "photos/validation", 3)
    stream = load_stream(str(tmp_path / "photos"), datasets.Split.VALIDATION)
    assert json.loads(json.dumps(stream.state_dict()))["fingerprint"]["split"] == "validation"
    with pytest.raises(ValueError, match="split must be the name of one split, such as 'train', got None"):
        load_stream(str(tmp_path / "photos"), None)


def test_a_local_folder_starts_without_reading_its_files(tmp_path):
    stream = load_stream(str(write_folder(tmp_path / "photos", 30)), shuffle_block=1000)
    opened = []
    stream.decode = lambda path, most: opened.append(path)
    next(iter(stream))
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "folder"), ("A.JPEG", "folder"), ("b/c.tiff", "folder"), ("x.parquet", "parquet"),
        ("x.tar", "webdataset"), ("x.tar.gz", "webdataset"), ("x.TGZ", "webdataset"),
        ("x.gz", ""), ("x.heic", ""), ("jpg", ""), ("metadata.jsonl", ""),
    ],
)  # fmt: skip
def test_the_kind_of_a_file_follows_from_its_name(name, kind):
    assert kind_of(name) == kind


def test_splits_of_packed_files_are_read_from_their_names_too(tmp_path):
    for name in ("train-00000-of-2.parquet", "data/validation-0.parquet", "dev.parquet", "contest.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_one_parquet(tmp_path / name, 1)
    assert find_files(str(tmp_path), "train").names == ["train-00000-of-2.parquet"]
    assert find_files(str(tmp_path), "valid").names == ["data/validation-0.parquet", "dev.parquet"]
    with pytest.raises(ValueError, match="no split 'test'; its splits are train, validation"):
        find_files(str(tmp_path), "test")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "gztar", "list", "parquet", "webdataset"])
def test_relative_paths_are_read_as_absolute_ones(kind, tmp_path, monkeypatch):
    """Images of folders in archives were looked for below their folder twice."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("below")
    write_folder(tmp_path / "below/data", rows=4)
    path = "below/data"
    if kind in ("zip", "tar", "gztar"):
        path = os.path.relpath(shutil.make_archive("below/packed", kind, "below", "data"))
    elif kind == "list":
        path = "below/list.txt"
        names = sorted(str(file.relative_to(tmp_path / "below")) for file in (tmp_path / "below/data").rglob("*.png"))
        (tmp_path / path).write_text("\n".join(names))
    elif kind == "parquet":
        path = os.path.relpath(write_one_parquet(tmp_path / "below/a.parquet", 4))
    elif kind == "webdataset":
        path = os.path.relpath(write_tar(tmp_path / "below/a.tar", 4))
    assert len(list(load_stream(path).one_epoch())) == 4


def test_what_lies_beside_the_data_is_named_and_left_out(tmp_path, caplog):
    """Images, unless there are fewer than four for each archive."""
    write_folder(tmp_path, 3)
    write_one_parquet(tmp_path / "a.parquet", 3)
    with caplog.at_level(logging.WARNING):
        assert find_files(str(tmp_path), "train").names == ["a.parquet"]
    assert caplog.messages == [f"{tmp_path.name}: 3 files of other kinds (.png) left out; 1 parquet file taken"]
    write_folder(tmp_path, 8)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert len(find_files(str(tmp_path), "train").names) == 8
    assert caplog.messages == [f"{tmp_path.name}: 1 file of another kind (.parquet) left out; 8 images taken"]


def test_the_digest_changes_with_names_and_sizes_alone(tmp_path):
    write_folder(tmp_path, 3)
    files = find_files(str(tmp_path), "train")
    before = files.digest()
    (tmp_path / files.names[1]).write_bytes(b"x" * (tmp_path / files.names[1]).stat().st_size)
    assert files.digest() == before
    (tmp_path / files.names[1]).write_bytes(b"longer" * 1000)
    assert files.digest() != before
    assert Files("folder", str(tmp_path), files.names[:2]).digest() != files.digest()


def test_ids_of_the_hub_are_distinguished_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    assert as_path("here") == "here"
    assert as_path("~/here") == str(tmp_path / "here")
    assert as_path("*.jpg") == "*.jpg"
    assert [as_path(name) for name in ("imagenet", "user/name", "user/na.me-2")] == [None, None, None]
    for name in ("./nowhere", "a/b/c", "photo.jpg", "data.zip", "user/x.parquet", "-x"):
        with pytest.raises(FileNotFoundError, match="does not exist; pass a file, a folder, a glob, or a Hub"):
            as_path(name)
