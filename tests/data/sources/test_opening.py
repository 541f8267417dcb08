"""One way to open a dataset: what is missing or mixed is named."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from hf_geossl.data.sources import opening
from hf_geossl.data.sources.opening import open_rows
from hf_geossl.data.streams import ImageStream, load_stream
from tests.helpers.images import encoded, make_stream, write_folder, write_one_parquet, write_parquet, write_tars


def test_missing_things_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    write_parquet(tmp_path / "parquet")
    write_tars(tmp_path / "tars")
    for path, options, error, message in (
        ("empty", {}, FileNotFoundError, "holds no files"),
        ("nowhere/at/all", {}, FileNotFoundError, "does not exist"),
        ("*.jpg", {}, FileNotFoundError, "the glob .* matches no file"),
        ("parquet", {"image_column": "photo"}, ValueError, "no column 'photo'; its columns are label, image"),
        ("parquet", {"image_column": "label"}, ValueError, "holds int64, not images"),
        ("parquet", {"split": "validation"}, ValueError, "no split 'validation'; its splits are train"),
        ("tars", {"image_column": "left"}, ValueError, "no column 'left'; its columns are json, png, seg.png"),
        ("parquet", {"shuffle_block": 0}, ValueError, "shuffle_block must be"),
        ("parquet", {"seed": -1}, ValueError, "seed must lie in"),
        (
            "parquet",
            {"config_name": "en"},
            ValueError,
            r"config_name \(--dataset_config\) means nothing for local files, got 'en'",
        ),
        (".", {}, ValueError, "mixes files of several kinds"),
    ):
        with pytest.raises(error, match=message):
            load_stream(str(tmp_path / path), **options)
    dataset = datasets.Dataset.from_dict({"picture": [encoded(1)]})
    with pytest.raises(ValueError, match="no column 'image'; its columns are picture"):
        ImageStream.from_dataset(dataset)
    with pytest.raises(ValueError, match="no column 'photo'; its columns are image, label"):
        next(iter(make_stream("iterable", tmp_path, image_column="photo")))
    with pytest.raises(TypeError, match=r"pass one, as dataset\['train'\]"):
        ImageStream.from_dataset(datasets.DatasetDict(train=dataset))


def test_advice_for_a_missing_column_fits_the_caller(tmp_path):
    table = datasets.Dataset.from_dict({"picture": [encoded(1)]})
    opened = r"by ImageStream\.from_dataset\(dataset, image_column=\.\.\.\), or rename it by dataset\.rename_column\(\.\.\., 'image'\)"
    for dataset in (table, table.to_iterable_dataset(), [{"picture": encoded(1)}]):
        with pytest.raises(ValueError, match=opened):
            next(iter(ImageStream.from_dataset(dataset)))
    write_one_parquet(tmp_path / "one.parquet", 2)
    with pytest.raises(ValueError, match=r"as image_column= \(--image_column\)"):
        load_stream(str(tmp_path / "one.parquet"), image_column="picture")


@pytest.mark.parametrize("path", ["my/photos", Path("my/photos"), b"photos"])
def test_a_path_is_no_dataset(path):
    with pytest.raises(TypeError, match="must be an open dataset, got .*photos.*; open it by load_stream"):
        ImageStream.from_dataset(path)


def test_labelled_rows_have_all_columns_and_encoded_images(tmp_path):
    write_folder(tmp_path / "photos/train", 6)
    opened = open_rows(str(tmp_path / "photos"), "train")
    assert isinstance(opened.rows, datasets.Dataset)
    assert opened.folder == tmp_path / "photos"
    assert [row["label"] for row in opened.rows] == [0, 0, 1, 1, 2, 2]
    assert Path(opened.rows[3]["image"]["path"]).name == "004.png"  # sorted by class: 000, 003, 001, 004
    write_parquet(tmp_path / "flight [2023]")  # marks of a glob in the name
    rows = open_rows(str(tmp_path / "flight [2023]"), "train").rows
    assert isinstance(rows, datasets.IterableDataset)
    assert [row["label"] for row in rows] == list(range(37))
    assert next(iter(rows))["image"]["bytes"] == encoded(0)


def test_a_column_of_several_types_is_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, 3)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    lines = [{"image": name, "label": label} for name, label in zip(names, [1, "cat", None], strict=True)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert open_rows(str(tmp_path / "list.jsonl"), "train").rows["label"][:] == ["1", "cat", None]
    assert "the column 'label' holds values of several types, taken as texts" in caplog.text
    lines[0]["label"] = {"x": 1}
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="column 'label' holds values of several types .* write all alike"):
        open_rows(str(tmp_path / "list.jsonl"), "train")


def test_streams_and_labelled_rows_agree_on_files_and_splits(tmp_path):
    for name in ("train-0.parquet", "train-1.parquet", "val.parquet"):
        write_one_parquet(tmp_path / name, 4)
    for split, count in (("train", 8), ("validation", 4)):
        assert sum(1 for _ in open_rows(str(tmp_path), split).rows) == count
        assert sum(1 for _ in load_stream(str(tmp_path), split).one_epoch()) == count
    for opener in (open_rows, load_stream):
        with pytest.raises(ValueError, match="has no split 'test'; its splits are train, validation"):
            opener(str(tmp_path), "test")


def test_labelled_datasets_of_the_hub_are_pinned_and_their_errors_name_the_split(monkeypatch):
    asked = []

    def rows_of(repository, split, **options):
        asked.append((repository, split, options))
        raise PermissionError(f"the Hub dataset {repository} is gated; accept its terms")

    monkeypatch.setattr(opening, "hub_rows", rows_of)
    monkeypatch.setattr(opening, "pinned_revision", lambda repository, revision, token: f"commit of {revision}")
    with pytest.raises(ValueError, match="the split 'test' of name cannot be read: the Hub dataset user/name is gated"):
        open_rows("user/name", "test", config_name="small", revision="v1", token="hf_x")
    options = {"config_name": "small", "revision": "commit of v1", "token": "hf_x"}
    assert asked == [("user/name", "test", options)]


@pytest.mark.parametrize("dictionary", [True, False])
def test_saved_datasets(dictionary: bool, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (9, 9), (n, 0, 0)) for n in range(5)], "label": [0, 1, 0, 1, 0]}
    )
    saved: Any = datasets.DatasetDict({"train": rows, "val": rows.select(range(2))}) if dictionary else rows
    saved.save_to_disk(tmp_path / "saved")
    stream = load_stream(str(tmp_path / "saved"))
    assert stream.num_images == 5
    assert {sample["image"].getpixel((0, 0))[0] for sample in stream.one_epoch()} == set(range(5))
    assert len(open_rows(str(tmp_path / "saved"), "train").rows) == 5
    if dictionary:
        assert len(list(load_stream(str(tmp_path / "saved"), "validation").one_epoch())) == 2
        with pytest.raises(ValueError, match="saved has no split 'test'; its splits are train, val"):
            load_stream(str(tmp_path / "saved"), "test")
    else:
        with pytest.raises(ValueError, match="saved is a saved Dataset, the split 'train' alone: save a DatasetDict"):
            open_rows(str(tmp_path / "saved"), "test")


def test_a_folder_of_saved_datasets_has_their_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        datasets.Dataset.from_dict({"image": [encoded(n) for n in range(count)]}).save_to_disk(tmp_path / split)
    assert load_stream(str(tmp_path)).num_images == 3
    assert len(open_rows(str(tmp_path), "validation").rows) == 2
    with pytest.raises(ValueError, match="has no split 'test'; its splits are train, val"):
        load_stream(str(tmp_path), "test")
