"""Which images are trained on and which are measured, and what is left out."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hf_geossl.tasks.finetuning.kinds import find_task
from hf_geossl.tasks.finetuning.splits import LabelledDataset


def _lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_images_are_stretched_as_a_whole(photographs: Path) -> None:
    train, test = LabelledDataset(str(photographs)).open("boxes", (48, 24), None)
    assert (len(train), len(test)) == (12, 6)
    assert test[0]["image"].shape == (3, 24, 24)
    rows = (photographs / "test" / "metadata.jsonl").read_text().splitlines()
    x, y, width, height = json.loads(rows[0])["objects"]["bbox"][0]
    assert test[0]["boxes"].tolist() == [[x / 2, y / 2, (x + width) / 2, (y + height) / 2]]


def test_only_a_test_split_that_is_the_training_split_is_said(
    photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "hf_geossl"):
        LabelledDataset(str(photographs)).open_test("label", 16, None)
        assert "are those that are trained on" not in _lines(caplog)
        LabelledDataset(str(photographs), test_split="train").open("label", (16, 16), None)
        assert "are those that are trained on" in _lines(caplog)


def _boxes(place: Path, split: str, corner: int, names: list[str]) -> None:
    """Objects of 40 pixels a side in some images of 96, from a corner on, by their opposite corners."""
    box = [corner, corner, corner + 40, corner + 40]
    rows = [{"file_name": name, "objects": {"bbox": [box], "category": ["thing"]}} for name in names]
    (place / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_what_truth_means_is_decided_as_in_training(photographs: Path, tmp_path: Path) -> None:
    """Boxes by corners, of which those of the test split alone could be COCO's: read so, they had another size."""
    names = ["000.png", "001.png"]
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for name in names:
            Image.open(photographs / split / name).resize((96, 96)).save(tmp_path / split / name)
    _boxes(tmp_path, "train", 50, names)
    _boxes(tmp_path, "test", 8, names)
    data = LabelledDataset(str(tmp_path))
    for split in (data.open("boxes", (48, 48), None)[1], data.open_test("boxes", 48, None)):
        assert split[0]["boxes"].tolist() == [[4, 4, 24, 24]]


def test_a_test_split_without_truth_is_refused_by_the_name_of_the_other(photographs: Path, tmp_path: Path) -> None:
    for split, source in (("train", "train"), ("validation", "test"), ("test", "test")):
        shutil.copytree(photographs / source, tmp_path / split)
    rows = [json.loads(line) for line in (tmp_path / "test" / "metadata.jsonl").read_text().splitlines()]
    (tmp_path / "test" / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": row["file_name"]}) for row in rows)
    )
    data = LabelledDataset(str(tmp_path))
    for read in (lambda: data.open("label", (16, 16), None), lambda: data.open_test("label", 16, None)):
        with pytest.raises(
            ValueError, match=r"\(test\) has no 'label'.*measure the other split: --test_split validation"
        ):
            read()
    assert len(replace(data, test_split="validation").open("label", (16, 16), None)[1]) == 6


def test_a_fifth_is_held_out_where_there_is_no_other_split(
    photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(photographs / "train", tmp_path / "alone" / "train")
    data = LabelledDataset(str(tmp_path / "alone"))
    with caplog.at_level(logging.WARNING, "hf_geossl"):
        train, test = data.open("label", (16, 16), None)
    assert (len(train), len(test)) == (10, 2)
    assert not set(train.indices) & set(test.indices)
    assert "there is no split test or validation, so 2 images of 12" in _lines(caplog)
    again = data.open_test("label", 16, None)
    assert again.indices == test.indices
    assert again.name.endswith("held out")


def test_images_without_truth_are_left_out_and_counted(
    photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(photographs, tmp_path / "some")
    table = tmp_path / "some" / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    del rows[3]["annotation_file_name"]
    (tmp_path / "some" / "train" / "003_map.png").unlink()
    (tmp_path / "some" / "train" / "005.png").write_bytes(b"broken")
    table.write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.WARNING, "hf_geossl"):
        train, _ = LabelledDataset(str(tmp_path / "some")).open("semantic", (16, 16), None)
    assert len(train) == 10
    assert "images without 'semantic', left out: 1" in _lines(caplog)
    assert "images that are broken and were left out: 1" in _lines(caplog)
    for path in ("train", "test"):
        table = tmp_path / "some" / path / "metadata.jsonl"
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        table.write_text("\n".join(json.dumps({"file_name": row["file_name"]}) for row in rows))
    with pytest.raises(ValueError, match="has no 'label', which this task needs"):
        LabelledDataset(str(tmp_path / "some")).open("label", (16, 16), None)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_boolean_labels_are_false_and_true_in_this_order(photographs: Path, tmp_path: Path, ending: str) -> None:
    folder, labels = tmp_path / "train", [number in (0, 4, 5) for number in range(6)]
    folder.mkdir()
    names = [f"{number:03d}.png" for number in range(6)]
    for name in names:
        shutil.copy(photographs / "train" / name, folder / name)
    if ending == "csv":
        rows = [f"{name},{str(label).lower()}" for name, label in zip(names, labels, strict=True)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    elif ending == "jsonl":
        rows = [json.dumps({"file_name": name, "label": label}) for name, label in zip(names, labels, strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    else:
        images = [{"bytes": (folder / name).read_bytes(), "path": None} for name in names]
        table = datasets.Dataset.from_dict({"image": images, "label": labels})
        assert table.features["label"] == datasets.Value("bool")
        table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train" / "rows.parquet")
        for name in names:
            (folder / name).unlink()
    train, test = LabelledDataset(str(tmp_path), test_split="train").open("label", (16, 16), None)
    assert [int(train[number]["label"]) for number in range(6)] == [1, 0, 0, 0, 1, 1]
    assert find_task("classification").class_names(train, test, None) == ("False", "True")


def test_classes_that_other_data_lacks_keep_the_numbers_of_the_model(
    photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The numbers of ultralytics 13936: folders of fewer classes were numbered anew."""
    names = ("disc", "square", "triangle")
    every = LabelledDataset(str(photographs)).open_test("label", 16, None)
    shutil.copytree(photographs / "test", tmp_path / "test")
    table = tmp_path / "test" / "metadata.jsonl"
    rows = [row for row in map(json.loads, table.read_text().splitlines()) if row["label"] != "disc"]
    table.write_text("\n".join(map(json.dumps, rows)))
    some = LabelledDataset(str(tmp_path)).open_test("label", 16, None)
    wanted = [int(every[place]["label"]) for place in range(len(every)) if int(every[place]["label"])]
    assert sorted(set(wanted)) == [1, 2]
    assert [int(some[place]["label"]) for place in range(len(some))] != wanted
    mended = some.numbered_as("label", names)
    assert [int(mended[place]["label"]) for place in range(len(mended))] == wanted
    assert every.numbered_as("label", names) is every
    assert some.numbered_as("label", ("box", "wedge")) is some  # called otherwise, in this order
    with pytest.raises(
        ValueError, match="has the class 'square', which the model does not know: it knows disc, triangle, star"
    ):
        some.numbered_as("label", ("disc", "triangle", "star"))
    boxes = LabelledDataset(str(tmp_path)).open_test("boxes", 16, None)
    mended = boxes.numbered_as("boxes", ("triangle", *boxes.samples.names["categories"]))
    assert mended[0]["categories"].tolist() == [number + 1 for number in boxes[0]["categories"].tolist()]
