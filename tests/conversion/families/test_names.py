"""Tables of names are read in both directions."""

import pytest
import torch

from hf_geossl.conversion.families.names import Row, from_trunk, rows, to_trunk


def test_a_row_joins_and_divides_weights_in_its_order() -> None:
    table = rows(("layer.{n}.qkv.{leaf}", "h.{n}.{q+k+v}.{leaf}"), ("norm", "ln"))
    query, key, value = torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 2.0)
    theirs = {"h.11.v.weight": value, "h.11.q.weight": query, "h.11.k.weight": key, "ln": torch.ones(3).bfloat16()}
    ours, unknown = to_trunk(theirs, table)
    assert torch.equal(ours["layer.11.qkv.weight"], torch.cat([query, key, value]))
    assert ours["norm"].dtype == torch.float32
    assert not unknown
    back, unknown = from_trunk(ours, table)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name].float()) for name in theirs)
    assert not unknown


def test_parts_that_are_alone_and_names_without_a_row_are_named() -> None:
    table = rows(("qkv.{leaf}", "{q+k+v}.{leaf}"))
    ours, unknown = to_trunk({"q.bias": torch.zeros(1), "v.bias": torch.ones(1), "x.y": torch.zeros(1)}, table)
    assert sorted(ours) == ["qkv.bias#0", "qkv.bias#2"]
    assert unknown == ["x.y"]
    assert from_trunk({"a": torch.zeros(1)}, table) == ({}, ["a"])


def test_of_several_rows_the_first_is_written_or_the_one_that_is_expected() -> None:
    table = rows(("a.{leaf}", "b.{leaf}"), ("a.{leaf}", "c.{leaf}"))
    ours = {"a.weight": torch.ones(1)}
    assert to_trunk({"c.weight": torch.ones(1)}, table)[0].keys() == ours.keys()
    assert list(from_trunk(ours, table)[0]) == ["b.weight"]
    assert list(from_trunk(ours, table, ["c.weight"])[0]) == ["c.weight"]


@pytest.mark.parametrize("key", ["h.x.q.weight", "h.1.q.weights", "prefix.h.1.q.weight", "h.1.q.gamma"])
def test_names_fit_as_a_whole(key: str) -> None:
    assert Row("a.{n}.{leaf}", "h.{n}.q.{leaf}").find(key) is None
