"""Options of an evaluation: numbers out of range are named, and data know what they are."""

from dataclasses import replace
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


def test_features_of_a_call_without_a_cache_are_shared_and_gone_after_an_interrupt() -> None:
    cache = EvaluationOptions(cache_dir=None).feature_cache()
    folder = cache.__enter__().cache_dir
    assert folder is not None
    assert folder.is_dir()
    assert not cache.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # which goes on
    assert not folder.exists()


def test_all_samples_of_the_data_share_what_was_decoded() -> None:
    data = EvaluationData(size=16, limit=3)
    assert data.test.stored is data.test.stored
    assert data.test.stored is not data.train.stored
    assert replace(data, limit=3).test.stored is data.test.stored  # a part of the data has the same store


def test_features_are_not_cached_where_nothing_can_be_written(caplog: pytest.LogCaptureFixture) -> None:
    with EvaluationOptions(cache_dir=Path("/proc/nowhere/features")).feature_cache() as options:
        assert options.cache_dir is not None
        assert options.cache_dir.is_dir()
        assert options.cache_dir.parts[:2] != ("/", "proc")
    assert "/proc/nowhere/features cannot be written (No such file or directory)" in caplog.text
