"""Measured numbers are read with what they were measured on, and only finite ones."""

import json
from pathlib import Path

import pytest

from hf_geossl.hub.results import (
    EMBEDDED,
    eval_results,
    held_out_results,
    load_results,
    measured_results,
    model_index,
    read_results,
)


def test_results_carry_their_data() -> None:
    about = {"dataset": "scenes", "split": "test", "config_name": "topdown", "images": 64, "command": "geossl evaluate"}
    details = {"test_images": 16, "clips": 3}
    results = {"about": about, "knn": {"accuracy": 1, "table": [1]}, "motion": {"error": 0.5, "details": details}}
    knn, motion = read_results(results)
    assert (knn.value, knn.dataset_id, knn.hub_task) == (1.0, EMBEDDED, "image-classification")
    assert knn.data == "scenes, topdown (test), 64 images"
    assert motion.data == "scenes, topdown (test), 3 clips"
    assert [entry.metric_name for entry in model_index([knn, motion])] == ["knn accuracy", "motion error"]
    first = eval_results([knn])[0]
    assert (first["dataset"]["id"], first["dataset"]["task_id"], first["value"]) == (EMBEDDED, "knn.accuracy", 1.0)
    assert model_index(read_results({"knn": {"accuracy": 1}})) == []  # of no data that is named


def test_quick_results_say_so_and_stay_out_of_what_others_compare() -> None:
    about = {"dataset": "scenes", "split": "test", "images": 64, "quick": True}
    [knn] = read_results({"about": about, "knn": {"accuracy": 1}})
    assert knn.data == "scenes (test), 64 images; quick, not comparable"
    assert model_index([knn]) == eval_results([knn]) == []
    with pytest.raises(ValueError, match=r"^about.quick of the results must be true or false, got 'yes'$"):
        read_results({"about": {"quick": "yes"}, "knn": {"accuracy": 1}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.5", None])
def test_only_finite_numbers_are_results(value: object) -> None:
    with pytest.raises(ValueError, match="only finite numbers go on a card"):
        read_results({"knn": {"accuracy": value}})


def test_a_record_gives_its_held_out_values() -> None:
    held = {"data": "user/photos", "images": 8, "split": "test", "values": {"loss": {"measured": 1.5, "chance": 2.0}}}
    (result,) = held_out_results({"held_out": held, "command": "x"})
    assert (result.metric, result.value, result.chance, result.dataset_id) == ("loss", 1.5, 2.0, "user/photos")
    assert held_out_results({}) == []


def test_results_of_other_weights_are_left_out_or_refused(tmp_path: Path) -> None:
    assert measured_results(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"a")
    other = {"about": {"weights_digest": "other"}, "knn": {"accuracy": 1.0}}
    (tmp_path / "results.json").write_text(json.dumps(other))
    assert measured_results(tmp_path) is None
    with pytest.raises(ValueError, match="the results are of other weights"):
        measured_results(tmp_path, other)
    assert measured_results(tmp_path, {"knn": {"accuracy": 1.0}}) == {"knn": {"accuracy": 1.0}}
    with pytest.raises(ValueError, match="the results file 'none.json' cannot be read"):
        load_results(tmp_path / "none.json")
