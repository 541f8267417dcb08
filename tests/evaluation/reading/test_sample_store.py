"""Decoded samples are kept: each is read once, by several processes, and comes out as it was read, from memory and from a file."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.evaluation.reading.sample_store import SampleStore
from hf_geossl.evaluation.samples import Samples, load_samples


class Counting:
    """Rows of a dataset that count how often each is read."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.reads = rows, Counter[int]()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        return self.rows[index]


def assert_same(first: Any, second: Any) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, list):
            assert len(value) == len(second[name])
            for one, other in zip(value, second[name], strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
        else:
            value, other = torch.as_tensor(value), torch.as_tensor(second[name])
            assert value.dtype == other.dtype, name
            assert torch.equal(value, other), name


def assert_all_passes_are_the_same(samples: Samples, plain: Samples) -> None:
    for size in (3, 64):
        for one, other in zip(samples.batches(size), plain.batches(size), strict=True):
            assert_same(one, other)
    for one, other in zip(samples, plain, strict=True):
        assert_same(one, other)
    endless, others = samples.endless_batches(4, seed=5), plain.endless_batches(4, seed=5)
    for _ in range(5):
        assert_same(next(endless), next(others))
    part, rest = samples.subset(0.5, seed=1), plain.subset(0.5, seed=1)
    for one, other in zip(part.batches(3), rest.batches(3), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("memory", [2**30, 10_000, 0], ids=["in memory", "partly", "in files"])
def test_every_pass_over_stored_scenes_is_that_of_rendered_ones_and_each_is_rendered_once(
    memory: int, caplog: pytest.LogCaptureFixture
) -> None:
    plain, samples = load_samples(size=16, limit=9), load_samples(size=16, limit=9)
    samples.rows = rows = Counting(samples.rows)  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING, "hf_geossl"):
        assert_all_passes_are_the_same(samples.store_in(SampleStore(memory)), plain)
    assert rows.reads == Counter(range(9))
    lines = [line for line in caplog.messages if "temporary file" in line]
    assert len(lines) == (memory < 2**30)


def test_columns_that_are_needed_come_without_the_others() -> None:
    plain, samples = load_samples(size=16, limit=7), load_samples(size=16, limit=7).store_in(SampleStore())
    for batch, all_of_it in zip(samples.batches(3, columns=("image", "depth", "label")), plain.batches(3), strict=True):
        assert_same(batch, {name: all_of_it[name] for name in ("image", "depth", "label")})
    for batch, all_of_it in zip(samples.batches(3, columns=("image", "boxes")), plain.batches(3), strict=True):
        assert_same(batch, all_of_it)  # of several shapes: whole samples


def test_samples_of_one_fingerprint_share_what_was_rendered_and_others_do_not() -> None:
    store = SampleStore()
    first, same, larger = (load_samples(size=size, limit=3).store_in(store) for size in (16, 16, 24))
    same.rows = rows = Counting(same.rows)  # type: ignore[assignment]
    list(first.batches(2))
    assert [batch["image"].shape[-1] for batch in larger.batches(3)] == [24]
    list(same.batches(2))
    assert not rows.reads


def photographs(folder: Path) -> Path:
    for split, count in (("train", 12), ("test", 3)):
        for place in range(count):
            file = folder / split / f"class{place % 2}" / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + place, 18), (place * 10, 0, 0)).save(file)
            if split == "train" and place == 4:
                file.write_bytes(file.read_bytes()[:40])
    return folder


def test_a_broken_image_is_left_out_replaced_and_reported_as_without_a_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(photographs(tmp_path))
    plain = load_samples(folder, "train", size=16)
    stored = load_samples(folder, "train", size=16).store_in(SampleStore())
    with caplog.at_level(logging.WARNING, "hf_geossl"):
        assert_all_passes_are_the_same(stored, plain)
    lines = [line for line in caplog.messages if "broken" in line]
    assert len(lines) == 4  # once each, of all and of the part
    assert lines[0] == lines[1]
    together = [batch["index"].tolist() for batch in stored.batches(5, columns=("image", "index"))]
    assert [len(part) for part in together] == [batch["index"].numel() for batch in plain.batches(5)]


def test_several_processes_read_the_same_samples_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_geossl.evaluation.reading.sample_store.IMAGES_A_WORKER", 2)
    samples = load_samples(size=16, limit=9)
    read, processes = samples.read, []

    def watch(index: int, row: Any) -> Any:
        return {**read(index, row), "process": os.getpid()}

    samples.read = watch
    for batch in samples.store_in(SampleStore(num_workers=2)).batches(9):
        processes = batch.pop("process").tolist()
        assert_same(batch, next(iter(load_samples(size=16, limit=9).batches(9))))
    assert len({*processes}) == 2
    assert os.getpid() not in processes


def test_an_error_in_a_process_is_the_error_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_geossl.evaluation.reading.sample_store.IMAGES_A_WORKER", 1)
    samples = load_samples(size=16, limit=4)

    def fail(index: int, row: Any) -> Any:
        raise ValueError(f"the map of image {index} is turned")

    samples.read = fail
    with pytest.raises(ValueError, match="^the map of image 0 is turned$"):
        list(samples.store_in(SampleStore(num_workers=2)).batches(2))


def test_what_fits_nowhere_is_read_in_each_pass(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    plain, samples = load_samples(size=16, limit=5), load_samples(size=16, limit=5).store_in(SampleStore(1000))
    with caplog.at_level(logging.WARNING, "hf_geossl"):
        assert_all_passes_are_the_same(samples, plain)
    [line] = caplog.messages
    assert "more than is kept of a split (34 GB, half of the free disk)" in line


def test_no_file_is_left_in_the_folder_of_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    samples = load_samples(size=16, limit=5).store_in(SampleStore(0))
    images = np.concatenate([batch["image"] for batch in samples.batches(2)])
    assert images.shape == (5, 3, 16, 16)
    assert list(tmp_path.iterdir()) == []  # not even while it is in use: nothing remains of a process that is killed
