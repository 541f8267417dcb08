"""COCO's annotations beside images, by split."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hf_geossl.data.sources.coco import is_coco_name
from hf_geossl.data.streams import load_stream
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


def test_annotations_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "instances.json").write_text("{")
    with pytest.raises(ValueError, match="instances.json cannot be read as annotations of COCO"):
        load_samples(str(tmp_path), "train", size=9)
    assert len(list(load_stream(str(tmp_path)).one_epoch())) == 4
    assert not is_coco_name("annotations/captions_val2017.json")
