"""Streams of data with faults: what is damaged is skipped, counted and named, and nothing else is lost."""

import io
import itertools
import json
import logging
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.broken import BrokenStreamError
from hf_geossl.data.streams import ImageStream, load_stream
from tests.data.test_streams import encoded, first, write_folder


def write_tar(path: Path, rows: int) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in range(rows):
            member = tarfile.TarInfo(f"{number:03d}.png")
            member.size = len(encoded(number))
            archive.addfile(member, io.BytesIO(encoded(number)))
    return path


def write_one_parquet(path: Path, rows: int, group: int | None = None) -> Path:
    values = [{"bytes": encoded(number), "path": None} for number in range(rows)]
    pq.write_table(pa.table({"image": values}), path, row_group_size=group or rows)
    return path


# ------------------------------------------------------------------------------------------------------ whole passes


@pytest.mark.parametrize("kind", ["parquet", "tar", "folder"])
def test_a_source_of_one_unit_resumes_after_every_sample_of_three_passes(kind, tmp_path):
    if kind == "folder":
        path, rows = write_folder(tmp_path / "photos", 1), 1
    else:
        rows = 8
        path = (write_one_parquet if kind == "parquet" else write_tar)(tmp_path / f"one.{kind}", rows)
    undisturbed = first(load_stream(str(path), shuffle_block=3), 3 * rows + 2)
    running = load_stream(str(path), shuffle_block=3)
    assert running.source.units == 1
    samples = iter(running)
    for count in range(3 * rows + 1):
        resumed = load_stream(str(path), shuffle_block=3)
        resumed.load_state_dict(running.state_dict())
        assert first(resumed, 2) == undisturbed[count : count + 2][:2], count
        next(samples)


@pytest.mark.parametrize("num_streams", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_an_unreadable_unit_among_good_ones_never_counts_as_a_whole_pass(seed, num_streams, tmp_path):
    write_tar(tmp_path / "0.tar", 40)
    (tmp_path / "1.tar").write_bytes(b"this is no archive" * 100)
    stream = load_stream(str(tmp_path), seed=seed).shard(num_streams, num_streams - 1)
    assert len(first(stream, 400)) == 400
    assert 0 < stream.skipped_images < 40


def reopened(root: Path, num_streams: int, state: dict | None = None) -> ImageStream:
    stream = load_stream(str(root), max_broken_share=1.0, shuffle_block=2).shard(num_streams, num_streams - 1)
    if state is not None:
        stream.load_state_dict(state)
    return stream


@pytest.mark.parametrize("num_streams", [1, 2, 5])
@pytest.mark.parametrize("taken", [0, 3, 7])
def test_data_that_give_no_image_at_all_stop_from_any_position(taken, num_streams, tmp_path):
    write_folder(tmp_path / "photos", 7)
    running = reopened(tmp_path / "photos", num_streams)
    first(running, taken)
    for file in (tmp_path / "photos").rglob("*.png"):
        file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(BrokenStreamError, match="a whole pass gave no image"):
        next(iter(reopened(tmp_path / "photos", num_streams, running.state_dict())))


def test_a_few_broken_samples_met_first_are_not_yet_a_share(tmp_path):
    write_folder(tmp_path / "photos", 30)
    (tmp_path / "photos/bad.png").write_bytes(b"x")
    for v in range(31):  # one of the streams meets the broken image first
        assert len(list(itertools.islice(load_stream(str(tmp_path / "photos")).shard(31, v), 3))) == 3


# ---------------------------------------------------------------------------------------------------- damaged archives


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


def test_every_row_of_an_unreadable_row_group_counts_as_broken(tmp_path):
    file = write_one_parquet(tmp_path / "one.parquet", 40, group=10)
    at = pq.read_metadata(file).row_group(1).column(0).data_page_offset
    content = bytearray(file.read_bytes())
    content[at : at + 400] = bytes(400)
    file.write_bytes(content)
    stream = load_stream(str(file), max_broken_share=0.3)
    kept = [sample["key"] for sample in itertools.islice(stream, 30)]
    assert sorted(kept) == sorted(f"one.parquet:{row}" for row in [*range(10), *range(20, 40)])
    next(iter(stream.one_epoch(1)))
    with pytest.raises(BrokenStreamError, match=r"10 of the 40 rows read from one\.parquet are broken \(25%"):
        list(load_stream(str(file), max_broken_share=0.2).one_epoch())


# --------------------------------------------------------------------------------------------- links, pipes, folders


def test_a_link_that_leads_nowhere_is_a_broken_image(tmp_path, caplog):
    write_folder(tmp_path / "photos", 20)
    (tmp_path / "photos/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    stream = load_stream(str(tmp_path / "photos"))
    with caplog.at_level(logging.WARNING):
        assert len(list(stream.one_epoch())) == 20
    assert "skipped gone.jpg: the file cannot be read (No such file or directory)" in caplog.text


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
    child = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, timeout=60, check=False
    )
    image, tar, parquet = child.stdout.splitlines()
    assert "photo.jpg: the file cannot be read (it is no regular file)" in image
    assert "none of the tars of photos_tar can be read: photos.tar (it is no regular file)" in tar
    assert "photos.parquet in photos_parquet is no readable parquet file" in parquet


def test_files_that_are_left_out_are_counted_in_a_warning(tmp_path, caplog):
    write_folder(tmp_path / "classes", 9)
    (tmp_path / "classes/class_0").rename(tmp_path / "classes/train")
    with caplog.at_level(logging.WARNING):
        assert len(list(load_stream(str(tmp_path / "classes")).one_epoch())) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "6 files in classes lie in no folder of a split (train) and are left out; if such a folder is none, rename it"
    ]
    caplog.clear()
    write_folder(tmp_path / "phone", 1)
    for number in range(3):
        (tmp_path / f"phone/{number}.heic").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        load_stream(str(tmp_path / "phone"))
    assert [record.getMessage() for record in caplog.records] == [
        "3 files of other kinds in phone (.heic) are left out"
    ]


def test_a_folder_that_cannot_be_read_is_warned_of(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path / "photos", 9)
    scan = os.scandir

    def refuse(path):  # permissions do not bind root, who may run this test
        if str(path).endswith("class_1"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        assert load_stream(str(tmp_path / "photos")).source.identity["files"] == 6
    assert "the folder class_1 in photos cannot be read and is left out (Permission denied)" in caplog.text


@pytest.mark.parametrize("name", ["flight [2023]", "why?", "all*"])
def test_existing_paths_with_the_marks_of_a_glob_open(name, tmp_path):
    write_folder(tmp_path / name, 4)
    assert len(list(load_stream(str(tmp_path / name)).one_epoch())) == 4
    write_one_parquet(tmp_path / name / "class_0/[1].parquet", 3)
    assert len(list(load_stream(str(tmp_path / name / "class_0/[1].parquet")).one_epoch())) == 3


def test_a_glob_of_folders_and_an_empty_folder_say_so(tmp_path):
    write_folder(tmp_path / "photos", 4)
    with pytest.raises(FileNotFoundError, match="matches folders only; let it match their files"):
        load_stream(str(tmp_path / "photos/*"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty' holds no files; pass a path with images \(\.jpg"):
        load_stream(str(tmp_path / "empty"))


def test_the_name_of_a_source_tells_nothing_about_the_machine(tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", 2)
    write_one_parquet(tmp_path / "one.parquet", 2)
    write_tar(tmp_path / "one.tar", 2)
    for path, name in (
        ("photos", "photos"), ("photos/", "photos"), ("photos/**/*.png", "*.png"),
        ("one.parquet", "one.parquet"), ("one.tar", "one.tar"),
    ):  # fmt: skip
        assert load_stream(f"{tmp_path}/{path}").source.name == name
    monkeypatch.chdir(tmp_path / "photos")
    assert load_stream(".").source.name == "photos"


# ------------------------------------------------------------------------------------------------------------ advice


def test_advice_for_a_missing_column_fits_the_caller(tmp_path):
    table = datasets.Dataset.from_dict({"picture": [encoded(1)]})
    opened = r"by ImageStream\.from_dataset\(dataset, image_column=\.\.\.\), or rename it by dataset\.rename_column\(\.\.\., 'image'\)"
    for dataset in (table, table.to_iterable_dataset(), [{"picture": encoded(1)}]):
        with pytest.raises(ValueError, match=opened):
            next(iter(ImageStream.from_dataset(dataset)))
    write_one_parquet(tmp_path / "one.parquet", 2)
    with pytest.raises(ValueError, match=r"as image_column= \(--image_column\)"):
        load_stream(str(tmp_path / "one.parquet"), image_column="picture")


@pytest.mark.parametrize("path", ["my/photos", Path("my/photos"), b"photos"])
def test_a_path_is_no_dataset(path):
    with pytest.raises(TypeError, match="must be an open dataset, got .*photos.*; open it by load_stream"):
        ImageStream.from_dataset(path)


def test_splits_of_datasets_are_names_and_none_is_refused(tmp_path):
    write_folder(tmp_path / "photos/validation", 3)
    stream = load_stream(str(tmp_path / "photos"), datasets.Split.VALIDATION)
    assert json.loads(json.dumps(stream.state_dict()))["fingerprint"]["split"] == "validation"
    with pytest.raises(ValueError, match="split must be the name of one split, such as 'train', got None"):
        load_stream(str(tmp_path / "photos"), None)


def test_what_is_no_state_is_refused(tmp_path):
    write_folder(tmp_path / "photos", 3)
    stream = load_stream(str(tmp_path / "photos"))
    with pytest.raises(ValueError, match=r"state must be what state_dict\(\) returned, got NoneType"):
        stream.load_state_dict(None)
    for state in (None, [None]):
        with pytest.raises(ValueError, match="this is no state of StreamBatches"):
            StreamBatches(stream, None, 2).load_state_dict(state)
