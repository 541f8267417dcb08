"""Tables of all images: COCO's own reader takes the boxes, and the sheet shows every image."""

import csv
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from hf_geossl.tasks.prediction.map_files import class_colors
from hf_geossl.tasks.prediction.records import Records
from hf_geossl.tasks.prediction.summaries import write_summaries

NAMES = ("road", "house", "tree")


def model(kind: str, problem: str | None = None) -> Any:
    config = SimpleNamespace(problem_type=problem)
    return SimpleNamespace(kind=kind, names=NAMES, name="m", module=SimpleNamespace(config=config))


def records(folder: Any, *own: dict[str, Any]) -> Records:
    made = Records(folder, {}, overwrite=False)
    (folder / "overlays").mkdir()
    for number, values in enumerate(own):
        Image.new("RGB", (200, 150), (number, 250, 0)).save(folder / f"overlays/{number}.png")
        files, shown = [f"overlays/{number}.png"], [200, 120]
        made.add({"image": f"{number}.png", "size": [60, 80], "files": files, "shown": shown, "state": [], **values})
    return made


def table(path: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_boxes_are_read_by_coco(tmp_path: Any) -> None:
    first = {"boxes": [[1, 2, 31, 22.5], [0, 0, 4, 4]], "labels": [2, 0], "scores": [0.9, 0.6]}
    made = records(tmp_path, first, {"boxes": [], "labels": [], "scores": []})
    write_summaries(model("detection"), made, ["0.png", "1.png"], {"overlays": True}, {})
    coco = COCO(str(tmp_path / "boxes.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["0.png", "1.png"]
    own = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert [(one["bbox"], coco.cats[one["category_id"]]["name"], one["score"]) for one in own] == [
        ([1, 2, 30, 20.5], "tree", 0.9),
        ([0, 0, 4, 4], "road", 0.6),
    ]
    rows = table(tmp_path / "boxes.csv")
    assert [row["label"] for row in rows] == ["tree", "road"]
    assert rows[0]["y2"] == "22.5"
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        colors = {tuple(color) for color in np.asarray(sheet).reshape(-1, 3).tolist()}
    assert {(0, 250, 0), (1, 250, 0), tuple(class_colors(3)[2].tolist())} <= colors


def test_labels_have_the_probability_of_every_class(tmp_path: Any) -> None:
    made = records(tmp_path, {"probabilities": [0.1, 0.7, 0.6]})
    write_summaries(model("classification"), made, ["0.png"], {"overlays": False}, {})
    rows = table(tmp_path / "labels.csv")
    assert rows == [
        {"image": "0.png", "label": "house", "probability": "0.7", "road": "0.1", "house": "0.7", "tree": "0.6"}
    ]
    write_summaries(model("classification", "multi_label_classification"), made, ["0.png"], {"overlays": False}, {})
    assert table(tmp_path / "labels.csv")[0]["label"] == "house; tree"


def test_the_summary_counts_pixels_and_what_could_not_be_used(tmp_path: Any) -> None:
    made = records(tmp_path, {"pixels": [1, 0, 5]}, {"pixels": [2, 3, 0]})
    returned = write_summaries(
        model("segmentation"), made, ["0.png", "1.png", "x.png"], {"overlays": True}, {"x.png": "why"}
    )
    assert json.loads((tmp_path / "predict.json").read_text()) == returned
    assert returned["pixels"] == {"road": 3, "house": 3, "tree": 5}
    assert returned["broken"] == {"count": 1, "images": {"x.png": "why"}}
    assert returned["images"] == 2
