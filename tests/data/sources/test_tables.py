"""Lists of paths, and metadata: what they give to images, and what of them is left out, with a line."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_geossl.data.sources.opening import open_rows
from hf_geossl.data.sources.tables import read_list, read_table
from hf_geossl.data.streams import load_stream
from hf_geossl.data.wording import Place
from hf_geossl.evaluation.samples import load_samples


def write(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (shade, 0, 0)).save(path)


def test_metadata_gives_columns_and_names_truth(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"train/i/{number}.png", number)
        write(tmp_path / f"train/m/{number}.png", 9)
    lines = [f'{{"file_name": "i/{n}.png", "annotation_file_name": "m/{n}.png", "age": {20 + n}}}' for n in range(3)]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(lines))
    assert len(list(load_stream(str(tmp_path)).one_epoch())) == 3
    rows = open_rows(str(tmp_path), "train").rows
    assert [row["age"] for row in rows] == [20, 21, 22]
    assert [Path(row["annotation"]["path"]).parent.name for row in rows] == ["m"] * 3
    (tmp_path / "train/metadata.jsonl").write_text('{"name": "i/0.png"}')
    with pytest.raises(ValueError, match="train/metadata.jsonl has no column file_name but name"):
        load_stream(str(tmp_path))


LISTS: dict[str, str] = {
    "plain.txt": "a/0.png\na/1.png\nb/2.png\n",
    "labelled.txt": "a/0.png 0\na/1.png 0\nb/2.png 1\n",
    "list.csv": "path,label\na/0.png,0\na/1.png,0\nb/2.png,1\n",
    "list.tsv": "image\tlabel\na/0.png\t0\na/1.png\t0\nb/2.png\t1\n",
    "windows.csv": "path,label\na\\0.png,0\na\\1.png,0\nb\\2.png,1\n",
    "array.jsonl": '[{"path": "a/0.png", "label": 0},\n {"path": "a/1.png", "label": 0}, {"path": "b/2.png", "label": 1}]',
    "list.jsonl": '{"file_name": "a/0.png", "label": 0}\n{"file_name": "a/1.png", "label": 0}\n{"file_name": "b/2.png", "label": 1}',
    "split.csv": "path,label,split\na/0.png,0,train\na/1.png,0,train\nb/2.png,1,train\nb/3.png,1,val\n",
}


@pytest.mark.parametrize("name", [*LISTS])
def test_lists_of_paths(name: str, tmp_path: Path) -> None:
    for number, folder in enumerate("aabb"):
        write(tmp_path / folder / f"{number}.png", number)
    (tmp_path / name).write_text(LISTS[name])
    path = str(tmp_path / name)
    assert {sample["key"] for sample in load_stream(path).one_epoch()} == {"a/0.png", "a/1.png", "b/2.png"}
    rows: Any = open_rows(path, "train").rows
    assert name == "plain.txt" or rows["label"][:] == [0, 0, 1]
    if name == "split.csv":
        assert [sample["key"] for sample in load_stream(path, "validation").one_epoch()] == ["b/3.png"]


def test_a_list_without_paths_names_its_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("height,width\n3,4\n")
    with pytest.raises(
        ValueError, match="x.csv has the columns height, width, and none of paths: name it file_name or"
    ):
        load_stream(str(tmp_path / "x.csv"))


def test_rows_about_absent_images_and_images_without_rows_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png", number)
    (tmp_path / "metadata.csv").write_text("file_name,age\n0.png,20\n0.png,21\n7.png,3\n8.png,3\n2.png,\n")
    with caplog.at_level(logging.WARNING):
        rows: Any = open_rows(str(tmp_path), "train").rows
    assert rows["age"][:] == [20, None, None]
    assert caplog.messages == [
        f"{tmp_path.name}: 2 rows of metadata about images that are not there left out (7.png, 8.png)",
        f"{tmp_path.name}: 1 row of metadata left out, about images of earlier rows",
        f"{tmp_path.name}: 1 of 3 images of the split train without a row of metadata",
    ]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("Image Index;finding\na.png;3\nb.png;4\n", "Image Index"),
        ("Filename\tfinding\na.png\t3\nb.png\t4\n", "image"),
        ("\ufefffinding,IMAGE\r\n3,a.png\r\n4,b.png\r\n", "image"),
    ],
)
def test_columns_of_paths_have_many_names(text: str, column: str, tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    write(tmp_path / "b.png", 2)
    (tmp_path / "list.csv").write_text(text)
    keys = {sample["key"] for sample in load_stream(str(tmp_path / "list.csv"), image_column=column).one_epoch()}
    assert keys == {"a.png", "b.png"}
    rows: Any = open_rows(str(tmp_path / "list.csv"), "train", image_column=column).rows
    assert rows["finding"][:] == [3, 4]
    assert [Path(row[column]["path"]).name for row in rows] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("words.csv", "path,label\na.png,None\nb.png,NA\n", ["None", "NA"]),
        ("numbers.csv", "path,label\na.png,3\nb.png,NA\n", [3.0, None]),
        ("missing.csv", "path,label\na.png,cat\nb.png,\n", ["cat", None]),
        ("empty.csv", "path,label\na.png,\nb.png,\n", [None, None]),
        ("blanks.csv", "path,label\na.png ,cat \nb.png,cat\n", ["cat", "cat"]),
        ("words.txt", "a.png cat\nb.png a dog\n", ["cat", "a dog"]),
    ],
)
def test_labels_of_lists(name: str, text: str, labels: list, tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    write(tmp_path / "b.png", 2)
    (tmp_path / name).write_text(text)
    rows: Any = open_rows(str(tmp_path / name), "train").rows
    assert rows["label"][:] == labels
    assert [Path(row["image"]["path"]).name for row in rows] == ["a.png", "b.png"]


def test_lines_without_a_path_or_a_split_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.png", 1)
    (tmp_path / "list.csv").write_text("path,split\na.png,Train\n,train\nb.png,\nc.png,2\n")
    with caplog.at_level(logging.WARNING):
        assert len(list(load_stream(str(tmp_path / "list.csv")).one_epoch())) == 2
    assert caplog.messages == [
        "list.csv: 1 line left out, with nothing in the column path",
        "list.csv: 1 line without a split taken as train",
    ]
    assert [sample["key"] for sample in load_stream(str(tmp_path / "list.csv"), "2").one_epoch()] == ["c.png"]


def test_an_image_that_is_listed_again_comes_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.png", 1)
    (tmp_path / "list.csv").write_text("path,split\na.png,train\n./a.png,test\nb.png,test\n")
    with caplog.at_level(logging.WARNING):
        seen = {
            split: len(list(load_stream(str(tmp_path / "list.csv"), split).one_epoch())) for split in ("train", "test")
        }
    assert seen == {"train": 1, "test": 1}
    assert caplog.messages == ["list.csv: 1 line left out, about images of earlier lines"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b""), ("a.jsonl", b"{bad\n"), ("a.csv", b"\xff\xfe\x00"), ("a.json", b"[1, {}]")]
)
def test_what_is_no_table_is_named(name: str, content: bytes) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be read as a table"):
        read_table(name, content, Place(name))


ROWS = [(f"im/{number}.png", "cat" if number % 2 else "dog") for number in range(4)]
LINES = "".join(f"{name},{label}\n" for name, label in ROWS)
OBJECTS = [{"image": name, "label": label} for name, label in ROWS]
COCO = {
    "images": [{"id": 7 + number, "file_name": f"{number}.png"} for number in range(4)],
    "annotations": [
        {"image_id": 8, "category_id": 3, "bbox": [1, 2, 3, 4]},
        {"image_id": 8, "category_id": 1, "bbox": [0, 0, 2, 2]},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
}
WRITTEN: dict[str, tuple[str, str | bytes, str]] = {  # what -> file, content, what is said
    "comma": ("a.csv", f"image,label\n{LINES}", ""),
    "semicolon": ("a.csv", "image;note;label\n" + "".join(f"{name};1, 2, 3;{label}\n" for name, label in ROWS), ""),
    "tab and another name": ("LIST.TSV", f"Filename\tlabel\n{LINES}".replace(",", "\t"), ""),
    "byte order mark": ("a.csv", f"\ufeffimage,label\n{LINES}".encode(), ""),
    "utf-16": ("a.csv", f"image,label\n{LINES}".encode("utf-16"), ""),
    "latin": ("a.csv", f"image,label,o\xe9\n{LINES}".encode("latin-1"), "is no UTF-8 and is read as cp1252"),
    "Windows": ("a.csv", f"image,label\n{LINES}".replace("/", "\\").replace("\n", "\r\n"), ""),
    "Windows elsewhere": ("a.csv", f"image,label\n{LINES}".replace("im/", "C:\\data\\im\\"), "(C:/data/im/0.png is im/0.png)"),
    "another machine": ("a.csv", f"image,label\n{LINES}".replace("im/", "/home/me/im/"), "(/home/me/im/0.png is im/0.png)"),
    "without endings": ("a.csv", f"id,label\n{LINES}".replace(".png", ""), "(im/0 is im/0.png)"),
    "numbers": ("a.csv", f"image_id,label\n{LINES}".replace(".png", "").replace("im/", ""), "the column image_id is taken as paths"),
    "names alone": ("a.csv", f"image,label\n{LINES}".replace("im/", ""), "(0.png is im/0.png)"),
    "no names of columns": ("a.csv", LINES, "no line of names; its columns are called image, label"),
    "spaces": ("a.csv", f"image, label\n{LINES}".replace(",", ", "), ""),
    "comment": ("a.csv", f"# by hand\nimage,label\n{LINES}", ""),
    "list": ("a.json", json.dumps(OBJECTS), ""),
    "list under a name": ("a.json", json.dumps({"version": 1, "data": OBJECTS}), ""),
    "lists": ("a.json", json.dumps({"image": [name for name, _ in ROWS], "label": [label for _, label in ROWS]}), ""),
    "labels of names": ("a.json", json.dumps(dict(ROWS)), ""),
    "lines of json": ("a.json", "\n".join(map(json.dumps, OBJECTS)), ""),
    "lines": ("a.txt", LINES.replace(",", " "), ""),
}  # fmt: skip


@pytest.mark.parametrize("what", WRITTEN)
def test_lists_are_read_however_they_are_written(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, content, said = WRITTEN[what]
    (tmp_path / "im").mkdir()
    for name, _ in ROWS:
        (tmp_path / name).touch()
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    items = read_list(file, (tmp_path / file).read_bytes(), "image", Place(str(tmp_path / file)))
    assert [(item.name, item.columns["label"]) for item in items] == ROWS
    assert (said in caplog.text) if said else not caplog.text


def test_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,label\nx/0.png,1\n")
    with pytest.raises(
        FileNotFoundError, match=r"none of the paths of a.csv is there, such as x/0.png: they must lie below"
    ):
        read_list("a.csv", (tmp_path / "a.csv").read_bytes(), "image", Place(str(tmp_path / "a.csv")))


def test_annotations_of_coco_are_objects(tmp_path: Path) -> None:
    """In a folder annotations beside the images, as COCO has it."""
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for number in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / f"val2017/{number}.png")
    path = tmp_path / "annotations/instances.json"
    path.write_text(json.dumps(COCO))
    samples = list(load_samples(str(path), "train", size=9))
    assert [len(sample["boxes"]) for sample in samples] == [0, 2, 0, 0]
    assert samples[1]["categories"].tolist() == [1, 0]  # dog, cat
    items = read_list("instances.json", path.read_bytes(), "image", Place(str(path)))
    assert items[1].columns["objects"]["bbox"] == [[1, 2, 3, 4], [0, 0, 2, 2]]
