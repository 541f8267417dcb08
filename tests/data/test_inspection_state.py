"""The file in which an inspection remembers what it has seen."""

import numpy as np
from PIL import Image

from hf_geossl.data.inspection_state import InspectionState, digest_of


def test_only_what_was_committed_survives(tmp_path):
    with InspectionState(tmp_path / "state") as state:
        state.save("position", [1, 2])
        state.add_content("train", "a", b"1")
        state.commit()
        state.save("position", [3, 4])
        state.add_content("train", "b", b"1")
        state.add_broken("train", "c", "empty")
    with InspectionState(tmp_path / "state") as state:
        assert state.load("position") == [1, 2]
        assert state.load("other") is None
        assert state.count_copies() == 0
        assert state.broken(10) == []
        state.add_content("test", "b", b"1")
        state.add_content("test", "c", b"2")
        state.add_broken("test", "d", "empty")
        assert (state.count_copies(), state.count_across_splits()) == (1, 1)
        assert list(state.groups(5)) == [["train: a", "test: b"]]
        assert state.broken(10) == [{"split": "test", "image": "d", "reason": "empty"}]


def test_an_error_inside_rolls_back(tmp_path):
    state = InspectionState(tmp_path / "state")
    state.save("position", [1])
    state.__exit__(RuntimeError, RuntimeError(), None)
    with InspectionState(tmp_path / "state") as state:
        assert state.load("position") is None


def test_contents_are_equal_where_files_or_pixels_are(tmp_path):
    (tmp_path / "a.png").write_bytes(b"content")
    assert digest_of(str(tmp_path / "a.png")) == digest_of(b"content") == digest_of(tmp_path / "a.png")
    assert digest_of(b"content") != digest_of(b"contents")
    assert digest_of(str(tmp_path / "none.png")) is None
    assert digest_of(str(tmp_path)) is None
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert digest_of(pixels) == digest_of(Image.fromarray(pixels)) == digest_of(pixels[:, ::-1][:, ::-1])
    assert digest_of(pixels) != digest_of(pixels.reshape(2, 6)) != digest_of(pixels.astype(np.int16))
