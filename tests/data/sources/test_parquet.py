"""Local parquet files: damage costs itself, and every lost row is counted."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_geossl.data.broken import BrokenStreamError
from hf_geossl.data.sources.files import find_files
from hf_geossl.data.sources.parquet import parquet_source
from hf_geossl.data.streams import load_stream
from tests.helpers.images import encoded, write_one_parquet


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


def test_rows_are_named_by_file_and_row_and_units_are_row_groups(tmp_path):
    write_one_parquet(tmp_path / "a.parquet", 7, group=3)
    write_one_parquet(tmp_path / "b.parquet", 2)
    source = parquet_source(find_files(str(tmp_path), "train"), "photos", "image", shuffle_block=1000)
    assert source.units == 4  # 3 + 3 + 1 rows, and 2
    rows = list(source.rows)
    assert [row["key"] for row in rows] == [*(f"a.parquet:{row}" for row in range(7)), "b.parquet:0", "b.parquet:1"]
    assert [source.read(row) for row in rows] == [encoded(number) for number in (*range(7), 0, 1)]
    assert (source.identity["files"], source.identity["rows"]) == (2, 9)


def test_columns_that_hold_no_images_and_files_without_rows_are_refused(tmp_path):
    pq.write_table(pa.table({"image": [1.5], "path": ["a"]}), tmp_path / "numbers.parquet")
    files = find_files(str(tmp_path), "train")
    with pytest.raises(ValueError, match="the column 'image' of numbers.parquet in photos holds double, not images"):
        parquet_source(files, "photos", "image", 10)
    with pytest.raises(ValueError, match="no column 'picture'; its columns are image, path"):
        parquet_source(files, "photos", "picture", 10)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "numbers.parquet")
    with pytest.raises(ValueError, match="photos holds no rows"):
        parquet_source(files, "photos", "image", 10)
    (tmp_path / "numbers.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="numbers.parquet in photos is no readable parquet file: mend or remove it"):
        parquet_source(files, "photos", "image", 10)
