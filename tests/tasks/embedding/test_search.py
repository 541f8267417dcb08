"""Search by blocks finds what a search over everything at once finds."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_geossl.tasks.embedding import search
from hf_geossl.tasks.embedding.search import nearest, read_blocks, read_rows, similar_pairs

CPU = torch.device("cpu")
DRAW = np.random.default_rng(0)


def test_nearest_over_blocks_is_the_order_of_all_cosines():
    rows, queries = DRAW.normal(size=(101, 7)).astype(np.float32), DRAW.normal(size=(5, 7)).astype(np.float32)
    scores, numbers = nearest(iter(np.array_split(rows, 4)), torch.from_numpy(queries), 9, CPU)
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (queries, rows)]
    cosines = unit[0] @ unit[1].T
    assert np.array_equal(numbers, np.argsort(-cosines, axis=1)[:, :9])
    assert np.allclose(scores, -np.sort(-cosines, axis=1)[:, :9], atol=1e-6)
    assert nearest(iter([rows[:3]]), torch.from_numpy(queries), 9, CPU)[1].shape == (5, 3)


def test_pairs_are_those_of_the_formula(monkeypatch):
    monkeypatch.setattr(search, "_ROWS", 16)
    thumbnails = DRAW.integers(0, 256, (50, 432)).astype(np.uint8)
    for copy, original in ((3, 40), (17, 18), (49, 0), (20, 18)):
        noise = DRAW.integers(-25, 26, 432)
        thumbnails[copy] = np.clip(thumbnails[original].astype(int) + noise, 0, 255)
    images = thumbnails.reshape(50, 3, 144).astype(float)
    expected = []
    for one in range(50):
        for other in range(one + 1, 50):
            squared = ((images[one] - images[other]) ** 2).mean()
            variance = (images[one].var(axis=1).mean() + images[other].var(axis=1).mean()) / 2
            if max(0, squared - 9) / (variance + 1) <= 0.1:
                expected.append((other, one))
    assert {(0, 49), (3, 40), (17, 18), (18, 20), (17, 20)} == {(one, other) for other, one in expected}
    found = similar_pairs(thumbnails, 0.1, CPU)
    assert [(int(other), int(one)) for one, other in found] == sorted(expected)


def test_flat_images_are_alike_whatever_the_noise_and_others_are_not():
    flat = np.full((3, 432), 100, np.uint8)
    flat[1, ::2] += 3
    flat[2] += 20
    assert similar_pairs(flat, 0.05, CPU).tolist() == [[0, 1]]


def test_rows_are_read_by_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_ROWS", 3)
    files = []
    for part in range(3):
        numbers = np.arange(5 * part, 5 * part + 5, dtype=np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(numbers, 2)), 2)
        files.append(tmp_path / f"{part}.parquet")
        pq.write_table(pa.table({"key": [str(n) for n in numbers], "pooled": lists}), files[-1])
    rows = dict(read_rows(files, ["key", "pooled"], {13, 0, 7}))
    assert {number: (row["key"], row["pooled"].tolist()) for number, row in rows.items()} == {
        0: ("0.0", [0, 0]), 7: ("7.0", [7, 7]), 13: ("13.0", [13, 13])
    }  # fmt: skip
    assert sum(len(block["key"]) for block in read_blocks(files, ["key"])) == 15
