"""Positions: how they advance, and which saved ones are refused."""

import json

import pytest

from hf_geossl.data.positions import Position, refuse_difference


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


def test_all_differences_are_named_also_of_missing_entries() -> None:
    refuse_difference({"seed": 1}, {"seed": 1})
    with pytest.raises(ValueError, match="seed was 1 and is 2, units was 8 and is None, split was None and is 'test'"):
        refuse_difference({"seed": 1, "units": 8, "rows": 3}, {"seed": 2, "rows": 3, "split": "test"})
