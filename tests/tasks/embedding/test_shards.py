"""Shards are whole or not there, and a table is put together only of all of them."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_geossl.tasks.embedding.loader import Shard
from hf_geossl.tasks.embedding.shards import Output, OutputError, ShardFacts, ShardWriter, is_complete

FEATURES = datasets.Features({"key": datasets.Value("string")})


def write(output, unit, number, *, last, keys=("a",)):
    writer = ShardWriter(output.parts, Shard(unit, number), FEATURES)
    writer.add(pa.table({"key": list(keys)}).cast(FEATURES.arrow_schema))
    writer.facts = ShardFacts(images=len(keys), last=last)
    writer.finish()


def test_a_table_is_finished_only_when_every_shard_is_there(tmp_path):
    output = Output(tmp_path / "out.parquet", {"a": 1})
    assert output.prepare(False)
    write(output, 0, 0, last=False, keys="ab")
    assert not is_complete(0, output.shards())  # what follows may be missing
    write(output, 1, 1, last=True, keys="ef")
    write(output, 0, 1, last=True, keys="c")
    with pytest.raises(RuntimeError, match="shards of unit 1 .* are missing"):
        output.finish(2, FEATURES)
    write(output, 1, 0, last=False, keys="d")
    total = output.finish(2, FEATURES)
    assert (total.images, pq.read_table(output.path)["key"].to_pylist()) == (6, list("abcdef"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert not output.prepare(False)


def test_a_shard_that_was_not_finished_is_not_there(tmp_path):
    output = Output(tmp_path / "out", {"a": 1})
    output.prepare(False)
    writer = ShardWriter(output.parts, Shard(0, 0), FEATURES)
    writer.add(pa.table({"key": ["a"]}).cast(FEATURES.arrow_schema))
    assert output.shards() == {}
    assert Output(tmp_path / "out", {"a": 1}).prepare(False)
    assert not is_complete(0, output.shards())


def test_what_is_not_ours_is_neither_used_nor_deleted(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("dear")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "out.parquet")
    for name in ("out", "out.parquet"):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="choose another output"):
                Output(tmp_path / name, {}).prepare(overwrite)
    assert (tmp_path / "out/letter.txt").exists()
    assert (tmp_path / "out.parquet").exists()


def test_a_run_that_ended_before_its_settings_were_written_begins(tmp_path):
    output = Output(tmp_path / "out", {"a": 1})
    output.parts.mkdir()
    assert output.prepare(False)
    with pytest.raises(OutputError, match="was begun with a 1 \\(now 2\\)"):
        Output(tmp_path / "out", {"a": 2}).prepare(False)
    assert Output(tmp_path / "out", {"a": 2}).prepare(True)
