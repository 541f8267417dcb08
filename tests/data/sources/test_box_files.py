"""Boxes in the files of labelling tools: the same two boxes in every layout are read as the same numbers."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hf_geossl.data.sources.box_files import box_files, read_boxes
from hf_geossl.data.wording import Place
from hf_geossl.evaluation.samples import load_samples

WIDTH, HEIGHT = 40, 20
LEFT, TOP, RIGHT, BOTTOM = 10, 5, 30, 15  # of the box of each image but the last, which has none


def _yolo(folder: Path, number: int) -> None:
    text = "" if number == 3 else ("1 0.5 0.5 0.5 0.5\n" if number else "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / f"{number}.txt").write_text(text)
    (folder / "data.yaml").write_text("train: ../images\nnc: 2\nnames: ['cat', 'dog']\n")


def _voc(folder: Path, number: int) -> None:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (LEFT, TOP, RIGHT, BOTTOM), strict=True)
    box = "".join(f"<{name}>{value}.0</{name}>" for name, value in corners)
    text = "" if number == 3 else f"<object><name>dog</name><bndbox>{box}</bndbox></object>"
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / f"{number}.xml").write_text(
        f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{text}</annotation>"
    )


def _labelme(folder: Path, number: int) -> None:
    shape = {"label": "dog", "points": [[RIGHT, BOTTOM], [LEFT, TOP]], "shape_type": "rectangle"}
    content = {"shapes": [] if number == 3 else [shape], "imageWidth": WIDTH, "imageHeight": HEIGHT}
    (folder / "images" / f"{number}.json").write_text(json.dumps(content))


def _cvat(folder: Path, number: int) -> None:
    points = f"{LEFT},{TOP};{RIGHT},{TOP};{RIGHT},{BOTTOM}"
    text = "" if number == 3 else f'<polygon label="dog" points="{points}"/>'
    file = folder / "annotations.xml"
    before = file.read_text().removesuffix("</annotations>") if file.exists() else "<annotations>"
    image = f'<image name="{number}.png" width="{WIDTH}" height="{HEIGHT}">{text}</image>'
    file.write_text(f"{before}{image}</annotations>")


def _coco(folder: Path, number: int) -> None:
    """As Label Studio writes it: the paths of its own machine."""
    if number != 3:
        return
    images = [{"id": n, "file_name": rf"..\..\upload\4\{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(4)]
    box = [LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP]
    boxes = [{"image_id": n, "category_id": 7, "bbox": box} for n in range(3)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "dog"}]}
    (folder / "result.json").write_text(json.dumps(document))


@pytest.mark.parametrize("write", [_yolo, _voc, _labelme, _cvat, _coco])
def test_boxes_of_each_tool_are_read(
    write: Callable[[Path, int], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
        write(tmp_path, number)
    with caplog.at_level(logging.WARNING):
        samples = load_samples(str(tmp_path), "train", size=20)
    boxes = [row["objects"]["bbox"] for row in samples.rows]
    assert boxes == [[[LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP]]] * 3 + [[]]
    assert samples.names["categories"] == ("dog",)
    assert "the objects of 4 images of 4 of the split train" in caplog.text
    assert "left out" not in caplog.text


def test_boxes_as_shares_are_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("0 0.5 0.25 1 0.5\n")
    assert box_files(str(tmp_path), ["a.txt"], ["a.jpg"]) == ["a.txt"]
    objects = read_boxes(["a.jpg"], ["a.txt"], "train", Place(str(tmp_path)))
    assert objects["a.jpg"] == {"bbox": [[0, 0, HEIGHT, WIDTH / 2]], "category": ["0"]}


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.txt", "boxes.json"):
        os.mkfifo(tmp_path / name)
    assert box_files(str(tmp_path), ["a.txt", "boxes.json"], ["a.png"]) == []


def test_captions_beside_images_are_no_boxes_and_a_broken_file_is_named(tmp_path: Path) -> None:
    for name, text in (("a", "a cat on 4 legs"), ("b", "1 0.5 0.5")):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    assert box_files(str(tmp_path), ["a.txt", "b.txt"], ["a.png", "b.png"]) == []
    with pytest.raises(ValueError, match="b.txt cannot be read as boxes .the line '1 0.5 0.5' has no class and four"):
        read_boxes(["b.png"], ["b.txt"], "train", Place(str(tmp_path)))
