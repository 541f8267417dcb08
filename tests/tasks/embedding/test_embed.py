"""`embed`: equal to AutoModel to the bit, whole after any end, readable by everybody."""

import dataclasses
import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.tasks import embed
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.shards import OutputError
from tests.helpers.embedding_models import foreign_folder, own_folder
from tests.helpers.images import encoded, write_folder, write_parquet, write_tars

ARGUMENTS = EmbeddingArguments(features=("class_token", "pooled", "patches"), batch_size=4, shard_rows=8, num_workers=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return own_folder(tmp_path_factory.mktemp("model"))


def changed(**fields):
    return dataclasses.replace(ARGUMENTS, **fields)


def stacked(path, column):
    table = pq.read_table(path)
    return np.stack(table[column].to_pandas().map(lambda row: np.stack(row) if column == "patches" else row))


@pytest.mark.parametrize("make", [own_folder, foreign_folder])
def test_equals_automodel_to_the_bit(tmp_path, make):
    folder, data = make(tmp_path / "model"), write_folder(tmp_path / "data", rows=10)
    out = tmp_path / "out.parquet"
    embed(folder, data, out, changed(num_workers=1))
    processor, net = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    table = pq.read_table(out)
    files = sorted(data.rglob("*.png"))
    assert table["key"].to_pylist() == [file.relative_to(data).as_posix() for file in files]
    # rows 0-3 and 4-7 are batches of the first shard, 8-9 that of the second
    for start in (0, 4, 8):
        pictures = [Image.open(file).convert("RGB") for file in files[start : start + 4]]
        with torch.no_grad():
            expected = net(processor(images=pictures, return_tensors="pt")["pixel_values"])
        tokens = expected.last_hidden_state.numpy()
        place = slice(start, start + len(pictures))
        assert np.array_equal(stacked(out, "class_token")[place], tokens[:, 0])
        assert np.array_equal(stacked(out, "patches")[place], tokens[:, tokens.shape[1] - 16 :])
        if make is own_folder:
            assert np.array_equal(stacked(out, "pooled")[place], expected.pooler_output.numpy())


def test_16_bits_of_five_channels_equal_the_processor_of_the_model(tmp_path):
    numbers = ImageFormat(
        channels=(5, 1),
        names=("e", "a"),
        dtype="uint16",
        value_range=((0, 4000), (10, 2000)),
        mean=(0.4, 0.5),
        std=(0.2, 0.3),
    )
    folder = own_folder(tmp_path / "model", numbers)
    pixels = [np.random.default_rng(n).integers(0, 4096, (40, 36, 5), dtype=np.uint16) for n in range(3)]
    (tmp_path / "data").mkdir()
    for n, each in enumerate(pixels):
        np.save(tmp_path / "data" / f"{n}.npy", each)
    embed(folder, tmp_path / "data", tmp_path / "out.parquet", ARGUMENTS)
    processor, net = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = net(processor(images=pixels, return_tensors="pt")["pixel_values"]).pooler_output
    assert np.array_equal(stacked(tmp_path / "out.parquet", "pooled"), expected.numpy())


@pytest.mark.parametrize("write", [write_folder, write_parquet, write_tars])
def test_any_layout_gives_the_same_features_and_keys_of_its_own(tmp_path, model, write):
    embed(model, write(tmp_path / "data", rows=20), tmp_path / "out", ARGUMENTS)
    rows = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert len(set(rows["key"])) == len(rows) == 20
    first = {
        write_folder: "class_0/000.png",
        write_parquet: "train-00000-of-00002.parquet:0",
        write_tars: "shard-0.tar:000",
    }
    assert rows["key"][0] == first[write]
    embed(model, write_folder(tmp_path / "files", rows=20), tmp_path / "files.parquet", changed(columns=()))
    by_file = pd.read_parquet(tmp_path / "files.parquet").set_index("key")
    number = int(rows["key"][1].rpartition("/")[2][:3]) if write is write_folder else 1
    same = by_file.loc[f"class_{number % 3}/{number:03d}.png", "pooled"]
    assert np.allclose(rows[1]["pooled"], same, atol=1e-5)
    if write is write_folder:
        assert rows.features["label"].names == ["class_0", "class_1", "class_2"]


class _Killed(BaseException):
    """Stands for the end of a process."""


def test_goes_on_after_a_kill_with_every_row_once_and_the_same_bits(tmp_path, model, monkeypatch):
    data = write_folder(tmp_path / "data", rows=30)
    (data / "class_0/003.png").write_bytes(b"no image")
    embed(model, data, tmp_path / "whole.parquet", ARGUMENTS)
    replace, kept = os.replace, list[str]()

    def killed(source, target):
        if Path(target).suffix == ".parquet" and len(kept) == 2:
            raise _Killed
        kept.extend([Path(target).name] if Path(target).suffix == ".parquet" else [])
        replace(source, target)

    for out in (tmp_path / "out.parquet", tmp_path / "folder"):
        kept.clear()
        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(_Killed):
            embed(model, data, out, ARGUMENTS)
        monkeypatch.setattr(os, "replace", replace)
        assert not out.exists()
        parts = out.with_name(f"{out.name}.parts")
        before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
        assert len(before) == 2
        for name, value in (("batch_size", 8), ("dtype", "float16"), ("features", ("pooled",))):
            with pytest.raises(OutputError, match=f"{name} .* --overwrite"):
                embed(model, data, out, changed(**{name: value}))
        lines: list[str] = []
        made = embed(model, data, out, ARGUMENTS, on_progress=lines.append)
        assert "16 images of an earlier run kept" in lines
        assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"))
        assert made.rows == 29
        assert made.facts.broken[0][0] == "class_0/003.png"
        assert not parts.exists()
        if out.is_dir():
            assert {path.name: path.stat().st_mtime_ns for path in made.files if path.name in before} == before
        again = embed(model, data, out, ARGUMENTS)
        assert (again.made, again.rows, again.facts.broken) == (False, 29, made.facts.broken)
    assert (tmp_path / "out.broken.csv").read_text().splitlines()[0] == "key,reason"
    assert "class_0/003.png" in (tmp_path / "out.broken.csv").read_text()
    with pytest.raises(OutputError, match="was made with .*limit null \\(now 3\\)"):
        embed(model, data, tmp_path / "out.parquet", changed(limit=3))


def test_a_changed_model_or_dataset_is_refused(tmp_path, model):
    data = write_folder(tmp_path / "data", rows=4)
    embed(model, data, tmp_path / "out.parquet", ARGUMENTS)
    (data / "class_0/000.png").unlink()
    with pytest.raises(OutputError, match="was made with dataset files 4 \\(now 3\\), dataset digest"):
        embed(model, data, tmp_path / "out.parquet", ARGUMENTS)
    net = AutoModel.from_pretrained(model)
    with torch.no_grad():
        next(net.parameters()).add_(0.1)
    net.save_pretrained(tmp_path / "other")
    AutoImageProcessor.from_pretrained(model).save_pretrained(tmp_path / "other")
    embed(model, data, tmp_path / "out.parquet", changed(overwrite=True))
    with pytest.raises(OutputError, match="was made with model"):
        embed(tmp_path / "other", data, tmp_path / "out.parquet", ARGUMENTS)


def test_tiles_are_rows_with_their_boxes(tmp_path, model):
    big = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (tmp_path / "data").mkdir()
    Image.fromarray(big).save(tmp_path / "data/big.png")
    (tmp_path / "data/small.png").write_bytes(encoded(0))
    made = embed(model, tmp_path / "data", tmp_path / "out.parquet", changed(tile=32, tile_overlap=2))
    table = pq.read_table(tmp_path / "out.parquet")
    boxes = [tuple(box) for box in table["box"].to_pylist()]
    assert boxes[:-1] == [(x, y, x + 32, y + 32) for y in (0, 18) for x in (0, 30, 38)]
    assert boxes[-1] == (0, 0, 7, 6)
    assert (made.rows, made.facts.images) == (7, 2)
    assert set(table["key"].to_pylist()) == {"big.png", "small.png"}
    crops = [Image.fromarray(big[y:v, x:u]) for x, y, u, v in boxes[:4]]
    processor, net = AutoImageProcessor.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    with torch.no_grad():
        expected = net(processor(images=crops, return_tensors="pt")["pixel_values"]).pooler_output
    # tiles of the two images are encoded together, four at a time
    assert np.array_equal(stacked(tmp_path / "out.parquet", "pooled")[:4], expected.numpy())


def test_float16_is_rounded_float32_and_says_what_is_beyond(tmp_path, model):
    data = write_folder(tmp_path / "data", rows=5)
    embed(model, data, tmp_path / "a.parquet", ARGUMENTS)
    embed(model, data, tmp_path / "b.parquet", changed(dtype="float16"))
    exact, stored = (stacked(tmp_path / name, "patches") for name in ("a.parquet", "b.parquet"))
    assert stored.dtype == np.float16
    assert np.array_equal(exact.astype(np.float16), stored)


def test_broken_images_alone_are_an_error(tmp_path, model):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no image could be used: 1 broken, such as a.png"):
        embed(model, tmp_path / "data", tmp_path / "out.parquet", ARGUMENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_one_image_and_an_output_among_the_images(tmp_path, model):
    data = write_folder(tmp_path / "data", rows=1)
    made = embed(model, data / "class_0/000.png", tmp_path / "one.parquet", ARGUMENTS)
    assert made.rows == 1
    with pytest.raises(ValueError, match="lies in the folder of the images"):
        embed(model, data, data / "out.parquet", ARGUMENTS)
