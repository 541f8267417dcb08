"""The scenes as a stream of `datasets`."""

from __future__ import annotations

from itertools import chain

from hf_geossl.data.scenes import stream_scenes


def test_stream_gives_each_index_once_in_disjoint_shards() -> None:
    stream = stream_scenes("test", config_name="topdown-64", num_shards=7, count=100)
    assert stream.num_shards == 7
    shards = [[row["index"] for row in stream.shard(7, shard)] for shard in range(7)]
    assert sorted(chain(*shards)) == list(range(100))
    assert {len(shard) for shard in shards} == {14, 15}
    assert [row["index"] for row in stream] == list(range(100))
    assert stream_scenes("test").num_shards == 64
    assert stream_scenes("test", num_shards=64, count=3).num_shards == 3


def test_stream_resumes_from_its_state() -> None:
    stream = stream_scenes("train", num_shards=4, count=20)
    rows = iter(stream)
    first = [next(rows)["index"] for _ in range(8)]
    state = stream.state_dict()
    fresh = stream_scenes("train", num_shards=4, count=20)
    fresh.load_state_dict(state)
    assert first + [row["index"] for row in fresh] == list(range(20))
