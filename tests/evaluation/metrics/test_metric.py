"""Every metric: by its path without a network, in batches and alone, by rows; all of them offline."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.evaluation import metrics
from hf_geossl.evaluation.metrics import (
    R2,
    Accuracy,
    DepthErrors,
)
from tests.helpers.metric_cases import CASES

FOLDER = Path(metrics.__file__).parent


def _numbers(result: dict[str, Any]) -> dict[str, Any]:
    """Comparable with ==: NaN as text."""
    return json.loads(json.dumps(result).replace("NaN", '"NaN"'))


def test_names_are_the_files() -> None:
    shared = {"__init__", "metric"}
    assert set(metrics.NAMES) == set(CASES) == {path.stem for path in FOLDER.glob("*.py")} - shared
    for name in metrics.NAMES:
        assert metrics.load(name, **CASES[name][0]).name == name
    with pytest.raises(ValueError, match="name must be one of accuracy, .*, got 'miou'"):
        metrics.load("miou")


def test_importing_the_list_imports_no_library() -> None:
    code = (
        "import sys, hf_geossl.evaluation.metrics as m\n"
        "print([n for n in ('evaluate', 'torchmetrics', 'faster_coco_eval', 'sklearn.metrics') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"


def test_every_file_loads_by_its_path_without_network_or_package(tmp_path: Path) -> None:
    (tmp_path / "cases.pickle").write_bytes(pickle.dumps(CASES))
    code = f"""
import json, pickle, socket, sys
def refuse(*args, **kwargs):
    raise OSError("no network here")
socket.socket.connect = refuse
import evaluate
cases = pickle.load(open("cases.pickle", "rb"))
results = {{}}
for name, (kwargs, inputs) in cases.items():
    metric = evaluate.load({str(FOLDER)!r} + "/" + name + ".py", **kwargs)
    assert metric.name == name and metric.inputs_description and metric.description
    results[name] = metric.compute(**inputs)
print(json.dumps([results, "hf_geossl" in sys.modules]))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    results, package_came = json.loads(run.stdout.splitlines()[-1])
    assert not package_came
    for name, (kwargs, inputs) in CASES.items():
        assert _numbers(results[name]) == _numbers(metrics.load(name, **kwargs).compute(**inputs)), name


@pytest.mark.parametrize("name", CASES)
def test_batches_and_single_images_give_what_one_call_gives(name: str, tmp_path: Path) -> None:
    kwargs, inputs = CASES[name]
    metric = metrics.load(name, cache_dir=str(tmp_path), **kwargs)
    expected = metric.compute(**inputs)
    values = [value for value in expected.values() if not isinstance(value, list)]
    assert values
    assert all(type(value) in (float, int) and math.isfinite(value) for value in values)
    count = len(inputs["references"])
    for size in (1, 2, 5):
        for start in range(0, count, size):
            metric.add_batch(**{key: value[start : start + size] for key, value in inputs.items()})
        result = metric.compute()
        for key, value in expected.items():
            np.testing.assert_allclose(result[key], value, rtol=1e-6, atol=1e-9)
    singular = {"predictions": "prediction", "references": "reference"}
    for index in range(count):
        metric.add(**{singular.get(key, key): value[index] for key, value in inputs.items()})
    result = metric.compute()
    for key, value in expected.items():
        np.testing.assert_allclose(result[key], value, rtol=1e-6, atol=1e-9)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no Arrow table was written
    with pytest.raises(ValueError, match=f"{name} has nothing to compute"):
        metric.compute()


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("_precision") or "multi" in name])
def test_tensors_and_lists_are_arrays(name: str) -> None:
    kwargs, inputs = CASES[name]
    expected = metrics.load(name, **kwargs).compute(**inputs)
    convert_list = {key: [np.asarray(v).tolist() for v in value] for key, value in inputs.items()}
    convert_tensor = {key: [torch.as_tensor(v) for v in value] for key, value in inputs.items()}
    for converted in (convert_list, convert_tensor):
        assert _numbers(metrics.load(name, **kwargs).compute(**converted)) == _numbers(expected)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_images_give_the_metric(name: str) -> None:
    kwargs, inputs = CASES[name]
    metric = metrics.load(name, **kwargs)
    rows = metric.rows_of(**inputs)
    assert len(rows) == len(inputs["references"])
    result = metric.compute(**inputs)
    scalars = {key for key, value in result.items() if isinstance(value, float)}
    assert metric.numbers_of(rows) == {key: pytest.approx(result[key], rel=1e-6) for key in scalars}
    halves = [
        metric.rows_of(**{key: value[part] for key, value in inputs.items()}) for part in (slice(5), slice(5, None))
    ]
    assert metric.numbers_of(metric.join(halves)) == pytest.approx(metric.numbers_of(rows), rel=1e-6)
    if name not in ("r2", "depth_errors"):  # each row is that image's own
        first = {key: value[:1] for key, value in inputs.items()}
        alone = metric.compute(**first)
        for key, value in metric.numbers_of(rows[:1]).items():
            assert value == pytest.approx(alone[key], rel=1e-6, nan_ok=True), key


def test_inputs_that_are_missing_or_unknown_are_named() -> None:
    metric = DepthErrors()
    with pytest.raises(ValueError, match="depth_errors needs predictions and references, references did not come"):
        metric.add_batch(predictions=np.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="has no input 'mask'; it takes predictions, references, valid"):
        metric.compute(predictions=np.ones((1, 2, 2)), references=np.ones((1, 2, 2)), mask=1)
    mixed = Accuracy(num_classes=2)
    mixed.add_batch(predictions=[0, 1], references=[0, 1])
    with pytest.raises(ValueError, match="scores in every batch or classes in every batch, got both"):
        mixed.add_batch(predictions=np.eye(2), references=[0, 1])
    with pytest.raises(ValueError, match="num_process must be 1, got 2"):
        R2(num_process=2, experiment_id="two")


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("accuracy", {"num_classes": 1}, "num_classes must be 2 or more, got 1"),
        ("depth_errors", {"minimum": 0.0}, "0 < minimum < cap, got 0.0 and 10.0"),
        ("pckh", {"threshold": 0}, "threshold must be above 0, got 0"),
        ("j_and_f", {"tolerance": -1.0}, "tolerance must be 0 or more, got -1.0"),
        ("coco_average_precision", {"kinds": "box"}, "kinds must be"),
        ("coco_average_precision", {"box_format": "cxcywh"}, 'must be "xyxy" or "xywh", got \'cxcywh\''),
        ("keypoint_average_precision", {"sigmas": (0.1, 0.0)}, "sigmas must be above 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(name: str, kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        metrics.load(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "inputs", "told"),
    [
        ("accuracy", {"num_classes": 3}, ([0, 3], [0, 1]), "predictions must lie in 0..2, got 3"),
        ("accuracy", {"num_classes": 3}, ([0, 1], [0, -1]), "references must lie in 0..2, got -1"),
        ("accuracy", {"num_classes": 3}, ([0.0, 1.0], [0, 1]), "predictions must be integers, got float64; take the argmax"),
        ("accuracy", {"num_classes": 3}, (np.ones((2, 4)), [0, 1]), r"predictions must have shape \(any, 3\), got \(2, 4\)"),
        ("accuracy", {"num_classes": 3}, ([0, 1], [0]), r"references must have shape \(2\), got \(1,\)"),
        ("accuracy", {"num_classes": 2}, ([[0, np.nan]], [0]), "predictions must be finite, got 1 NaN"),
        ("mean_iou", {"num_classes": 3}, (np.zeros((1, 4, 4)), np.zeros((1, 4, 4), int)), "predictions must be integers"),
        ("mean_iou", {"num_classes": 3}, (np.full((1, 4, 4), 255), np.full((1, 4, 4), 255)), "predictions must lie in 0..2, got 255"),
        ("mean_iou", {"num_classes": 3}, (np.zeros((1, 4, 4), int), np.full((1, 4, 4), 4)), "references must lie in 0..2 or 255, got 4"),
        ("mean_iou", {"num_classes": 3}, (np.zeros((1, 4, 5), int), np.zeros((1, 4, 4), int)), r"predictions must have shape \(4, 4\), got \(4, 5\)"),
        ("mean_iou", {"num_classes": 3}, (np.zeros((2, 4, 4), int), np.zeros((1, 4, 4), int)), "of the same images, got 2 and 1"),
        ("r2", {}, (np.ones((3, 1)), np.ones(3)), r"predictions must have shape \(3\), got \(3, 1\)"),
        ("depth_errors", {}, (np.full((1, 2, 2), np.nan), np.ones((1, 2, 2))), "predictions must be numbers where .* got 4 NaN"),
        ("multilabel_average_precision", {"num_classes": 2}, (np.ones((1, 2)), [[0, 2]]), "references must lie in 0..1, got 2"),
        ("corner_error", {}, (np.ones((1, 8)), np.ones((1, 8))), r"references must have shape \(any, 4, 2\), got \(1, 8\)"),
        ("pckh", {}, (np.ones((1, 2, 2)), np.ones((1, 2, 2))), "pckh needs head_sizes"),
        ("j_and_f", {}, (np.ones((1, 2, 4, 4), int), np.ones((1, 2, 4, 4), int)), "3 or more are needed"),
        ("coco_average_precision", {}, ([{"boxes": []}], [{"boxes": []}]), "must be a dictionary an image with labels, boxes, scores"),
        ("coco_average_precision", {}, ([{"boxes": [[5, 5, 1, 1]], "scores": [1.0], "labels": [0]}], [{"boxes": [], "labels": []}]), "xyxy with sizes of 0 or more, got -4"),
        ("coco_average_precision", {"kinds": ("mask",)}, ([{"masks": np.full((1, 4, 4), 0.7), "scores": [1.0], "labels": [0]}], [{"masks": [], "labels": []}]), "put a threshold"),
        ("coco_average_precision", {"kinds": ("mask",)}, ([{"masks": np.ones((1, 4, 4), int), "scores": [1.0], "labels": [0]}], [{"masks": np.ones((1, 4, 5), int), "labels": [0]}]), "masks of an image must be equal in size"),
        ("keypoint_average_precision", {}, ([{"keypoints": np.ones((1, 5, 2)), "scores": [1.0]}], [{"keypoints": [], "area": []}]), r"must have shape \(1, 17, any\), got \(1, 5, 2\)"),
    ],
)  # fmt: skip
def test_inputs_that_make_no_sense_are_refused_by_name(
    name: str, kwargs: dict[str, Any], inputs: tuple[Any, Any], told: str
) -> None:
    metric = metrics.load(name, **kwargs)
    with pytest.raises(ValueError, match=told):
        metric.add_batch(predictions=inputs[0], references=inputs[1])
    with pytest.raises(ValueError, match="nothing to compute"):  # and left nothing behind
        metric.compute()


def test_a_metric_needs_no_folder_to_write_to() -> None:
    metric = Accuracy(2, cache_dir="/proc/nowhere")
    assert metric.compute(predictions=[[0, 1]], references=[1])["accuracy"] == 1
