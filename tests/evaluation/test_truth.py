"""What the truth of a dataset means: decided from its rows, the same for all splits, and said."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_geossl.data.sources.opening import LabelledRows
from hf_geossl.evaluation.options import EvaluationData
from hf_geossl.evaluation.reading.sample_reader import SampleReader
from hf_geossl.evaluation.truth import Columns, SharedTruth, Truth, decide_truth
from tests.evaluation.reading.test_annotations import BOX


def rows_of(**columns: list[Any]) -> datasets.Dataset:
    count = len(next(iter(columns.values())))
    return datasets.Dataset.from_dict({"image": [Image.new("RGB", (40, 20))] * count, **columns})


def decide(caplog: pytest.LogCaptureFixture, *splits: datasets.Dataset, **columns: Any) -> tuple[Truth, str]:
    caplog.clear()
    return decide_truth(splits, Columns(**columns), "photos"), " | ".join(caplog.messages)


@pytest.mark.parametrize(
    ("train", "test", "labels", "said"),
    [
        ([0, 1, 2], [2, 1], None, ""),
        ([0.0, 1.0], [1.0], None, "floating point: taken as whole numbers"),
        ([True, False], [True], None, ""),
        (
            ["dog", "cat"],
            ["bird"],
            ("bird", "cat", "dog"),
            "are texts: 3 classes, numbered in the order bird, cat, dog",
        ),
        (["10", "9"], ["x", "2"], ("2", "9", "10", "x"), "are texts: 4 classes"),
        ([1001, 77], [2043], (77, 1001, 2043), "go from 77 to 2043: 3 classes, numbered in that order"),
        ([3, None, 0], [-1], None, ""),
        ([-2, 5], [0], (-2, 0, 5), "go from -2 to 5: 3 classes"),
        ([3, 1], [2, None], (1, 2, 3), "go from 1 to 3: 3 classes, numbered in that order from 0 on"),
    ],
)
def test_labels(train: list, test: list, labels: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    """The numbers are those of both splits together, whichever stands first."""
    first, second = rows_of(label=train), rows_of(label=test)
    truth, message = decide(caplog, first, second)
    assert truth == Truth(labels=labels) == decide(caplog, second, first)[0]
    assert (said in message) if said else not message


def test_lists_of_labels_are_multi_labels(caplog: pytest.LogCaptureFixture) -> None:
    truth, _ = decide(caplog, rows_of(label=[["cat", "dog"], []]), rows_of(label=[["bird"]]))
    assert truth == Truth(labels=("bird", "cat", "dog"), lists=True)
    row = {"image": np.zeros((8, 8, 3), np.uint8), "label": ["dog", "bird"]}
    sample = SampleReader(8, Columns(), truth=truth)(0, row)
    assert sample["multi_label"].tolist() == [1, 0, 1]
    assert "label" not in sample


@pytest.mark.parametrize(
    ("vectors", "kind", "key", "values"),
    [
        ([[0, 1, 0], [1, 0, 0], [0, 0, 1]], "one-hot", "label", [1, 0, 2]),
        ([[0.0, 1.0], [1.0, 0.0]], "one-hot", "label", [1, 0]),
        ([[0, 1, 1], [0, 0, 0]], "multi-hot", "multi_label", [[0, 1, 1], [0, 0, 0]]),
        ([[True, True], [False, True]], "multi-hot", "multi_label", [[1, 1], [0, 1]]),
        ([[0, 1], [1]], "", "multi_label", [[1, 1], [0, 1]]),  # lists of classes
    ],
)
def test_vectors_of_labels(vectors: list, kind: str, key: str, values: list, caplog: pytest.LogCaptureFixture) -> None:
    truth, message = decide(caplog, rows_of(label=vectors))
    assert truth.vectors == kind
    assert (f"are {kind} vectors: {len(vectors[0])} classes" in message) == bool(kind)
    read, image = SampleReader(8, Columns(), truth=truth), np.zeros((8, 8, 3), np.uint8)
    samples = [read(0, {"image": image, "label": vector}) for vector in vectors]
    assert [sample[key] if key == "label" else sample[key].tolist() for sample in samples] == values


def test_labels_that_are_no_classes_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"column 'label' of photos holds values such as '0.37', which are no classes"):
        decide(caplog, rows_of(label=[1.0, 0.37]))

    with pytest.raises(
        ValueError, match="column 'label' of photos holds dictionaries of id: make a column of the labels"
    ):
        decide(caplog, rows_of(label=[{"id": 1}, {"id": 2}]))


def test_maps_of_255_alone_have_no_truth(caplog: pytest.LogCaptureFixture) -> None:
    """They were class 1 everywhere, and 95 % of the pixels right."""
    with pytest.raises(ValueError, match="hold 255 alone, a pixel without truth: name the column"):
        decide(caplog, rows_of(annotation=maps(255)))


def maps(*values: int, dtype: type = np.uint8) -> list[Image.Image]:
    """Two maps of 20 x 40 with all the values, and one with the first alone."""
    classes = np.resize(np.array(values, dtype), (20, 40))
    return [Image.fromarray(classes), Image.fromarray(np.full_like(classes, values[0])), Image.fromarray(classes)]


@pytest.mark.parametrize(
    ("values", "binary", "said"),
    [
        ((0, 1), False, ""),
        ((0, 255), True, "hold 0 and 255 alone: 255 is taken as class 1"),
        ((0, 1, 255), False, ""),
        ((0, 1, 2, 3), False, ""),
        (
            (0, 85, 170),
            False,
            "hold the values 0, 85, 170, so that there are 171 classes; if these are grey levels of 3",
        ),
    ],
)
def test_maps(values: tuple[int, ...], binary: bool, said: str, caplog: pytest.LogCaptureFixture) -> None:
    truth, message = decide(caplog, rows_of(annotation=maps(*values)))
    assert truth == Truth(binary=binary)
    assert (said in message) if said else not message


def test_binary_maps_measure_like_those_of_ones(caplog: pytest.LogCaptureFixture) -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    ones, many = maps(0, 1)[0], maps(0, 255)[0]
    truth, _ = decide(caplog, rows_of(annotation=maps(0, 255)))
    read = SampleReader(16, Columns(), truth=truth)(0, {"image": image, "annotation": many})["semantic"]
    assert read.equal(SampleReader(16, Columns())(0, {"image": image, "annotation": ones})["semantic"])
    with pytest.raises(ValueError, match="holds the class 1 in one map, and 0 and 255 alone in the first ones"):
        SampleReader(16, Columns(), truth=truth)(0, {"image": image, "annotation": ones})


@pytest.mark.parametrize("kind", [*BOX])
@pytest.mark.parametrize("as_list", [True, False])
def test_the_format_of_boxes(kind: str, as_list: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A second object far to the right, 25 to 38 of 40 and 2 to 18 of 20, leaves one format in which all lie inside."""
    right = {
        "coco": [25, 2, 13, 16],
        "pascal_voc": [25, 2, 38, 18],
        "yolo": [63 / 80, 0.5, 13 / 40, 0.8],
        "xyxy_fractions": [25 / 40, 0.1, 38 / 40, 0.9],
        "xywh_fractions": [25 / 40, 0.1, 13 / 40, 0.8],
    }
    objects: Any = {"bbox": [[float(v) for v in box[kind]] for box in (BOX, right)], "category": [0, 1]}
    if as_list:
        objects = [{"bbox": box, "category": place} for place, box in enumerate(objects["bbox"])]
    rows = rows_of(objects=[objects, objects])
    given, message = decide(caplog, rows, bbox_format=kind)
    assert (given.bbox_format, message) == (kind, "")
    truth, message = decide(caplog, rows)
    assert truth.bbox_format == kind
    assert message == "" if kind == "coco" else f"lie in their images as {kind} alone" in message
    reader = SampleReader(20, Columns(), truth=truth)
    boxes = reader(0, {"image": Image.new("RGB", (40, 20)), "objects": objects})["boxes"]
    # the shorter side becomes 23 pixels, the middle 20 x 20 of 46 x 23 is cut out: x from 13, y from 1
    expected = np.array([[4, 5, 12, 15], [25, 2, 38, 18]]) * 46 / 40 - [13, 1, 13, 1]
    assert boxes.numpy() == pytest.approx(
        expected.clip(0, 20)[(expected.clip(0, 20)[:, 2:] - expected.clip(0, 20)[:, :2]).min(1) >= 1], abs=1e-4
    )


def test_boxes_of_several_meanings_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    small = {"bbox": [[0.2, 0.2, 0.3, 0.3]], "category": [0]}
    with pytest.raises(ValueError, match="may be yolo or xyxy_fractions or xywh_fractions: say which by --bbox_format"):
        decide(caplog, rows_of(objects=[small]))
    large = {"bbox": [[30.0, 5.0, 20.0, 90.0]], "category": [0]}
    with pytest.raises(ValueError, match="reach out of their images as any of coco, pascal_voc.*--bbox_format"):
        decide(caplog, rows_of(objects=[large]))
    assert decide(caplog, rows_of(objects=[large]), bbox_format="coco")[0].bbox_format == "coco"


def test_categories_may_be_texts(caplog: pytest.LogCaptureFixture) -> None:
    objects = [{"bbox": [[4, 5, 8, 10]], "category": ["car"]}, {"bbox": [[25, 2, 13, 16]], "category": ["bus"]}]
    truth, message = decide(caplog, rows_of(objects=objects))
    assert truth.categories == ("bus", "car")
    assert "the categories of photos in column 'objects' are texts: 2 classes" in message
    sample = SampleReader(20, Columns(), truth=truth)(0, {"image": Image.new("RGB", (40, 20)), "objects": objects[1]})
    assert sample["categories"].tolist() == [0]


@pytest.mark.parametrize(
    ("dtype", "values", "given", "scale", "said"),
    [
        (np.float32, (0.5, 7), None, 1.0, ""),
        (np.uint16, (500, 7000), None, 0.001, "whole numbers up to 7000: taken as millimetres (7 m)"),
        (np.uint16, (500, 7000), 1 / 256, 1 / 256, ""),
        (np.uint8, (5, 200), None, 0.001, "whole numbers up to 200"),
        (np.float32, (500, 7000), None, 1.0, "reach 7000 and are taken as metres; --depth_scale 0.001"),
        (np.float32, (0.5, np.nan, np.inf, -1), None, 1.0, ""),
    ],
)
def test_depths(
    dtype: type, values: tuple, given: float | None, scale: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    depths = np.resize(np.array(values, dtype), (20, 40))
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (40, 20))], "depth_map": [depths.tolist()]},
        datasets.Features({"image": datasets.Image(), "depth_map": datasets.Array2D((20, 40), np.dtype(dtype).name)}),
    )
    truth, message = decide(caplog, rows, depth_scale=given)
    assert truth.depth_scale == scale
    assert (said in message) if said else not message
    sample = SampleReader(20, Columns(), truth=truth)(
        0, {"image": np.zeros((20, 40, 3), np.uint8), "depth_map": depths}
    )
    known = sorted({float(np.float32(value)) * scale for value in values if np.isfinite(value) and value >= 0})
    assert sample["depth"][sample["depth"] > 0].unique().tolist() == pytest.approx(known, rel=1e-5)
    unknown = any(not np.isfinite(value) or value < 0 for value in values)
    assert ("changed" in sample) == unknown


def test_splits_share_one_truth_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": rows_of(label=["b", "c"]), "test": rows_of(label=["a"])}

    def opened(split: str) -> LabelledRows:
        if split not in splits:
            raise ValueError(f"no split {split}")
        return LabelledRows(splits[split])

    shared = SharedTruth(("train", "test"))
    for split in ("test", "train"):
        assert shared.decide({split: opened(split)}, opened, Columns(), "photos").labels == ("a", "b", "c")
    assert len(caplog.messages) == 1
    assert SharedTruth(("train", "none")).decide({}, opened, Columns(), "photos").labels == ("b", "c")


def test_images_without_a_label_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    shared = SharedTruth(("train",))
    rows = rows_of(label=[0, None, -1, 2])
    assert list(shared.with_label(LabelledRows(rows), Columns(), "photos (train)")) == [0, 3]
    assert caplog.messages == ["photos (train): images without a label, left out: 2 of 4"]
    assert (
        len(shared.with_label(LabelledRows(rows_of(label=[None, None])), Columns(), "photos (test)")) == 2
    )  # the task says so
    both = rows_of(label=[0, None], annotation=maps(0, 1)[:2])
    assert len(shared.with_label(LabelledRows(both), Columns(), "maps")) == 2  # which have another truth


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="bbox_format must be one of coco, pascal_voc, yolo.*got 'voc'"):
        Columns(bbox_format="voc")
    with pytest.raises(ValueError, match="depth_scale must be above 0"):
        Columns(depth_scale=0)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_that_were_seen_in_training_are_counted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, shades in (("train", (1, 2, 3)), ("test", (3, 4, 1, 5))):
        for number, shade in enumerate(shades):
            path = tmp_path / "own" / split / "ab"[number % 2] / f"{split}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade, 9, 9)).save(path)
    dataset = str(tmp_path / "own")
    if kind == "zip":
        dataset = shutil.make_archive(dataset, "zip", tmp_path / "own")
    data = EvaluationData(dataset, size=8)
    assert len(list(data.train)) == 3
    assert len(list(data.test)) == 4
    assert caplog.text.count("measured images were seen in training") == 1
    said = "2 images of the 4 of the split test have the content of one of the split train (test/a/test0.png is train/a/train2.png)"
    assert said in caplog.text
