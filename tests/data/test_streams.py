"""Streams and batches: the same images in the same order, whatever happened in between."""

import io
import itertools
import json
import logging
import os
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node
from PIL import Image

from hf_geossl.data import retries, scene_image
from hf_geossl.data.broken import BrokenStreamError
from hf_geossl.data.images import BrokenImageError, decode_image
from hf_geossl.data.streams import ImageStream, load_stream

ROWS = 37


# ------------------------------------------------------------------------------------------------------------- data


def encoded(number: int, side: int = 6) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_folder(root: Path, rows: int = ROWS) -> Path:
    for number in range(rows):
        place = root / f"class_{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.png").write_bytes(encoded(number))
    return root


def write_parquet(root: Path, rows: int = ROWS, group: int = 5, raw: bool = False) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for part, numbers in enumerate(np.array_split(np.arange(rows), 2)):
        values = [encoded(n) if raw else {"bytes": encoded(n), "path": f"{n:03d}.png"} for n in numbers]
        table = pa.table({"label": [int(n) for n in numbers], "image": values})
        pq.write_table(table, root / f"train-{part:05d}-of-00002.parquet", row_group_size=group)
    return root


def write_tars(root: Path, rows: int = ROWS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for part, numbers in enumerate(np.array_split(np.arange(rows), 3)):
        with tarfile.open(root / f"shard-{part}.tar", "w") as archive:
            for number in numbers:
                for ending, content in (("json", b"{ not json"), ("png", encoded(number)), ("seg.png", encoded(999))):
                    member = tarfile.TarInfo(f"{number:03d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return root


class Items:
    """A map-style dataset of arrays."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict:
        return {"image": np.asarray(decode_image(encoded(index))), "label": index}


def iterable_rows(numbers: list[int]):
    for number in numbers:
        yield {"image": {"bytes": encoded(number), "path": None}, "label": number}


KINDS = ["folder", "parquet", "raw_parquet", "webdataset", "indexed", "dataset", "iterable"]


def make_stream(kind: str, root: Path, **options) -> ImageStream:
    root = root / kind
    options = {"shuffle_block": 4, "seed": 3, **options}
    if kind == "folder":
        return load_stream(str(root if root.exists() else write_folder(root)), **options)
    if kind in ("parquet", "raw_parquet"):
        raw = kind == "raw_parquet"
        return load_stream(str(root if root.exists() else write_parquet(root, raw=raw)), **options)
    if kind == "webdataset":
        return load_stream(str(root if root.exists() else write_tars(root)), **options)
    if kind == "indexed":
        return ImageStream.from_dataset(Items(), **options)
    if kind == "dataset":
        table = {"image": [encoded(n) for n in range(ROWS)], "label": list(range(ROWS))}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        return ImageStream.from_dataset(datasets.Dataset.from_dict(table, features=features), **options)
    dataset = datasets.IterableDataset.from_generator(iterable_rows, gen_kwargs={"numbers": list(range(ROWS))})
    return ImageStream.from_dataset(dataset, **options)


def seen(sample: dict) -> tuple:
    return sample["key"], sample["seed"], np.asarray(sample["image"]).tobytes()


def first(stream: ImageStream, count: int) -> list[tuple]:
    return [seen(sample) for sample in itertools.islice(stream, count)]


def all_pixels() -> list[bytes]:
    return sorted(np.asarray(decode_image(encoded(n))).tobytes() for n in range(ROWS))


# ----------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("kind", KINDS)
def test_one_epoch_holds_every_image_once_and_is_the_start_of_the_endless_stream(kind, tmp_path):
    stream = make_stream(kind, tmp_path)
    epoch = [seen(sample) for sample in stream.one_epoch()]
    assert sorted(pixels for _, _, pixels in epoch) == all_pixels()
    assert len({seed for _, seed, _ in epoch}) == ROWS
    assert [seen(sample) for sample in stream.one_epoch(1)] == first(stream, 2 * ROWS)[ROWS:]
    assert epoch == first(stream, ROWS)
    assert [key for key, _, _ in epoch] != sorted(key for key, _, _ in epoch)
    assert not any(os.path.isabs(key) or str(tmp_path) in key for key, _, _ in epoch)


@pytest.mark.parametrize("kind", KINDS)
def test_five_resumes_in_a_row_continue_bit_for_bit(kind, tmp_path):
    undisturbed = first(make_stream(kind, tmp_path), 120)
    got: list[tuple] = []
    state = None
    for count in (1, 7, 12, 30, 41, 29):  # over the epochs' ends at 37 and 74
        stream = make_stream(kind, tmp_path)
        if state is not None:
            stream.load_state_dict(json.loads(state))
            assert json.loads(json.dumps(stream.state_dict())) == json.loads(state)  # before the first sample
        got += first(stream, count)
        state = json.dumps(stream.state_dict())
    assert got == undisturbed
    assert len(state) < 1500


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset", "iterable"])
def test_state_after_every_single_sample_continues_with_the_next(kind, tmp_path):
    undisturbed = first(make_stream(kind, tmp_path), 45)
    running = make_stream(kind, tmp_path)
    samples = iter(running)
    for count in range(40):
        resumed = make_stream(kind, tmp_path)
        resumed.load_state_dict(running.state_dict())
        assert first(resumed, 3) == undisturbed[count : count + 3], count
        next(samples)


def test_order_is_the_one_that_a_slow_literal_computation_gives(tmp_path):
    stream = make_stream("parquet", tmp_path, shuffle_block=3)
    files = sorted((tmp_path / "parquet").iterdir())
    rows = [[f"{file.name}:{row}" for row in range(pq.read_metadata(file).num_rows)] for file in files]
    units = [part[start : start + 5] for part in rows for start in range(0, len(part), 5)]  # row groups of 5

    def permuted(entropy: list[int], items: list) -> list:
        numbers = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(len(items)).tolist()
        return [item for _, item in sorted(zip(numbers, items, strict=True), key=lambda pair: pair[0])]

    expected = []
    for epoch in range(2):
        for unit in permuted([3, 0, epoch], list(range(len(units)))):
            for block, start in enumerate(range(0, len(units[unit]), 3)):
                numbers = list(range(start, min(start + 3, len(units[unit]))))
                for row in permuted([3, 1, epoch, unit, block], numbers):
                    words = np.random.SeedSequence([3, 2, epoch, unit, row]).generate_state(1, np.uint64)
                    expected.append((units[unit][row], int(words[0]) >> 1))
    assert [(key, seed) for key, seed, _ in first(stream, 2 * ROWS)] == expected


def test_state_is_right_between_iter_and_the_first_sample(tmp_path):
    stream = make_stream("parquet", tmp_path)
    first(stream, 9)
    state = stream.state_dict()
    beginning = make_stream("parquet", tmp_path).state_dict()
    samples = iter(stream)  # from the beginning again, since nothing was loaded
    assert stream.state_dict() == beginning
    next(samples)
    stream.load_state_dict(state)
    iter(stream)
    assert stream.state_dict() == state
    assert stream.state_dict() is not stream.state_dict()


def test_scenes_resume_and_are_named_by_their_index():
    def scenes() -> ImageStream:
        return load_stream("scenes", "validation", config_name="16", shuffle_block=5)

    undisturbed = first(scenes(), 30)
    stream = scenes()
    begun = first(stream, 12)
    resumed = scenes()
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert begun + first(resumed, 18) == undisturbed
    name, split, index = undisturbed[0][0].split("/")
    assert (name, split) == ("scenes", "validation")
    assert np.asarray(scene_image("validation", int(index), "16")).tobytes() == undisturbed[0][2]
    with pytest.raises(ValueError, match="split must be one of"):
        load_stream("scenes", "nowhere")


def test_two_iterators_of_one_stream_do_not_disturb_each_other(tmp_path):
    stream = make_stream("iterable", tmp_path)
    undisturbed = first(stream, 50)
    one, two = iter(stream), iter(stream)
    pairs = [(seen(next(one)), seen(next(two))) for _ in range(50)]
    assert pairs == [(sample, sample) for sample in undisturbed]


def test_logical_streams_share_an_epoch_without_overlap(tmp_path):
    stream = make_stream("folder", tmp_path)
    parts = []
    for v in range(5):
        part = stream.shard(5, v)
        for sample in part:
            if part.epoch > 0:
                break
            parts.append(np.asarray(sample["image"]).tobytes())
    assert sorted(parts) == all_pixels()


def test_a_local_folder_starts_without_reading_its_files(tmp_path):
    stream = load_stream(str(write_folder(tmp_path / "photos", 30)), shuffle_block=1000)
    opened = []
    stream.decode = lambda path, most: opened.append(path)
    next(iter(stream))
    assert len(opened) == 1


# ------------------------------------------------------------------------------------------------------------ broken


def broken_files() -> dict[str, bytes]:
    photo = encoded(1, side=64)
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    huge = bytearray(photo)
    huge[16:24] = (25_000).to_bytes(4, "big") + (20_000).to_bytes(4, "big")  # 500 megapixels, says the header
    floats = io.BytesIO()
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(floats, "TIFF")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    return {
        "truncated.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "header_only.jpg": jpeg.getvalue()[:20],
        "text.jpg": b"this is no image",
        "empty.jpg": b"",
        "html.png": b"<html><body>404 not found</body></html>",
        "truncated.png": photo[:-200],
        "flipped.png": photo[:100] + bytes([photo[100] ^ 255]) + photo[101:],
        "huge.png": bytes(huge),
        "float.tif": floats.getvalue(),
        "script.png": postscript,
    }


def test_ten_kinds_of_broken_files_are_skipped_counted_and_logged(tmp_path, caplog):
    good = [sample["key"] for sample in load_stream(str(write_folder(tmp_path / "photos"))).one_epoch()]
    for name, content in broken_files().items():
        (tmp_path / "photos" / name).write_bytes(content)
    stream = load_stream(str(tmp_path / "photos"), max_broken_share=0.5)
    with caplog.at_level(logging.WARNING):
        keys = [sample["key"] for sample in itertools.islice(stream, ROWS)]
    assert sorted(keys) == sorted(good)
    assert stream.skipped_images == 10
    for name in broken_files():
        assert name in caplog.text
    assert str(tmp_path) not in "".join(record.getMessage() for record in caplog.records)


def test_broken_images_leave_the_seeds_and_the_resume_of_the_others_alone(tmp_path):
    write_folder(tmp_path / "photos")
    clean = {key: seed for key, seed, _ in first(load_stream(str(tmp_path / "photos")), ROWS)}
    (tmp_path / "photos/class_0/003.png").write_bytes(b"")
    (tmp_path / "photos/class_1/010.png").write_bytes(b"broken")
    whole = load_stream(str(tmp_path / "photos"))
    undisturbed = first(whole, 80)
    assert all(clean[key] == seed for key, seed, _ in undisturbed[: ROWS - 2])
    for count in (5, 20, 34, 35, 36):
        stream = load_stream(str(tmp_path / "photos"))
        begun = first(stream, count)
        resumed = load_stream(str(tmp_path / "photos"))
        resumed.load_state_dict(stream.state_dict())
        assert begun + first(resumed, 80 - count) == undisturbed
        assert resumed.skipped_images == whole.skipped_images >= 4


@pytest.mark.parametrize("rows", [3, 30])
def test_all_broken_data_stop_with_the_share_and_the_reasons(rows, tmp_path):
    for number in range(rows):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(BrokenStreamError, match=r"100%.*max_broken_share=100%.*jpg: not an image of a known format"):
        next(iter(load_stream(str(tmp_path), max_broken_share=1.0)))


def test_data_that_turn_empty_or_broken_after_a_resume_stop(tmp_path):
    write_folder(tmp_path / "photos", 6)
    stream = load_stream(str(tmp_path / "photos"), max_broken_share=1.0)
    first(stream, 20)
    resumed = load_stream(str(tmp_path / "photos"), max_broken_share=1.0)
    resumed.load_state_dict(stream.state_dict())
    for file in (tmp_path / "photos").rglob("*.png"):
        file.unlink()
    with pytest.raises(BrokenStreamError, match=r"a whole pass gave no image.*the file cannot be read"):
        next(iter(resumed))
    rows = datasets.IterableDataset.from_generator(iterable_rows, gen_kwargs={"numbers": []})
    with pytest.raises(BrokenStreamError, match="the dataset holds no rows"):
        next(iter(ImageStream.from_dataset(rows)))


def test_a_share_above_the_limit_stops_and_one_below_does_not(tmp_path):
    write_folder(tmp_path / "photos", 90)
    for number in range(10):
        (tmp_path / f"photos/{number}.jpg").write_bytes(b"")
    assert len(list(load_stream(str(tmp_path / "photos"), max_broken_share=0.1).one_epoch())) == 90
    with pytest.raises(BrokenStreamError, match=r"10 of the 100 rows .* are broken .10%, allowed max_broken_share=9%"):
        list(load_stream(str(tmp_path / "photos"), max_broken_share=0.09).one_epoch())


def test_without_skipping_the_first_broken_image_is_named(tmp_path):
    write_folder(tmp_path / "photos", 3)
    (tmp_path / "photos/bad.jpg").write_bytes(b"")
    with pytest.raises(BrokenImageError, match=r"bad\.jpg: the file is empty"):
        list(load_stream(str(tmp_path / "photos"), skip_broken=False).one_epoch())


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


# ------------------------------------------------------------------------------------------------------------ errors


def test_state_of_another_stream_is_refused_with_what_changed(tmp_path):
    stream = make_stream("folder", tmp_path)
    next(iter(stream))
    state = stream.state_dict()
    for options, name in (({"seed": 4}, "seed was 3 and is 4"), ({"shuffle_block": 5}, "shuffle_block was 4 and is 5")):
        with pytest.raises(ValueError, match=name):
            make_stream("folder", tmp_path, **options).load_state_dict(state)
    with pytest.raises(ValueError, match="kind was 'folder' and is 'parquet'"):
        make_stream("parquet", tmp_path).load_state_dict(state)
    with pytest.raises(ValueError, match="num_streams was 1 and is 2"):
        make_stream("folder", tmp_path).shard(2, 0).load_state_dict(state)
    (tmp_path / "folder/class_0/000.png").write_bytes(encoded(0, side=9))
    with pytest.raises(ValueError, match="digest was"):
        make_stream("folder", tmp_path).load_state_dict(state)
    with pytest.raises(ValueError, match="lacks fingerprint"):
        stream.load_state_dict({"epoch": 1})


def test_missing_things_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    write_parquet(tmp_path / "parquet")
    write_tars(tmp_path / "tars")
    for path, options, error, message in (
        ("empty", {}, FileNotFoundError, "holds no files"),
        ("nowhere/at/all", {}, FileNotFoundError, "does not exist"),
        ("*.jpg", {}, FileNotFoundError, "the glob .* matches no file"),
        ("parquet", {"image_column": "photo"}, ValueError, "no column 'photo'; its columns are label, image"),
        ("parquet", {"image_column": "label"}, ValueError, "holds int64, not images"),
        ("parquet", {"split": "validation"}, ValueError, "no split 'validation'; its splits are train"),
        ("tars", {"image_column": "left"}, ValueError, "no column 'left'; its columns are json, png, seg.png"),
        ("parquet", {"shuffle_block": 0}, ValueError, "shuffle_block must be"),
        ("parquet", {"seed": -1}, ValueError, "seed must lie in"),
        (
            "parquet",
            {"config_name": "en"},
            ValueError,
            r"config_name \(--dataset_config\) means nothing for local files, got 'en'",
        ),
        (".", {}, ValueError, "mixes files of several kinds"),
    ):
        with pytest.raises(error, match=message):
            load_stream(str(tmp_path / path), **options)
    dataset = datasets.Dataset.from_dict({"picture": [encoded(1)]})
    with pytest.raises(ValueError, match="no column 'image'; its columns are picture"):
        ImageStream.from_dataset(dataset)
    with pytest.raises(ValueError, match="no column 'photo'; its columns are image, label"):
        next(iter(make_stream("iterable", tmp_path, image_column="photo")))
    with pytest.raises(TypeError, match=r"pass one, as dataset\['train'\]"):
        ImageStream.from_dataset(datasets.DatasetDict(train=dataset))


def test_datasets_that_cannot_resume_exactly_are_refused():
    dataset = datasets.Dataset.from_dict({"image": [encoded(n) for n in range(4)]}).to_iterable_dataset(num_shards=2)
    with pytest.raises(ValueError, match="shuffled through a buffer"):
        ImageStream.from_dataset(dataset.shuffle(buffer_size=10))
    split = split_dataset_by_node(dataset, rank=0, world_size=2)
    with pytest.raises(ValueError, match="split_dataset_by_node"):
        ImageStream.from_dataset(split)


def test_splits_are_folders_called_after_them(tmp_path):
    write_folder(tmp_path / "photos/train", 5)
    write_folder(tmp_path / "photos/val", 3)
    assert len(list(load_stream(str(tmp_path / "photos")).one_epoch())) == 5
    assert len(list(load_stream(str(tmp_path / "photos"), "validation").one_epoch())) == 3
    assert len(list(load_stream(str(tmp_path / "photos/**/*.png"), "validation").one_epoch())) == 3
    with pytest.raises(ValueError, match="its splits are train, validation"):
        load_stream(str(tmp_path / "photos"), "test")


def test_an_ending_chooses_the_image_of_a_webdataset_sample(tmp_path):
    path = str(write_tars(tmp_path / "tars"))
    masks = {np.asarray(sample["image"]).tobytes() for sample in load_stream(path, image_column="seg").one_epoch()}
    assert masks == {np.asarray(decode_image(encoded(999))).tobytes()}


# ----------------------------------------------------------------------------------------------------------- retries


FAILURES: list[int] = []
ANY = -1


def flaky_rows(spans: list[tuple[int, int]]):
    for number in itertools.chain.from_iterable(range(*span) for span in spans):
        if FAILURES and FAILURES[0] in (number, ANY):
            FAILURES.pop(0)
            raise ConnectionResetError("the server went away")
        yield {"image": {"bytes": encoded(number), "path": None}}


def flaky_stream() -> ImageStream:
    rows = datasets.IterableDataset.from_generator(flaky_rows, gen_kwargs={"spans": [(0, ROWS)]})
    return ImageStream.from_dataset(rows, shuffle_block=10)


def test_a_lost_connection_is_retried_at_the_exact_row_with_growing_pauses(monkeypatch, caplog):
    undisturbed = first(flaky_stream(), 2 * ROWS)
    pauses: list[float] = []
    monkeypatch.setattr(retries, "sleep", pauses.append)
    FAILURES[:] = [7, 7, 7, 15, 15, 20]
    with caplog.at_level(logging.WARNING):
        assert first(flaky_stream(), 2 * ROWS) == undisturbed
    assert pauses == [1.0, 2.0, 4.0, 1.0, 2.0, 1.0]
    assert "ConnectionResetError: the server went away" in caplog.text


def test_a_connection_lost_for_good_ends_in_one_clear_error(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(retries, "sleep", pauses.append)
    FAILURES[:] = [ANY] * 100
    with pytest.raises(ConnectionError, match="failed 7 times in a row, the last time with ConnectionResetError"):
        first(flaky_stream(), 1)
    FAILURES.clear()
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def test_errors_of_the_program_are_not_retried(monkeypatch):
    monkeypatch.setattr(retries, "sleep", lambda pause: pytest.fail("waited"))
    for error in (ValueError("wrong"), FileNotFoundError("gone"), PermissionError("no")):
        assert not retries.is_transient(error)
        with pytest.raises(type(error)):
            retries.retry("reading", lambda error=error: (_ for _ in ()).throw(error))
