"""The table of a ViT that is taken over and given back has its rows and its differences."""

from pathlib import Path

from benchmarks.adoption import measure


def test_features_are_equal_before_and_after_a_step(tmp_path: Path) -> None:
    rows = measure(64, 2, [(224, 224), (56, 84)], tmp_path)
    assert len(rows) == 7
    assert all(seconds >= 0 and memory > 0 for _, seconds, memory, _ in rows)
    differences = [largest for *_, largest in rows if largest is not None]
    assert len(differences) == 2
    assert max(differences) < 1e-5
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("source", "back")]
    assert weights[0] != weights[1]  # it has been trained
