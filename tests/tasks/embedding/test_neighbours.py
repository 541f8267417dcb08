"""Neighbours of files: in the order of cosines that anybody computes from the table."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_geossl.tasks import embed
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.neighbours import draw_neighbours, find_neighbours
from tests.helpers.embedding_models import own_folder
from tests.helpers.images import write_folder, write_parquet


def test_neighbours_of_an_image_of_the_table(tmp_path):
    model, data = own_folder(tmp_path / "model"), write_folder(tmp_path / "data", rows=12)
    made = embed(model, data, tmp_path / "out", EmbeddingArguments(num_workers=0, batch_size=4, shard_rows=4))
    query = data / "class_2/005.png"
    table = find_neighbours(made, [query, data / "class_0/000.png"], 5)
    stored = pq.read_table(tmp_path / "out")
    features = np.stack(stored["pooled"].to_pandas())
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    own = stored["key"].to_pylist().index("class_2/005.png")
    expected = np.argsort(-features @ features[own])[:5]
    rows = table[table["query"] == str(query)]
    assert rows["key"].tolist() == [stored["key"][int(number)].as_py() for number in expected]
    assert rows["rank"].tolist() == [1, 2, 3, 4, 5]
    assert np.allclose(rows["similarity"], (features @ features[own])[expected], atol=1e-5)
    sheet = np.asarray(draw_neighbours(made, table))
    cells = [sheet[26 : 26 + 100, 6 + 134 * n : 6 + 134 * n + 128] for n in range(2)]
    assert np.array_equal(*cells)  # the query, and itself as its nearest


def test_neighbours_in_parquet_and_what_cannot_be_compared(tmp_path):
    model, data = own_folder(tmp_path / "model"), write_parquet(tmp_path / "data", rows=6)
    made = embed(model, data, tmp_path / "out.parquet", EmbeddingArguments(num_workers=0, features=("class_token",)))
    query = write_folder(tmp_path / "files", rows=1) / "class_0/000.png"
    table = find_neighbours(made, [query], 3)
    assert table["key"][0] == "train-00000-of-00002.parquet:0"
    draw_neighbours(made, table)
    with pytest.raises(ValueError, match="the query .*none.png cannot be used"):
        find_neighbours(made, [tmp_path / "none.png"], 3)
    patches = embed(model, data, tmp_path / "p.parquet", EmbeddingArguments(num_workers=0, features=("patches",)))
    with pytest.raises(ValueError, match="the table has patches alone"):
        find_neighbours(patches, [query], 3)
