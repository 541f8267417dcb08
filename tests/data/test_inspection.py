"""Inspecting whole datasets: against NumPy over all pixels, and across interruptions."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_geossl.data.inspection import DatasetArguments, Inspection
from hf_geossl.data.inspection_report import as_values, total_of

DRAW = np.random.default_rng(0)


def picture(height: int = 8, width: int = 9) -> np.ndarray:
    return DRAW.integers(0, 256, (height, width, 3)).astype(np.uint8)


def class_folders(root: Path) -> dict[str, np.ndarray]:
    """Two splits of two classes, with a broken image and two copies; returns the pixels of the sound files."""
    pixels = {}
    for split, count in (("train", 5), ("test", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels[f"{split}/{name}/{index}.png"] = picture(8 + index)
    for name, values in pixels.items():
        Image.fromarray(values).save(root / name)
    for copy in ("train/dog/again.png", "test/cat/leak.png"):
        (root / copy).write_bytes((root / "train/cat/0.png").read_bytes())
        pixels[copy] = pixels["train/cat/0.png"]
    (root / "train" / "cat" / "bad.png").write_bytes((root / "train/cat/1.png").read_bytes()[:60])
    return pixels


def inspected(dataset: object, folder: Path, stops: tuple[int, ...] = (), **arguments: object) -> Inspection:
    """An inspection that is stopped after some numbers of images and goes on each time."""
    for stop in [*stops, None]:
        inspection = Inspection(DatasetArguments(str(dataset), **arguments), folder / "state")  # type: ignore[arg-type]
        if stop is None:
            inspection.run()
            return inspection
        inspect_image, seen = inspection._inspect_image, []

        def stopping(*place, inspect_image=inspect_image, seen=seen, stop=stop, inspection=inspection):
            inspect_image(*place)
            seen.append(place)
            if len(seen) == stop:
                inspection.stop()

        inspection._inspect_image = stopping  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            inspection.run()
    raise AssertionError


def test_images_classes_copies_and_broken_ones_are_counted(tmp_path):
    pixels = class_folders(tmp_path / "data")
    inspection = inspected(tmp_path / "data", tmp_path)
    values = as_values(inspection)
    assert (values["images"], values["broken"]["count"]) == (16, 1)
    assert values["broken"]["images"][0]["image"] == "train/cat/bad.png"
    assert {split: one["images"] for split, one in values["splits"].items()} == {"train": 11, "test": 5}
    assert values["splits"]["train"]["classes"] == {"cat": 6, "dog": 6}
    assert values["splits"]["test"]["classes"] == {"cat": 3, "dog": 2}
    assert (values["duplicates"]["copies"], values["duplicates"]["across_splits"]) == (2, 1)
    assert values["duplicates"]["groups"] == [
        ["train: train/cat/0.png", "train: train/dog/again.png", "test: test/cat/leak.png"]
    ]
    assert values["sizes"]["height"] == {"min": 8, "median": 9, "max": 12}
    everything = np.concatenate([one.reshape(-1, 3) for one in pixels.values()]).astype(np.float64)
    for channel, found in enumerate(values["values"]["uint8"]):
        of_channel = everything[:, channel]
        assert found["count"] == of_channel.size
        assert found["mean"] == pytest.approx(of_channel.mean())
        assert found["std"] == pytest.approx(of_channel.std())
        for percent, value in found["percentiles"].items():
            assert value == pytest.approx(np.percentile(of_channel, float(percent)))


@pytest.mark.parametrize("stops", [(1,), (3, 1, 6), (11, 2), (13,)])
def test_an_interrupted_inspection_ends_with_the_same_numbers(tmp_path, stops):
    class_folders(tmp_path / "data")
    (tmp_path / "whole").mkdir()
    (tmp_path / "pieces").mkdir()
    whole = as_values(inspected(tmp_path / "data", tmp_path / "whole"))
    pieces = as_values(inspected(tmp_path / "data", tmp_path / "pieces", stops))
    assert json.dumps(pieces) == json.dumps(whole)


def test_what_was_not_saved_is_done_again_after_a_kill(tmp_path):
    class_folders(tmp_path / "data")
    arguments = DatasetArguments(str(tmp_path / "data"))
    killed = Inspection(arguments, tmp_path / "state")

    def kill(*place):
        raise RuntimeError("killed")

    inspect_image = killed._inspect_image
    killed._inspect_image = lambda *place: kill() if "dog" in place[3] else inspect_image(*place)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        killed.run()
    again = Inspection(arguments, tmp_path / "state")
    again.run()
    assert (total_of(again).images, again.duplicates["copies"]) == (16, 2)


def test_the_state_of_another_dataset_is_refused(tmp_path):
    class_folders(tmp_path / "data")
    inspected(tmp_path / "data", tmp_path)
    Image.fromarray(picture()).save(tmp_path / "data" / "train" / "cat" / "new.png")
    with pytest.raises(ValueError, match="of another inspection .its splits differ.*--overwrite"):
        inspected(tmp_path / "data", tmp_path)
    with pytest.raises(ValueError, match="its arguments and splits differ"):
        inspected(tmp_path / "data", tmp_path, split="test")


def test_a_limit_takes_images_of_each_split_from_all_over_it(tmp_path):
    class_folders(tmp_path / "data")
    values = as_values(inspected(tmp_path / "data", tmp_path, (1,), limit=3))
    assert {split: one["images"] + one["broken"] for split, one in values["splits"].items()} == {"train": 3, "test": 3}
    assert set(values["splits"]["train"]["classes"]) == {"cat", "dog"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_split_alone(tmp_path, split):
    class_folders(tmp_path / "data")
    assert list(as_values(inspected(tmp_path / "data", tmp_path, split=split))["splits"]) == [split]
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="has no split 'validation'"):
        inspected(tmp_path / "data", tmp_path / "other", split="validation")


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_labels_and_columns_of_parquet_are_found(tmp_path):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b"]),
            "mask": datasets.Image(),
            "objects": {"bbox": [[datasets.Value("float32")]], "category": [datasets.Value("int64")]},
        }
    )
    rows = {
        "image": [{"bytes": encoded(picture()), "path": None} for _ in range(5)],
        "label": [0, 1, 1, 1, None],
        "mask": [None] * 5,
        "objects": [{"bbox": [[0, 0, 1, 1]], "category": [1]}] * 5,
    }
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "data" / "train.parquet"))
    report = inspected(tmp_path / "data", tmp_path, (2,)).reports["train"]
    assert dict(report.classes) == {"a": 1, "b": 3, "(none)": 1}
    assert report.label_column == "label"
    assert report.columns["image"] == report.columns["mask"] == "image"
    assert report.columns["label"] == "2 classes"
    assert "bbox" in report.columns["objects"]
    assert report.measured.images == 5


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 5), ("uint16", 1), ("float32", 13)])
def test_other_images_get_a_format_that_fits_them(tmp_path, dtype, channels):
    (tmp_path / "data").mkdir()
    for index in range(4):
        values = DRAW.normal(100, 20, (8, 9, channels)).astype(dtype)
        values = values if channels > 1 else values[..., 0]
        tifffile.imwrite(
            tmp_path / "data" / f"{index}.tif",
            values,
            photometric="minisblack",
            **({"planarconfig": "contig"} if channels > 1 else {}),
        )
    chosen = as_values(inspected(tmp_path / "data", tmp_path))["image_format"]
    assert chosen["dtype"] == dtype
    assert chosen["channels"] == ("gray" if channels == 1 else list(range(1, channels + 1)))


def test_maps_beside_images_are_truth_and_no_images(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(picture()[..., 0]).save(tmp_path / "data" / folder / f"{index}.png")
    report = inspected(tmp_path / "data", tmp_path).reports["train"]
    assert report.measured.images == 3
    assert [kind for name, kind in report.columns.items() if name != "image"] == ["image"]


@pytest.mark.parametrize("saved", ["DatasetDict", "Dataset"])
def test_what_save_to_disk_wrote_can_be_inspected(tmp_path, saved):
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(picture()) for _ in range(4)], "label": ["a", "b", "b", None]}
    )
    (datasets.DatasetDict({"train": rows, "test": rows}) if saved == "DatasetDict" else rows).save_to_disk(
        tmp_path / "data"
    )
    reports = inspected(tmp_path / "data", tmp_path, (2,)).reports
    assert list(reports) == (["train", "test"] if saved == "DatasetDict" else ["train"])
    assert dict(reports["train"].classes) == {"a": 1, "b": 2, "(none)": 1}
    assert reports["train"].measured.images == 4


def test_archives_can_be_inspected(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in ("train/cat/1.png", "train/dog/1.png", "val/cat/2.png"):
            archive.writestr(name, encoded(picture()))
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for index in range(3):
            content = encoded(picture())
            member = tarfile.TarInfo(f"{index}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    reports = inspected(tmp_path / "data.zip", tmp_path).reports
    assert {split: (one.measured.images, dict(one.classes)) for split, one in reports.items()} == {
        "train": (2, {"cat": 1, "dog": 1}), "validation": (1, {"cat": 1})
    }  # fmt: skip
    (tmp_path / "state").unlink()
    assert inspected(tmp_path / "train.tar", tmp_path, (1, 1)).reports["train"].measured.images == 3
