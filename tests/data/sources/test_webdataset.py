"""Tars: endings, damage, and connections that are lost while one is read."""

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from hf_geossl.data import retries
from hf_geossl.data.images import decode_image
from hf_geossl.data.sources.files import find_files
from hf_geossl.data.sources.webdataset import webdataset_rows, webdataset_source
from hf_geossl.data.streams import ImageStream, load_stream
from hf_geossl.evaluation.options import EvaluationData
from hf_geossl.evaluation.truth import Columns
from tests.helpers import forked
from tests.helpers.images import ROWS, encoded, first, write_parquet, write_tar, write_tars


def test_an_ending_chooses_the_image_of_a_webdataset_sample(tmp_path):
    path = str(write_tars(tmp_path / "tars"))
    masks = {np.asarray(sample["image"]).tobytes() for sample in load_stream(path, image_column="seg").one_epoch()}
    assert masks == {np.asarray(decode_image(encoded(999))).tobytes()}


def test_a_truncated_archive_and_a_damaged_row_group_cost_themselves(tmp_path):
    tar = write_tars(tmp_path / "tars") / "shard-1.tar"
    tar.write_bytes(tar.read_bytes()[:6000])
    kept = list(load_stream(str(tmp_path / "tars")).one_epoch())
    assert 25 <= len(kept) < ROWS
    file = write_parquet(tmp_path / "parquet") / "train-00001-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[100:400] = bytes(300)
    file.write_bytes(content)
    kept = list(load_stream(str(tmp_path / "parquet"), max_broken_share=0.2).one_epoch())
    assert len(kept) >= ROWS - 5


@pytest.mark.parametrize("content", [b"this is no archive" * 100, b"", "missing"])
def test_a_damaged_first_tar_costs_itself_only(content, tmp_path, caplog):
    write_tar(tmp_path / "1.tar", 30)
    if content == "missing":
        (tmp_path / "0.tar").symlink_to(tmp_path / "nowhere.tar")
    else:
        (tmp_path / "0.tar").write_bytes(content)
    stream = load_stream(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert len(list(stream.one_epoch())) == 30
    assert "skipped 0.tar:0: the rest of the archive cannot be read (" in caplog.text
    assert "nobody knows how many" in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert str(tmp_path) not in "".join(record.getMessage() for record in caplog.records)


def test_a_truncated_first_tar_is_read_up_to_its_damage(tmp_path):
    (tmp_path / "0.tar").write_bytes(write_tar(tmp_path / "0.tar", 30).read_bytes()[:12_000])
    assert 5 < len(list(load_stream(str(tmp_path)).one_epoch())) < 30


def test_tars_that_are_all_damaged_are_named(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.tar").write_bytes(b"this is no archive" * 100)
    with pytest.raises(ValueError, match=r"none of the tars of .* can be read: 0\.tar \(file could not be opened"):
        load_stream(str(tmp_path))


def test_a_pipe_is_not_waited_for(tmp_path):
    program = """
import sys
from hf_geossl import load_stream
for path in sys.argv[1:]:
    try:
        next(iter(load_stream(path)))
    except Exception as error:
        print(error)
"""
    paths = []
    for name in ("photo.jpg", "photos.tar", "photos.parquet"):
        paths.append(tmp_path / name.replace(".", "_"))
        paths[-1].mkdir()
        os.mkfifo(paths[-1] / name)
    printed = forked.run(program, *map(str, paths), output=tmp_path / "output.txt", timeout=60)
    image, tar, parquet = printed.splitlines()[-3:]  # behind the lines of the log
    assert "photo.jpg: the file cannot be read (it is no regular file)" in image
    assert "none of the tars of photos_tar can be read: photos.tar (it is no regular file)" in tar
    assert "photos.parquet in photos_parquet is no readable parquet file" in parquet


def test_a_connection_lost_in_a_tar_costs_no_sample(tmp_path, monkeypatch, caplog):
    write_tar(tmp_path / "0.tar", 30)
    losses = iter([1000, 0, 1, 2])  # records that are read before a loss; the first opening learns the endings

    @contextmanager
    def flaky(path: str) -> Iterator[tarfile.TarFile]:
        class Connection(io.BytesIO):
            def read(self, size: int = -1) -> bytes:
                if self.tell() > lost_at:
                    raise ConnectionResetError("the server went away")
                return super().read(size)

        opened.append(path)
        lost_at = 10_240 * next(losses, 1000)
        with open(path, "rb") as file, tarfile.open(fileobj=Connection(file.read()), mode="r|*") as archive:
            yield archive

    opened: list[str] = []
    monkeypatch.setattr(retries, "sleep", lambda seconds: None)
    files = find_files(str(tmp_path), "train")
    with caplog.at_level(logging.WARNING):
        got = first(ImageStream(webdataset_source(files, "tars", "image", open_tar=flaky)), 30)
    assert got == first(ImageStream(webdataset_source(files, "tars", "image")), 30)
    assert len(opened) == 5
    assert "attempt 2 of" in caplog.text
    assert "skipped" not in caplog.text


def test_samples_are_runs_of_members_and_metadata_of_macs_is_left_out(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name in ("a/1.jpg", "a/._1.jpg", "a/1.txt", "a/2.left.png", "a/2.png", "b/1.JPG", "readme", ".hidden"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    files = find_files(str(tmp_path), "train")
    source = webdataset_source(files, "tars", "image")
    assert [(row["key"], row["value"]) for row in source.rows] == [
        ("0.tar:a/1", b"a/1.jpg"), ("0.tar:a/2", b"a/2.png"), ("0.tar:b/1", b"b/1.JPG")
    ]  # fmt: skip
    left = webdataset_source(files, "tars", "left")
    assert [row["value"] for row in left.rows] == [None, b"a/2.left.png", None]
    with pytest.raises(ValueError, match="no column 'right'; its columns are jpg, left.png, png, txt"):
        webdataset_source(files, "tars", "right")


def write_members(path, names):
    """Images of a shade each, and of labels the count of the members before."""
    with tarfile.open(path, "w") as archive:
        for number, name in enumerate(names):
            content = {"cls": str(number).encode(), "json": b'{"a": 1}', "txt": b"x"}.get(
                name.rpartition(".")[2], encoded(number)
            )
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


PAIRS = " ".join(f"{n}.jpg {n}.png" for n in range(3))
SIDES = " ".join(f"{n}.left.png {n}.right.png" for n in range(3))
LATE = " ".join(f"{n:02}.png" for n in range(30))


@pytest.mark.parametrize(
    ("names", "keys", "said"),
    [
        (
            "photo.2021.05.png photo.2021.06.png IMG.1.png IMG.2.png b.png",
            "photo.2021.05 photo.2021.06 IMG.1 IMG.2 b",
            "dots in names of images (1.png, 2.png, 2021.05.png, ...) taken as parts of the names",
        ),
        ("v1.0.a.png v1.1.b.png v1.2.c.png", "v1.0.a v1.1.b v1.2.c", "dots in names"),
        (f"{LATE} p.1.png p.2.png", f"{LATE.replace('.png', '')} p.1 p.2", ""),
        (f"{LATE} q.jpg q.png", f"{LATE.replace('.png', '')} q q.png", ""),
        (PAIRS, "0 1 2", "of a sample's images (jpg, png) only the first is read"),
        (SIDES, SIDES.replace(".png", ""), "each of a sample's images (left.png, right.png) taken as one of its own"),
        ("0.png 0.left.png 1.png 1.left.png", "0 1", "images under further endings (left.png) not read"),
        ("0.png 0.left.png", "0", "images under further endings (left.png) not read"),
        ("0.png 0.seg.png 1.png 1.seg.png", "0 1", "maps (seg.png) taken as no images to learn from"),
        ("0.rgb.png 0.depth.png 1.rgb.png 1.depth.png", "0 1", "maps (depth.png) taken as no images to learn from"),
        (
            "0.png 0_mask.png 1.png 1_mask.png",
            "0 1",
            "samples called after the one beside (0_mask, 1_mask) taken as maps",
        ),
        (f"{LATE} p.png p.seg.png", f"{LATE.replace('.png', '')} p", ""),
        ("0.npy 0.png 0.txt 1.npy 1.png", "0 1", "(npy, png) only the first"),
        ("a/x.png b/x.png", "a/x b/x", ""),
    ],
)
def test_names_with_dots_lose_and_merge_no_image(names, keys, said, tmp_path, caplog):
    """In a stream and in labelled rows alike; what is no image to read is said."""
    write_members(tmp_path / "train-1.tar", names.split())
    write_members(tmp_path / "train-2.tar", ["0.png"])
    files = find_files(str(tmp_path), "train")
    with caplog.at_level(logging.WARNING):
        source = webdataset_source(files, "tars", "image")
    rows = [row for row in source.rows if row["key"].startswith("train-1.tar:")]
    assert sorted(row["key"].removeprefix("train-1.tar:") for row in rows) == sorted(keys.split())
    assert all(decode_image(row["value"]) for row in rows)
    assert (said in caplog.text) if said else not caplog.text
    labelled = list(webdataset_rows(files, "tars"))[:-1]
    assert sorted(row["__key__"] for row in labelled) == sorted(keys.split())
    assert [row["image"]["bytes"] for row in labelled] == [row["value"] for row in rows]


def test_labelled_rows_have_the_endings_as_columns(tmp_path, caplog):
    """Labels stay with images whose names have dots; damage costs the rest of its tar, and is said."""
    names = "a.1.cls a.1.png a.2.cls a.2.png b.7.cls b.7.png b.7.json"
    write_members(tmp_path / "train.tar", names.split())
    write_members(tmp_path / "train2.tar", [f"{n}.png" for n in range(60)])
    (tmp_path / "train2.tar").write_bytes((tmp_path / "train2.tar").read_bytes()[:60_000])
    with caplog.at_level(logging.WARNING):
        rows = list(webdataset_rows(find_files(str(tmp_path), "train"), "tars"))
    assert [(row["__key__"], row["label"]) for row in rows[:3]] == [("a.1", 0), ("a.2", 2), ("b.7", 4)]
    assert [row["json"] for row in rows[:3]] == [None, None, {"a": 1}]
    assert 3 < len(rows) < 63
    assert "train2.tar: the rest of the archive cannot be read" in caplog.text
    write_members(tmp_path / "train.tar", ["a.cls", "a.png"])
    (tmp_path / "train.tar").write_bytes(
        (tmp_path / "train.tar").read_bytes().replace(b"0" + bytes(511), b"\xff" + bytes(511))
    )
    with pytest.raises(ValueError, match=r"a\.cls in a tar cannot be read as \.cls"):
        webdataset_rows(find_files(str(tmp_path), "train"), "tars")


def test_maps_and_labels_of_a_sample_go_with_each_of_its_images(tmp_path):
    """Maps by the words of their endings; a class beside several images is that of each."""
    endings = "rgb.png seg.png mask.png depth.png cls", "left.png right.png cls"
    for name, members in zip(("maps", "sides"), endings, strict=True):
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / "train.tar", "w") as archive:
            for number, ending in ((number, ending) for number in range(3) for ending in members.split()):
                content = str(number).encode() if ending == "cls" else f"{number} {ending}".encode()
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    rows = list(webdataset_rows(find_files(str(tmp_path / "maps"), "train"), "maps"))
    assert [row["label"] for row in rows] == [0, 1, 2]
    assert rows[2]["image"]["bytes"] == b"2 rgb.png"
    assert rows[2]["annotation"]["bytes"] == b"2 mask.png"
    assert rows[2]["depth_map"]["bytes"] == b"2 depth.png"
    rows = list(webdataset_rows(find_files(str(tmp_path / "sides"), "train"), "sides"))
    assert [row["label"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert [row["image"]["bytes"] for row in rows[:2]] == [b"0 left.png", b"0 right.png"]


@pytest.mark.parametrize(("ending", "column"), [("cls", "label"), ("txt", "txt"), ("json", "label")])
def test_classes_that_are_texts_are_numbered_by_all_samples(ending, column, tmp_path):
    """Over both splits, without reading an image for it."""
    for split, texts in (("train", ("dog", "cat", "dog\n")), ("test", ("ant", "dog"))):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for number, text in enumerate(texts):
                written = json.dumps({"label": text.strip()}) if ending == "json" else text
                for kind, content in (("png", encoded(number)), (ending, written.encode())):
                    member = tarfile.TarInfo(f"{number}.{kind}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    files = find_files(str(tmp_path), "train")
    texts = [row[column].strip() for row in webdataset_rows(files, "tars", {column})]
    assert texts == ["dog", "cat", "dog"]
    data = EvaluationData(str(tmp_path), size=8, columns=Columns(label=column))
    assert len({sample["label"] for sample in data.train} | {sample["label"] for sample in data.test}) == 3
