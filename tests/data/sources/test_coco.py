"""COCO's annotations beside images, by split."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hf_geossl.data.sources.coco import is_coco_name, objects_beside, objects_of_document
from hf_geossl.data.streams import load_stream
from hf_geossl.data.wording import Place
from hf_geossl.evaluation.options import EvaluationData
from hf_geossl.evaluation.samples import load_samples

LAYOUTS = {  # images, annotations
    "coco": ("{}2017/{}.jpg", "annotations/instances_{}2017.json"),
    "roboflow": ("{}/{}.jpg", "{}/_annotations.coco.json"),
    "beside": ("images/{}/{}.jpg", "annotations/{}_coco.json"),
}


def annotations(*categories: str) -> dict:
    return {
        "images": [{"id": 40 + number, "file_name": f"{number}.jpg"} for number in range(4)],
        "annotations": [
            {"image_id": 41, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"image_id": 41, "category_id": 90, "bbox": [0, 0, 2, 2]},
            {"image_id": 43, "category_id": 3, "bbox": [0, 0, 8, 8], "iscrowd": 1},
            {"image_id": 99, "category_id": 3, "bbox": [0, 0, 8, 8]},
        ],
        "categories": [{"id": 3, "name": categories[0]}, {"id": 90, "name": categories[1]}],
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_objects_of_each_split_are_read(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Images of the same names are in both splits; categories are numbered over both."""
    image, file = LAYOUTS[layout]
    for split, categories in (("train", ("dog", "cat")), ("val", ("dog", "ant"))):
        for number in range(4):
            path = tmp_path / image.format(split, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (number, 0, 0)).save(path)
        path = tmp_path / file.format(split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(annotations(*categories)))
        (path.parent / f"captions_{split}.json").write_text("{}")
    data = EvaluationData(str(tmp_path), size=9, train_split="train", test_split="val")
    read = [[sample["categories"].tolist() for sample in samples] for samples in (data.train, data.test)]
    assert data.train.names["categories"] == ("ant", "cat", "dog")
    assert read == [[[], [2, 1], [], []], [[], [2, 0], [], []]]
    assert "has the objects of 4 images of 4 of the split validation" in caplog.text
    assert "1 box around crowds left out" in caplog.text
    assert len(list(load_stream(str(tmp_path), "val").one_epoch())) == 4


def _one_split(folder: Path, boxes: dict[int, list[float]], orientation: int = 1, category: int = 3) -> Path:
    """Four images of 8 x 6 pixels with boxes, by the number of the image; the last category has no name."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    document = annotations("dog", "cat")
    for image in document["images"]:
        Image.new("RGB", (8, 6)).save(folder / image["file_name"], exif=exif)
        image |= {"width": 8, "height": 6}
    document["annotations"] = [
        {"image_id": 40 + number, "category_id": category if number == 3 else 3, "bbox": box}
        for number, box in boxes.items()
    ]
    (folder / "instances_train.json").write_text(json.dumps(document))
    return folder


def test_boxes_beyond_the_image_are_cut_and_empty_ones_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """COCO 2017 has two boxes without height; labelling tools write boxes beyond the edge."""
    boxes = {0: [5, -3, 9, 5], 1: [2, 2, 4, 0], 2: [1, 2, 3, 4], 3: [1, 1, 2, 2], 9: [1, 1, 2, 2]}
    folder = _one_split(tmp_path, boxes, category=55)
    names = [f"{number}.jpg" for number in range(4)]
    objects = objects_beside(names, ["instances_train.json"], "train", Place(str(folder), "folder"))
    assert [objects[name]["bbox"] for name in names] == [[[5, 0, 3, 2]], [], [[1, 2, 3, 4]], []]
    for said in (
        "1 box cut at the edge",
        "1 box without area left out",
        "2 boxes of images or categories that are not listed left out",
    ):
        assert said in caplog.text


def test_boxes_of_images_that_their_orientation_turns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0.jpg as 8 x 6 pixels, and its EXIF orientation lays it on its side"):
        load_samples(str(_one_split(tmp_path, {0: [1, 1, 2, 2]}, orientation=6)), "train", size=7)
    load_samples(str(_one_split(tmp_path, {0: [1, 1, 2, 2]}, orientation=3)), "train", size=7)


def test_annotations_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "instances.json").write_text("{")
    with pytest.raises(ValueError, match="instances.json cannot be read as annotations of COCO"):
        load_samples(str(tmp_path), "train", size=9)
    assert len(list(load_stream(str(tmp_path)).one_epoch())) == 4
    assert not is_coco_name("annotations/captions_val2017.json")


def test_annotations_without_a_box_and_categories_of_one_name_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "car"}, {"id": 7, "name": "car"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2]},
            {"image_id": 1, "category_id": 8, "segmentation": [[1, 1, 3, 1, 3, 3]]},
        ],
    }
    objects = objects_of_document(document, Place(str(tmp_path), "folder"))
    assert objects == {"a.jpg": {"bbox": [[1, 1, 2, 2]], "category": ["car"]}}
    assert "2 categories are called 'car': they are one class" in caplog.text
    assert "1 annotation without a bbox left out" in caplog.text
