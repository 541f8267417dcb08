"""Images with truth: which are taken, what is known of them, and what a broken one costs."""

import io
import os
import shutil
import tarfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from PIL import Image

from hf_geossl.data.sources import opening
from hf_geossl.evaluation import features
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import linear_sgd
from hf_geossl.evaluation.protocols.knn import KNNSettings, measure_knn
from hf_geossl.evaluation.protocols.linear import LogisticSettings, RotationSettings, measure_linear, measure_rotation
from hf_geossl.evaluation.reading.sample_reader import collate
from hf_geossl.evaluation.samples import Columns, load_samples
from hf_geossl.evaluation.truth import SharedTruth
from tests.helpers.supervised import small_model

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=0)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks the real Hub."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(HfApi, "dataset_info", fail)


def class_folder(root: Path, classes: int = 3, images: int = 30) -> Path:
    """Plain images in one folder a class; the red channel is the number of the image in all."""
    for split in ("train", "test"):
        for label in range(classes):
            (root / split / f"class{label}").mkdir(parents=True)
            for number in range(images):
                pixels = np.full((16, 16, 3), label * images + number, np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{label}" / f"{number:03}.png")
    return root


def stream(count: int, per_class: int = 10, broken: tuple[int, ...] = ()) -> Any:
    """Rows in the order of their classes, as a stream."""
    encoded = []
    for index in range(count):
        file = BytesIO()
        Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(file, "PNG")
        encoded.append({"bytes": b"no image" if index in broken else file.getvalue(), "path": None})
    rows = Dataset.from_dict({"image": encoded, "label": [index // per_class for index in range(count)]})
    return rows.to_iterable_dataset(num_shards=3)


def test_a_limit_takes_images_of_all_classes_of_a_folder(tmp_path: Path) -> None:
    folder = str(class_folder(tmp_path))
    thirty = load_samples(folder, "train", size=16, limit=30)
    places = [sample["index"] for sample in thirty]
    labels = np.array([sample["label"] for sample in thirty])
    assert places == sorted(places)
    assert [int(sample["image"][0, 0, 0]) for sample in thirty] == places
    assert np.bincount(labels, minlength=3).min() >= 4  # of 10; all of one class when the first are taken
    more = {sample["index"] for sample in load_samples(folder, "train", size=16, limit=60)}
    assert set(places) < more
    assert [sample["index"] for sample in load_samples(folder, "train", size=16)] == list(range(90))


def test_a_limit_takes_images_of_all_classes_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "hub_rows", lambda *_, **__: stream(90))
    taken = load_samples("user/name", "train", size=16, limit=30)
    labels = [sample["label"] for sample in taken]
    assert len(labels) == 30
    assert len(set(labels)) >= 6  # of 9; 3 when the first are taken
    assert [sample["label"] for sample in taken] == labels  # every pass sees the same
    seen = {int(image[0, 0, 0]) for sample in taken for image in [sample["image"]]}
    batches = taken.endless_batches(10, seed=5)
    assert {int(value) for _ in range(3) for value in next(batches)["image"][:, 0, 0, 0]} == seen
    everything = load_samples("user/name", "train", size=16)
    assert [sample["label"] for sample in everything] == [index // 10 for index in range(90)]


def test_training_images_of_one_class_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "hub_rows", lambda *_, **__: stream(30, per_class=30))
    data, encoder = EvaluationData(dataset="user/name", size=16), load_encoder(small_model())
    told = "must show at least two classes, all 30 of them are of 0"
    with pytest.raises(ValueError, match=told):
        measure_knn(encoder, data, QUIET, KNNSettings())
    with pytest.raises(ValueError, match=told):
        measure_linear(encoder, data, QUIET, LogisticSettings())


# ---- what is known of them ----


def test_datasets_of_the_hub_are_known_by_their_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commits, opened = iter("aab"), []
    monkeypatch.setattr(opening, "hub_rows", lambda *_, **given: opened.append(given["revision"]) or stream(4))
    given: dict[str, Any] = {"size": 16, "revision": "main", "token": "hf_x"}
    load_samples("user/name", "train", **given)
    assert opened.pop() == "main"  # offline
    asked: list[Any] = []

    def dataset_info(api: Any, name: str, revision: str | None = None) -> Any:
        asked.append((name, revision, api.token))
        return SimpleNamespace(sha=next(commits))

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    prints = [load_samples("user/name", "train", **given).fingerprint for _ in range(3)]
    assert asked == [("user/name", "main", "hf_x")] * 3
    assert opened == ["a", "a", "b"]  # what is read is what the fingerprint says
    assert prints[0] == prints[1] != prints[2]


def test_a_folder_is_known_by_place_names_sizes_and_times(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "here" / "photos", images=2)

    def found(path: Path = folder) -> str:
        return load_samples(str(path), "train", size=16).fingerprint

    shutil.copytree(folder, tmp_path / "there" / "photos")
    first = found()
    assert found() == first
    assert found(tmp_path / "there" / "photos") != first  # same names and sizes, perhaps other pixels
    image = folder / "train" / "class0" / "000.png"
    before = image.stat()
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = found()
    (folder / "train" / "LICENSE").write_text("free")
    assert len({first, second, found()}) == 3
    assert str(tmp_path) not in repr(load_samples(str(folder), "train", size=16).description)


# ---- broken images, and whole batches ----


def test_a_broken_image_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(tmp_path, images=4)
    (folder / "train" / "class1" / "001.png").write_bytes(b"no image")
    held = load_samples(str(folder), "train", size=16)
    for workers in (0, 2):
        caplog.clear()
        found = list(load_samples(str(folder), "train", size=16).batches(4, num_workers=workers))
        assert torch.cat([batch["index"] for batch in found]).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        assert caplog.messages == [f"{held.name}: images that are broken and were left out: 1 (12 images read)"]
    assert [sample["index"] for sample in held] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    endless = held.endless_batches(4, seed=0)
    for _ in range(6):
        batch = next(endless)
        assert len(batch["index"]) == 4
        assert 5 not in batch["index"]
    columns = compute_features(load_encoder(small_model()), held, ["label", "image"], QUIET)
    assert len(columns["label"]) == len(columns["image"]) == 11
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="gave no image that can be read .12 are broken"):
        list(held.batches(4))
    with pytest.raises(ValueError, match="gave no image that can be read"):
        next(held.endless_batches(4, seed=0))


def test_streams_give_whole_batches_and_leave_broken_images_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "hub_rows", lambda *_, **__: stream(23, broken=(3, 11)))
    streamed = load_samples("user/name", "train", size=16)
    endless = streamed.endless_batches(5, seed=0)
    batches = [next(endless) for _ in range(9)]
    assert [len(batch["index"]) for batch in batches] == [5] * 9  # four a pass of 21
    shades = [sorted(int(value) for value in batch["image"][:, 0, 0, 0]) for batch in batches]
    assert len({shade for row in shades[:4] for shade in row}) == 20
    assert not {3, 11} & {shade for row in shades for shade in row}
    assert caplog.messages == [f"{streamed.name}: images that are broken and were left out: 2 (23 images read)"]
    assert sum(len(batch["index"]) for batch in streamed.batches(5)) == len(list(streamed)) == 21
    few = streamed.endless_batches(64, seed=0)
    assert [len(next(few)["index"]) for _ in range(2)] == [21, 21]
    monkeypatch.setattr(opening, "hub_rows", lambda *_, **__: stream(3, broken=(0, 1, 2)))
    with pytest.raises(ValueError, match="gave no image that can be read .3 are broken"):
        next(load_samples("user/name", "train", size=16).endless_batches(5, seed=0))


def test_images_of_a_dataset_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = EvaluationData(dataset=str(class_folder(tmp_path, classes=2, images=12)), size=16)
    columns: set[str] = set()
    write = features._write_columns

    def watch(folder: Path, encoder: Any, samples: Any, names: Any, *others: Any) -> None:
        columns.update(names)
        write(folder, encoder, samples, names, *others)

    monkeypatch.setattr(features, "_write_columns", watch)
    encoder, few = load_encoder(small_model()), LogisticSettings(c_values=(1.0,))
    measure_knn(encoder, data, QUIET, KNNSettings())
    measure_linear(encoder, data, QUIET, few)
    sgd = linear_sgd.LinearSGDSettings(epochs=1, learning_rates=(0.1,))
    linear_sgd.measure_linear_sgd(encoder, data, QUIET, sgd)
    measure_rotation(encoder, data, QUIET, RotationSettings(c_values=(1.0,)))
    assert {"pooled", "both", "label", "thumbnail"} <= columns
    assert "image" not in columns


def test_a_column_that_is_named_must_be_there(tmp_path: Path) -> None:
    folder = str(class_folder(tmp_path, classes=2, images=2))
    with pytest.raises(ValueError, match="has no column 'klass' but image, label: name the label column"):
        load_samples(folder, "train", size=8, columns=Columns(label="klass"))
    assert load_samples(folder, "train", size=8).count == 4  # without maps, which are not asked for
    for setting in ({"bbox_format": "yolo"}, {"depth_scale": 0.5}, {"reduce_labels": True}):  # no columns
        assert load_samples(folder, "train", size=8, columns=Columns(**setting)).count == 4  # type: ignore[arg-type]


# ---- other forms of data ----


def labelled(count: int) -> Dataset:
    images = [Image.fromarray(np.full((16, 16, 3), index, np.uint8)) for index in range(count)]
    return Dataset.from_dict({"image": images, "label": [index % 2 for index in range(count)]})


def write_parquet(folder: Path) -> None:
    labelled(6).to_parquet(folder / "train.parquet")
    labelled(4).to_parquet(folder / "test.parquet")


def write_saved(folder: Path) -> None:
    DatasetDict(train=labelled(6), test=labelled(4)).save_to_disk(folder)


def write_tar(folder: Path) -> None:
    for split, count in (("train", 6), ("test", 4)):
        with tarfile.open(folder / f"{split}-000.tar", "w") as archive:
            for index in range(count):
                picture = BytesIO()
                Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(picture, "PNG")
                for name, content in (("png", picture.getvalue()), ("cls", str(index % 2).encode())):
                    entry = tarfile.TarInfo(f"{index:04}.{name}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("write", [write_parquet, write_saved, write_tar])
def test_packed_data_are_read(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    columns = Columns(image="png", label="cls") if write is write_tar else Columns()
    for split, count in (("train", 6), ("test", 4)):
        samples = load_samples(str(tmp_path), split, size=16, columns=columns)
        found = list(samples)
        assert [int(sample["image"][0, 0, 0]) for sample in found] == list(range(count))
        assert [sample["label"] for sample in found] == [index % 2 for index in range(count)]
    with pytest.raises(ValueError, match="the split 'nix' of .* cannot be read"):
        load_samples(str(tmp_path), "nix", size=16, columns=columns)


def test_truth_of_parquet_files_is_numbered_by_all_of_their_rows(tmp_path: Path) -> None:
    """Rows are streamed, and their labels and categories read before."""
    picture = Image.new("RGB", (16, 16))
    for split, labels in (("train", ["cat", "dog"]), ("test", ["ant", "dog"])):
        objects = [{"bbox": [[0, 0, 9, 9]], "category": [90 if label == "ant" else 1]} for label in labels]
        rows = Dataset.from_dict({"image": [picture] * 2, "label": labels, "objects": objects})
        rows.to_parquet(tmp_path / f"{split}.parquet")
    shared = SharedTruth(("train", "test"))
    train, test = (load_samples(str(tmp_path), split, size=16, shared=shared) for split in ("train", "test"))
    assert train.names == test.names == {"label": ("ant", "cat", "dog"), "categories": ("1", "90")}
    assert [(sample["label"], sample["categories"].tolist()) for sample in test] == [(0, [1]), (2, [0])]
    assert [sample["label"] for sample in train] == [1, 2]


@pytest.mark.parametrize("missing", [None, -1, float("nan"), ""])
def test_rows_of_a_stream_without_a_label_are_left_out_and_counted(
    missing: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = [missing, *(["b", "a", missing, "b", "a"] if missing == "" else [1, 0, missing, 1, 0])]
    rows = [
        {"image": Image.new("RGB", (8, 8), (40 * number, 0, 0)), "label": value} for number, value in enumerate(labels)
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    samples = load_samples(str(tmp_path), "train", size=8)
    assert f"{tmp_path.name} (train): images without a label, left out: 2 of 6" in caplog.messages
    read = [(int(sample["label"]), int(sample["image"].max())) for sample in samples]
    assert read == [(1, 40), (0, 80), (1, 160), (0, 200)]


def test_lists_of_classes_are_no_single_labels(tmp_path: Path) -> None:
    rows = [{"image": Image.new("RGB", (8, 8)), "label": [number % 2, 2]} for number in range(4)]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="are lists of classes, and one class an image is needed"):
        load_samples(str(tmp_path), "train", size=8).require("label")


def test_a_parquet_file_alone_is_its_split_whatever_marks_are_in_its_path(tmp_path: Path) -> None:
    (tmp_path / "a::b").mkdir()
    file = str(tmp_path / "a::b" / "all.parquet")
    labelled(40).to_parquet(tmp_path / "all.parquet")  # `datasets` would take "::" for two addresses
    shutil.move(tmp_path / "all.parquet", file)
    samples = load_samples(file, "train", size=16)
    assert [sample["label"] for sample in samples] == [index % 2 for index in range(40)]
    assert len(list(load_samples(file, "train", size=16, limit=7))) == 7


def test_parquet_files_of_other_columns_are_named(tmp_path: Path) -> None:
    labelled(4).to_parquet(tmp_path / "train-0.parquet")
    labelled(4).rename_column("label", "kind").to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(ValueError, match=r"train-0.parquet has image, label, train-1.parquet has image, kind"):
        load_samples(str(tmp_path), "train", size=16)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_columns_of_arrays_keep_the_type_of_their_numbers(dtype: str, tmp_path: Path) -> None:
    """As the same arrays are read from files; as int64 or float64, which lists are, they would have no range."""
    pixels = np.arange(8 * 8 * 3).reshape(8, 8, 3)
    array = (pixels / 192 if dtype == "float32" else pixels * (1 if dtype == "uint8" else 150)).astype(dtype)
    nested = pa.array([array.tolist()], pa.list_(pa.list_(pa.list_(pa.from_numpy_dtype(np.dtype(dtype))))))
    pq.write_table(pa.table({"image": nested, "label": [0]}), tmp_path / "train.parquet")
    np.save(tmp_path / "one.npy", array)
    (read,) = load_samples(str(tmp_path / "train.parquet"), "train", size=8)
    assert torch.equal(read["image"], next(iter(load_samples(str(tmp_path / "*.npy"), "train", size=8)))["image"])


def test_what_holds_no_splits_is_refused(tmp_path: Path) -> None:
    labelled(4).to_parquet(tmp_path / "all.parquet")
    with pytest.raises(ValueError, match=r"no split 'test'; its splits are train: name one by --split"):
        load_samples(str(tmp_path / "all.parquet"), "test", size=16)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="one.png is a single image: name the folder"):
        load_samples(str(tmp_path / "one.png"), "train", size=16)
    labelled(4).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="the split .train. alone: save a DatasetDict that has"):
        load_samples(str(tmp_path / "one"), "test", size=16)
    for name in opening.CLIP_FOLDERS:
        (tmp_path / "clips" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="it holds clips, which only the task propagation reads"):
        load_samples(str(tmp_path / "clips"), "test", size=16)


@pytest.mark.parametrize(
    ("target", "column"),
    [("label", "label"), ("multi_label", "label"), ("semantic", "semantic"), ("depth", "depth"), ("boxes", "objects")],
)
def test_truth_that_is_not_there_names_columns_and_argument(target: str, column: str, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"image": [Image.new("RGB", (8, 8))], "kind": [1]})
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "own")
    samples = load_samples(str(tmp_path / "own"), "train", size=8)
    with pytest.raises(
        ValueError,
        match=rf"own \(train\) has no '{target}', which this task needs; its columns are image, kind: name the right one "
        rf"by --{column}_column",
    ):
        samples.require(target)
    assert samples.require("image")["index"] == 0


def test_a_batch_in_which_some_lack_the_truth_is_refused() -> None:
    samples = [{"index": 3, "label": 1}, {"index": 4}]
    for order in (samples, samples[::-1]):
        with pytest.raises(ValueError, match="image 4 has no 'label' and others have"):
            collate(order)
