"""Results as they are written: JSON in one form, whole or not at all, and of one measurement."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.evaluation.protocol import TaskResult
from hf_geossl.evaluation.results import (
    as_json,
    describe,
    floors_by_metric,
    numbers,
    read_earlier,
    result_entry,
    write_json,
)


@pytest.mark.parametrize(
    "floors",
    [
        {"iou": {"random weights": 0.1, "constant": 0.2}},
        {"random weights": {"iou": 0.1, "images": 7}, "constant": {"iou": 0.2}},
        {"random weights": 0.1, "constant": 0.2},
    ],
)
def test_floors_have_one_form(floors: Any) -> None:
    assert floors_by_metric(["iou", "accuracy"], floors) == {"iou": {"random weights": 0.1, "constant": 0.2}}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"knn": {"accuracy": 0.5, "counts": [1, 2, 3]}})
    assert '"counts": [1, 2, 3]' in path.read_text()
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"knn": {"accuracy": 0.6}})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_values_become_what_json_holds() -> None:
    found = as_json({"a": np.float32(0.5), 1: (np.int64(3), float("nan")), "b": torch.tensor([True]), "c": Path("x/y")})
    assert found == {"a": 0.5, "1": [3, None], "b": [True], "c": "y"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_an_entry_is_described_by_its_first_numbers() -> None:
    result = TaskResult({"score": 0.25, "error": 3.0, "none": float("inf")}, {"score": (0.2, 0.3)}, {"settings": 1})
    entry = result_entry(result, {"steps": 3}, 12.34, torch.device("cpu"))
    assert numbers(entry) == {"score": 0.25, "error": 3.0}
    assert (entry["undefined"], entry["settings"], entry["details"]) == (["none"], {"steps": 3}, {})
    assert entry["measured"]["seconds"] == 12.3
    assert describe("knn", entry) == "knn: score 0.25 [0.2, 0.3], error 3 (12 s)"


def test_earlier_results_are_read_where_they_are_of_the_same_measurement(tmp_path: Path) -> None:
    file, about = tmp_path / "results.json", {"seed": 1, "dataset": "scenes"}
    assert read_earlier(None, about, False) == read_earlier(file, about, False) == {}
    write_json(file, {"knn": {"accuracy": 0.5}, "about": about})
    assert read_earlier(file, about, False)["knn"] == {"accuracy": 0.5}
    with pytest.raises(ValueError, match=r"another measurement \(seed 1 instead of 2\)"):
        read_earlier(file, {**about, "seed": 2}, False)
    assert read_earlier(file, {**about, "seed": 2}, True) == {}
    write_json(file, {"about": about})  # nothing could be measured, so nothing is lost
    assert read_earlier(file, {**about, "seed": 2}, False) == {}
