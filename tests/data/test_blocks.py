"""Orders and seeds, pinned against NumPy's raw numbers; the reader of a unit; positions and which saved ones are refused."""

import json

import numpy as np
import pytest

from hf_geossl.data.blocks import Position, UnitReader, block_order, refuse_difference, sample_seed, unit_order
from hf_geossl.data.sources.base import Source, rows_from


def test_orders_are_permutations_that_stay_the_same_for_ever() -> None:
    # of SeedSequence([3, 0, 1]) and [3, 1, 1, 2, 0]: checkpoints of any version resume with them
    assert unit_order(3, 1, 8).tolist() == [7, 3, 5, 1, 2, 4, 6, 0]
    assert block_order(3, 1, 2, 0, 8).tolist() == [5, 2, 4, 3, 1, 7, 6, 0]
    assert [sample_seed(3, 1, 2, row) for row in range(2)] == [3820660870620482618, 4909564905876057840]
    for length in (1, 2, 100):
        assert sorted(unit_order(0, 0, length).tolist()) == list(range(length))
        assert sorted(block_order(0, 0, 0, 0, length).tolist()) == list(range(length))


def test_every_argument_changes_the_order_and_the_seed() -> None:
    orders = {tuple(block_order(seed, epoch, unit, block, 50)) for seed in (0, 1) for epoch in (0, 1)
              for unit in (0, 1) for block in (0, 1)}  # fmt: skip
    assert len(orders) == 16
    assert len({tuple(unit_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    seeds = {sample_seed(s, e, u, r) for s in (0, 1) for e in (0, 1) for u in (0, 1) for r in (0, 1)}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_order_that_is_shared_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        unit_order(0, 0, 5)[0] = 3
    assert unit_order(0, 0, 5) is unit_order(0, 0, 5)


def numbered(spans: list[tuple[int, int]]):
    for start, stop in spans:
        for number in range(start, stop):
            yield number, {"key": str(number), "value": number, "other": "x"}


def source() -> Source:
    spans = [(0, 7), (7, 9)]
    return Source("test", "numbers", rows_from(numbered, spans=spans), 2, read=lambda row: row, identity={})


def test_a_unit_is_read_in_order_and_from_any_of_its_states() -> None:
    everything = [row["value"] for row in UnitReader(source(), 0).read(100)]
    assert everything == list(range(7))
    states = [None]
    reader = UnitReader(source(), 0)
    for number in range(7):
        (row,) = reader.read(1)
        assert row == {"key": str(number), "value": number}  # no other columns than the source's
        states.append(reader.state)
    assert reader.read(1) == []
    for number, state in enumerate(states):
        assert [row["value"] for row in UnitReader(source(), 0, state).read(3)] == everything[number : number + 3]
    assert [row["value"] for row in UnitReader(source(), 1).read(100)] == [7, 8]


def test_rows_without_the_columns_are_refused() -> None:
    rows = rows_from(numbered, spans=[(0, 2)])
    wrong = Source("hub", "numbers", rows, 1, read=lambda row: row, identity={}, columns=("image",), label="")
    with pytest.raises(ValueError, match="numbers has no column 'image'; its columns are key, value, other"):
        UnitReader(wrong, 0).read(1)


def test_numbers_come_from_the_bit_generator_alone() -> None:
    raw = np.random.PCG64(np.random.SeedSequence([5, 0, 2])).random_raw(6).tolist()
    assert unit_order(5, 2, 6).tolist() == sorted(range(6), key=lambda position: raw[position])


def test_a_position_advances_by_rows_blocks_and_units() -> None:
    at = Position()
    assert not at.inside_unit
    for _ in range(3):
        at.take_row()
    at.count_broken()
    assert at == Position(taken=3, rows=3, broken=1)
    assert at.inside_unit
    at.end_block(3, {"shard": 2})
    assert at == Position(block=1, row=3, unit_state={"shard": 2}, rows=3, broken=1)
    assert at.inside_unit
    at.end_unit()
    assert at == Position(units_done=1, rows=3, broken=1)
    assert not at.inside_unit


def test_a_position_survives_json_and_shares_nothing() -> None:
    at = Position(units_done=2, block=1, row=4, unit_state={"nested": [1, 2]}, taken=3, rows=9, broken=1)
    state = at.state_dict()
    again = Position.from_state_dict({**json.loads(json.dumps(state)), "fingerprint": {}, "index": 0})
    assert again == at
    state["unit_state"]["nested"].append(3)
    assert at.unit_state == {"nested": [1, 2]}
    with pytest.raises(ValueError, match="it lacks block, broken"):
        Position.from_state_dict({name: value for name, value in state.items() if not name.startswith("b")})


def test_all_differences_are_named_also_of_missing_entries() -> None:
    refuse_difference({"seed": 1}, {"seed": 1})
    with pytest.raises(ValueError, match="seed was 1 and is 2, units was 8 and is None, split was None and is 'test'"):
        refuse_difference({"seed": 1, "units": 8, "rows": 3}, {"seed": 2, "rows": 3, "split": "test"})


def test_notes_are_counted_by_kind_and_older_states_have_none() -> None:
    at = Position()
    for kind in ("cmyk", "frames", "cmyk"):
        at.count_note(kind)
    state = at.state_dict()
    assert state["notes"] == {"cmyk": 2, "frames": 1}
    assert Position.from_state_dict(state) == at
    state["notes"]["cmyk"] = 9
    assert at.notes["cmyk"] == 2
    assert Position.from_state_dict({name: value for name, value in state.items() if name != "notes"}) == Position()
