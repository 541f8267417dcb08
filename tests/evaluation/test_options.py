"""Options of an evaluation: numbers out of range are named, and data know what they are."""

from pathlib import Path

import pytest

from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions


@pytest.mark.parametrize(
    ("name", "value", "least"), [("batch_size", 0, 1), ("num_workers", -1, 0), ("seed", -1, 0), ("bootstrap", -1, 0)]
)
def test_numbers_out_of_range_are_named(name: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {value}"):
        EvaluationOptions(**{name: value})


def test_data_know_what_they_are(tmp_path: Path) -> None:
    assert EvaluationData().is_scenes
    assert EvaluationData().mode == EvaluationData(str(tmp_path), config_name="topdown").mode == "scene"
    assert EvaluationData(config_name="topdown").mode == "topdown"
    assert not EvaluationData(str(tmp_path)).is_clips
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name).mkdir()
    assert EvaluationData(str(tmp_path)).is_clips
    (tmp_path / "JPEGImages" / "2007_000032.jpg").touch()  # as Pascal VOC
    assert not EvaluationData(str(tmp_path)).is_clips


def test_samples_have_the_size_mode_and_limit_that_are_asked_for() -> None:
    data = EvaluationData(size=32, limit=3, config_name="topdown")
    assert (data.train.count, data.test.size, data.test.mode) == (3, 32, "topdown")
    other = data.samples("test", size=16, mode="object")
    assert (other.size, other.mode) == (16, "object")
