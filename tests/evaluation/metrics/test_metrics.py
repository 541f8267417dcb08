"""Metrics against hand-computed examples, peer libraries and formulas written slowly; all of them offline."""

import json
import math
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from skimage.morphology import dilation, disk
from sklearn import metrics as sklearn_metrics

from hf_geossl.evaluation import metrics
from hf_geossl.evaluation.metrics import (
    R2,
    Accuracy,
    COCOAveragePrecision,
    CornerError,
    DepthErrors,
    JAndF,
    KeypointAveragePrecision,
    MeanIoU,
    MultilabelAveragePrecision,
    PCKh,
    mean_iou,
)
from hf_geossl.evaluation.metrics.j_and_f import boundary_measure, region_similarity

FOLDER = Path(metrics.__file__).parent
IMAGES = 12


def _objects(generator: np.random.Generator, size: int, truth: list[Any] | None = None) -> list[dict[str, np.ndarray]]:
    """Rectangles, also as masks; predictions are the truth pushed about, and some that are made up."""
    images = []
    for image in range(IMAGES):
        count = int(generator.integers(0, 5))
        corners = generator.integers(0, size - 12, size=(count, 2)).astype(float)
        boxes = np.concatenate([corners, corners + generator.integers(4, 12, size=(count, 2))], axis=1)
        labels = generator.integers(0, 4, size=count)
        if truth is not None:
            known = truth[image]["boxes"]
            boxes = np.concatenate([np.clip(known + generator.integers(-2, 3, size=known.shape), 0, size), boxes])
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            labels = np.concatenate([truth[image]["labels"], labels])
        masks = np.zeros((len(boxes), size, size), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
            mask[y1, x1] = False
        fields = {"boxes": boxes, "labels": labels, "masks": masks}
        if truth is None:
            fields["iscrowd"] = (generator.random(count) < 0.2).astype(int)
        else:
            fields["scores"] = generator.random(len(boxes)).round(2)  # with ties
        images.append(fields)
    return images


def _people(generator: np.random.Generator) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    found, truth = [], []
    for _ in range(IMAGES):
        count = int(generator.integers(0, 4))
        points = generator.uniform(0, 60, size=(count, 1, 2)) + generator.uniform(0, 60, size=(count, 5, 2))
        flags = generator.integers(0, 3, size=(count, 5, 1))
        flags[:, 0] = 2
        boxes = np.concatenate([points.min(axis=1), np.ptp(points, axis=1)], axis=1)
        truth.append(
            {
                "keypoints": np.concatenate([points, flags], axis=-1),
                "area": boxes[:, 2] * boxes[:, 3] * 0.5,
                "boxes": boxes,
                "iscrowd": (generator.random(count) < 0.15).astype(int),
            }
        )
        extra = int(generator.integers(0, 3))
        guess = np.concatenate(
            [points + generator.normal(0, 2.5, points.shape), generator.uniform(0, 99, (extra, 5, 2))]
        )
        found.append({"keypoints": guess, "scores": generator.random(count + extra).round(2)})
    return found, truth


def _videos(generator: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    found, truth = [], []
    for video in range(3):
        reference = np.zeros((5, 40 + 8 * video, 64), dtype=np.uint8)
        prediction = np.zeros_like(reference)
        for frame in range(5):
            for index in range(1, video + 2):
                x, y = generator.integers(2, 25, size=2)
                reference[frame, y : y + 10, x : x + 12] = index
                prediction[frame, y : y + 9, x + 2 : x + 15] = index
        reference[:, :3] = 255
        found.append(prediction)
        truth.append(reference)
    return found, truth


def _cases() -> dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """For each metric: its arguments, one call's inputs, and arguments of sums_of that are the class's own."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 7, size=(IMAGES, 9, 11))
    truth = np.where(generator.random(labels.shape) < 0.5, labels, generator.integers(0, 6, size=labels.shape))
    truth[generator.random(labels.shape) < 0.1] = 255
    depth = generator.uniform(-1, 14, size=(IMAGES, 6, 8))
    depth[0, 0, :3] = np.nan, np.inf, 0
    depth[3] = 0
    guess = np.abs(np.nan_to_num(depth, posinf=3)) * generator.uniform(0.6, 1.6, size=depth.shape)
    boxes = _objects(generator, 40)
    keypoints, people = _people(generator)
    videos, true_videos = _videos(generator)
    joints = generator.uniform(0, 100, size=(IMAGES, 5, 2))
    targets = generator.normal(3, [1, 5], size=(IMAGES, 2))
    several = {"num_classes": 7}
    range_ = {"minimum": 0.1, "cap": 10.0}
    return {
        "accuracy": (
            several,
            {"predictions": generator.normal(size=(IMAGES, 7)), "references": generator.integers(0, 6, size=IMAGES)},
            several,
        ),
        "coco_average_precision": (
            {"kinds": ("box", "mask")},
            {"predictions": _objects(generator, 40, boxes), "references": boxes},
            {},
        ),
        "corner_error": (
            {},
            {"predictions": generator.normal(size=(IMAGES, 4, 2)), "references": generator.normal(size=(IMAGES, 4, 2))},
            {},
        ),
        "depth_errors": (
            range_,
            {"predictions": guess, "references": depth, "valid": generator.random(depth.shape) < 0.8},
            range_,
        ),
        "j_and_f": ({}, {"predictions": videos, "references": true_videos}, {}),
        "keypoint_average_precision": (
            {"sigmas": (0.05, 0.1, 0.03, 0.08, 0.1)},
            {"predictions": keypoints, "references": people},
            {},
        ),
        "mean_iou": (several, {"predictions": labels, "references": truth}, several),
        "multilabel_average_precision": (
            {"num_classes": 4},
            {
                "predictions": generator.normal(size=(IMAGES, 4)),
                "references": generator.random((IMAGES, 4)) < [0.3, 0.6, 0.4, 0],
            },
            {},
        ),
        "pckh": (
            {},
            {
                "predictions": joints + generator.normal(0, 5, size=joints.shape),
                "references": joints,
                "head_sizes": generator.uniform(5, 20, size=IMAGES),
                "visible": generator.random(joints.shape[:2]) < [0.8, 0.8, 0.8, 0.8, 0],
            },
            {},
        ),
        "r2": ({}, {"predictions": targets + generator.normal(size=targets.shape), "references": targets}, {}),
    }


CASES = _cases()
SUMMED = [name for name in CASES if hasattr(import_module(f"hf_geossl.evaluation.metrics.{name}"), "sums_of")]


def _numbers(result: dict[str, Any]) -> dict[str, Any]:
    """Comparable with ==: NaN as text."""
    return json.loads(json.dumps(result).replace("NaN", '"NaN"'))


def test_names_are_the_files() -> None:
    shared = {"__init__", "coco_evaluation", "inputs", "streaming"}
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
for name, (kwargs, inputs, _) in cases.items():
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
    for name, (kwargs, inputs, _) in CASES.items():
        assert _numbers(results[name]) == _numbers(metrics.load(name, **kwargs).compute(**inputs)), name


@pytest.mark.parametrize("name", CASES)
def test_batches_and_single_images_give_what_one_call_gives(name: str, tmp_path: Path) -> None:
    kwargs, inputs, _ = CASES[name]
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
    kwargs, inputs, _ = CASES[name]
    expected = metrics.load(name, **kwargs).compute(**inputs)
    convert_list = {key: [np.asarray(v).tolist() for v in value] for key, value in inputs.items()}
    convert_tensor = {key: [torch.as_tensor(v) for v in value] for key, value in inputs.items()}
    for converted in (convert_list, convert_tensor):
        assert _numbers(metrics.load(name, **kwargs).compute(**converted)) == _numbers(expected)


@pytest.mark.parametrize("name", SUMMED)
def test_sums_over_images_give_the_metric(name: str) -> None:
    kwargs, inputs, options = CASES[name]
    module = import_module(f"hf_geossl.evaluation.metrics.{name}")
    extra = {key: value for key, value in inputs.items() if key not in ("predictions", "references")}
    sums = module.sums_of(inputs["predictions"], inputs["references"], **extra, **options)
    assert sums.ndim == 2
    assert len(sums) == len(inputs["references"])
    result = metrics.load(name, **kwargs).compute(**inputs)
    summary = module.summarize(sums.sum(axis=0))
    scalars = {key for key, value in result.items() if isinstance(value, float)}
    assert set(summary) == scalars
    for key in scalars:
        assert summary[key] == pytest.approx(result[key], rel=1e-6), key
    first = {key: value[:1] for key, value in inputs.items()}
    if name not in ("r2", "depth_errors"):  # each row is that image's own
        alone = metrics.load(name, **kwargs).compute(**first)
        for key, value in module.summarize(sums[0]).items():
            assert value == pytest.approx(alone[key], rel=1e-6, nan_ok=True), key


def test_accuracy_is_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    truth = generator.choice([0, 1, 2, 3, 5, 6, 7], size=200)  # class 4 has no references
    scores = generator.normal(size=(200, 8)) + 1.2 * np.eye(8)[truth]
    result = Accuracy(num_classes=8).compute(predictions=scores, references=truth)
    guess = scores.argmax(axis=1)
    assert result["accuracy"] == sklearn_metrics.accuracy_score(truth, guess)
    assert result["accuracy_top5"] == pytest.approx(
        sklearn_metrics.top_k_accuracy_score(truth, scores, k=5, labels=range(8)), abs=1e-7
    )
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = sklearn_metrics.balanced_accuracy_score(truth, guess)
    assert result["mean_per_class_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert math.isnan(result["accuracy_per_class"][4])
    as_classes = Accuracy(num_classes=8).compute(predictions=guess, references=truth)
    assert "accuracy_top5" not in as_classes
    assert as_classes["accuracy"] == result["accuracy"]
    few = Accuracy(num_classes=5).compute(predictions=np.eye(5), references=range(5))
    assert "accuracy_top5" not in few  # would always be 1
    half = torch.tensor(scores, dtype=torch.bfloat16)
    expected = float((half.float().argmax(dim=1).numpy() == truth).mean())
    assert Accuracy(num_classes=8).compute(predictions=half, references=truth)["accuracy"] == expected


def test_mean_iou_by_hand() -> None:
    #  class 0: 2 of 5 pixels shared; 1: 1 of 4; 2: only predicted, 0 of 1; 3: nowhere, left out; 4: only in truth, 0 of 1
    truth = [[0, 0, 0, 255], [1, 1, 255, 1], [4, 255, 255, 255]]
    guess = [[0, 0, 1, 3], [1, 0, 3, 2], [0, 0, 0, 0]]
    result = MeanIoU(num_classes=5).compute(predictions=[guess], references=[truth])
    expected = {
        "mean_iou": (2 / 5 + 1 / 4 + 0 + 0) / 4,
        "pixel_accuracy": 3 / 7,
        "mean_class_accuracy": (2 / 3 + 1 / 3 + 0) / 3,
    }
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-7)
    np.testing.assert_allclose(result["iou_per_class"], [2 / 5, 1 / 4, 0, np.nan, 0], atol=1e-7)
    np.testing.assert_allclose(result["accuracy_per_class"], [2 / 3, 1 / 3, np.nan, np.nan, 0])
    assert mean_iou.summarize(mean_iou.sums_of([guess], [truth], num_classes=5)[0]) == pytest.approx(expected)
    everything_ignored = MeanIoU(num_classes=5).compute(predictions=[guess], references=np.full((1, 3, 4), 255))
    assert all(math.isnan(everything_ignored[key]) for key in expected)


def test_mean_iou_pools_images_of_several_sizes() -> None:
    generator = np.random.default_rng(2)
    shapes = [(5, 7), (9, 4), (6, 6)]
    truth = [generator.choice([0, 1, 2, 9], size=shape) for shape in shapes]
    guess = [generator.integers(0, 3, size=shape) for shape in shapes]
    result = MeanIoU(num_classes=3, ignore_index=9).compute(predictions=guess, references=truth)
    t, g = (np.concatenate([array.ravel() for array in arrays]) for arrays in (truth, guess))
    expected = sklearn_metrics.jaccard_score(t[t < 9], g[t < 9], average=None)
    np.testing.assert_allclose(result["iou_per_class"], expected, atol=1e-6)
    assert result["mean_iou"] == pytest.approx(expected.mean(), abs=1e-6)


def test_multilabel_average_precision() -> None:
    by_hand = MultilabelAveragePrecision(num_classes=2).compute(
        predictions=[[0.9, 5], [0.8, 6], [0.7, 7]], references=[[1, 0], [0, 0], [1, 0]]
    )
    assert by_hand["mean_average_precision"] == pytest.approx((1 + 2 / 3) / 2)  # at recall 1/2 and 1
    assert math.isnan(by_hand["average_precision_per_class"][1])
    generator = np.random.default_rng(3)
    scores, truth = generator.random((60, 5)), generator.integers(0, 2, (60, 5))
    peer = torchmetrics.classification.MultilabelAveragePrecision(num_labels=5)(
        torch.tensor(scores), torch.tensor(truth)
    )
    result = MultilabelAveragePrecision(num_classes=5).compute(predictions=scores, references=truth)
    assert result["mean_average_precision"] == pytest.approx(float(peer), abs=1e-6)


def test_multilabel_batches_of_logits_keep_their_order() -> None:
    """A batch whose logits happen to lie in 0..1 is ranked with the others as it is (a sigmoid a batch would not)."""
    metric = MultilabelAveragePrecision(num_classes=1)
    metric.add_batch(predictions=[[0.2], [0.1]], references=[[0], [0]])
    metric.add_batch(predictions=[[0.3], [-4.0]], references=[[1], [0]])
    assert metric.compute()["mean_average_precision"] == 1.0
    metric.add_batch(predictions=[[0.99]], references=[[0]])
    metric.add_batch(predictions=[[1.5], [-4.0]], references=[[1], [0]])
    assert metric.compute()["mean_average_precision"] == 1.0


def test_r2_by_its_formula_and_by_torchmetrics() -> None:
    generator = np.random.default_rng(4)
    truth = generator.normal([0, 5], [0.1, 4], size=(50, 2))
    guess = truth + generator.normal(0, [0.05, 3], size=truth.shape)
    result = R2().compute(predictions=guess, references=truth)
    residual = ((truth - guess) ** 2).sum(axis=0)
    total = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(result["r2_per_output"], 1 - residual / total, rtol=1e-12)
    assert result["r2"] == pytest.approx((1 - residual / total).mean())
    assert result["r2_variance_weighted"] == pytest.approx(1 - residual.sum() / total.sum())
    for key, how in (("r2", "uniform_average"), ("r2_variance_weighted", "variance_weighted")):
        peer = torchmetrics.R2Score(multioutput=how)(torch.tensor(guess), torch.tensor(truth))
        assert result[key] == pytest.approx(float(peer), rel=1e-5)


def test_r2_of_small_numbers_and_of_constant_references() -> None:
    truth = np.linspace(0, 1e-4, 10)
    result = R2().compute(predictions=truth[::-1].copy(), references=truth)
    assert result["r2"] == pytest.approx(-3)  # torchmetrics says 1: the residual is below its 1e-4
    result = R2().compute(predictions=[[1, 2], [2, 2], [3, 3]], references=[[1, 2], [2, 2], [3, 2]])
    np.testing.assert_array_equal(result["r2_per_output"], [1, np.nan])
    assert math.isnan(result["r2"])
    assert result["r2_variance_weighted"] == 1
    assert math.isnan(R2().compute(predictions=[1.0], references=[1.0])["r2"])


def test_depth_errors_by_hand() -> None:
    truth = [[[1.0, 2.0, 0.0], [4.0, 12.0, np.nan]], [[5.0, 20.0, 0.0], [0.0, 0.0, 0.0]], np.zeros((2, 3))]
    guess = [[[1.5, 2.2, 3.0], [3.0, 1.0, 1.0]], [[30.0, 1.0, np.nan], [1.0, 1.0, 1.0]], np.ones((2, 3))]
    result = DepthErrors(minimum=0.001, cap=10.0).compute(predictions=guess, references=truth)
    # first image: pixels 1, 2 and 4 m; second: 5 m against 30, clipped to 10; third: none
    assert result["abs_rel"] == pytest.approx(((0.5 + 0.1 + 0.25) / 3 + 1) / 2)
    assert result["rmse"] == pytest.approx((math.sqrt((0.25 + 0.04 + 1) / 3) + 5) / 2)
    assert result["delta1"] == pytest.approx((1 / 3 + 0) / 2)  # 1.5, 1.1 and 4 / 3
    assert result["images"] == 2
    cropped = DepthErrors().compute(
        predictions=guess[:1], references=truth[:1], valid=[[[True, False, True], [False, True, True]]]
    )
    assert cropped["abs_rel"] == pytest.approx(0.5)
    nothing = DepthErrors().compute(predictions=guess[2:], references=truth[2:])
    assert math.isnan(nothing["rmse"])
    assert nothing["images"] == 0


def test_corner_error_by_hand() -> None:
    truth = np.zeros((2, 4, 2))
    guess = truth.copy()
    guess[0] = [[3, 4], [0, 0], [0, 1], [6, 8]]
    assert CornerError().compute(predictions=guess, references=truth) == {"mean_corner_error": (16 / 4 + 0) / 2}


def test_pckh_by_hand() -> None:
    truth = np.zeros((2, 3, 2))
    guess = np.array([[[5, 0], [0, 5.01], [1, 1]], [[3, 4], [30, 40], [np.nan, 0]]])
    visible = [[1, 1, 0], [1, 1, 0]]
    result = PCKh().compute(predictions=guess, references=truth, head_sizes=[10, 10], visible=visible)
    assert result["pckh"] == 2 / 4
    np.testing.assert_array_equal(result["pckh_per_joint"], [1, 0, np.nan])
    wider = PCKh(threshold=5.0).compute(predictions=guess, references=truth, head_sizes=[10, 10], visible=visible)
    assert wider["pckh"] == 1
    larger_head = PCKh().compute(predictions=guess, references=truth, head_sizes=[11, 10], visible=visible)
    assert larger_head["pckh"] == 3 / 4


def _coco(images: list[dict[str, Any]], size: int, found: bool) -> list[dict[str, Any]]:
    annotations = []
    for image, fields in enumerate(images, start=1):
        for index, (x1, y1, x2, y2) in enumerate(fields["boxes"].tolist()):
            mask = fields["masks"][index]
            annotation = {
                "image_id": image,
                "category_id": int(fields["labels"][index]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))),
            }
            if found:
                annotation["score"] = float(fields["scores"][index])
            else:
                annotation |= {
                    "id": len(annotations) + 1,
                    "iscrowd": int(fields["iscrowd"][index]),
                    "area": float(mask.sum()),
                }
            annotations.append(annotation)
    return annotations


def _pycocotools(truth: dict[str, Any], found: list[dict[str, Any]], kind: str, sigmas: Any = None) -> list[float]:
    reference = COCO()
    reference.dataset = truth
    reference.createIndex()
    evaluation = COCOeval(reference, reference.loadRes(found), kind)
    if sigmas is not None:
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:3].tolist()


def test_coco_average_precision_is_pycocotools() -> None:
    _, inputs, _ = CASES["coco_average_precision"]
    result = COCOAveragePrecision(kinds=("box", "mask")).compute(**inputs)
    truth = {
        "images": [{"id": image + 1, "height": 40, "width": 40} for image in range(IMAGES)],
        "categories": [{"id": index, "name": str(index)} for index in range(1, 8)],
        "annotations": _coco(inputs["references"], 40, found=False),
    }
    assert sum(annotation["iscrowd"] for annotation in truth["annotations"])  # crowds take part
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        expected = _pycocotools(truth, _coco(inputs["predictions"], 40, found=True), iou_type)
        assert 0.05 < expected[0] < 0.95
        values = [result[f"{kind}_ap{suffix}"] for suffix in ("", "50", "75")]
        np.testing.assert_allclose(values, expected, atol=1e-9)
        alone = COCOAveragePrecision(kinds=(kind,)).compute(**inputs)
        assert list(alone) == [f"{kind}_ap", f"{kind}_ap50", f"{kind}_ap75"]
        assert list(alone.values()) == values


def test_coco_average_precision_of_the_example_in_torchmetrics_documentation() -> None:
    found = {"boxes": [[258.0, 41.0, 606.0, 285.0]], "scores": [0.536], "labels": [0]}
    truth = {"boxes": [[214.0, 41.0, 562.0, 285.0]], "labels": [0]}
    # IoU (562 - 258) / (606 - 214) = 0.776: over 6 of the 10 thresholds
    expected = {"box_ap": pytest.approx(0.6), "box_ap50": pytest.approx(1.0), "box_ap75": pytest.approx(1.0)}
    assert COCOAveragePrecision().compute(predictions=[found], references=[truth]) == expected
    by_size = [{**image, "boxes": [[x, y, u - x, v - y] for x, y, u, v in image["boxes"]]} for image in (found, truth)]
    metric = COCOAveragePrecision(box_format="xywh")
    assert metric.compute(predictions=by_size[:1], references=by_size[1:]) == expected


def test_what_is_found_in_images_without_objects_is_wrong() -> None:
    """The better of two detections is where nothing is: precision 1 / 2 at every recall (torchmetrics' masks say 1)."""
    one = {"boxes": [[0, 0, 4, 4]], "labels": [0], "masks": np.ones((1, 4, 4), dtype=bool)}
    none = {"boxes": [], "labels": [], "masks": []}
    found = [{**one, "scores": [0.5]}, {**one, "scores": [0.9]}]
    for kind in ("box", "mask"):
        result = COCOAveragePrecision(kinds=(kind,)).compute(predictions=found, references=[one, none])
        assert result[f"{kind}_ap"] == pytest.approx(0.5)
    crowd = {**one, "iscrowd": [1]}  # but in a crowd it is not
    result = COCOAveragePrecision(kinds=("box", "mask")).compute(predictions=found, references=[one, crowd])
    assert result["box_ap"] == result["mask_ap"] == pytest.approx(1.0)


def test_average_precision_where_there_is_nothing() -> None:
    none = {"boxes": [], "labels": [], "masks": np.zeros((0, 8, 8), dtype=bool)}
    one = {"boxes": [[1, 1, 5, 5]], "labels": [2], "masks": np.ones((1, 8, 8), dtype=bool)}
    metric = COCOAveragePrecision(kinds=("box", "mask"))
    result = metric.compute(predictions=[{**none, "scores": []}], references=[one])
    assert result["box_ap"] == result["mask_ap"] == 0
    for found in ({**none, "scores": []}, {**one, "scores": [0.5]}):
        result = metric.compute(predictions=[found], references=[none])
        assert all(math.isnan(value) for value in result.values())
    people = KeypointAveragePrecision(sigmas=(0.1,))
    person = {"keypoints": [[[1, 1, 2]]], "area": [4.0]}
    assert people.compute(predictions=[{"keypoints": [], "scores": []}], references=[person])["keypoint_ap"] == 0
    for found in ({"keypoints": [], "scores": []}, {"keypoints": [[[1, 1]]], "scores": [0.5]}):
        result = people.compute(predictions=[found], references=[{"keypoints": [], "area": []}])
        assert all(math.isnan(value) for value in result.values())


def test_keypoint_average_precision_is_pycocotools() -> None:
    kwargs, inputs, _ = CASES["keypoint_average_precision"]
    result = KeypointAveragePrecision(**kwargs).compute(**inputs)
    found, people = [], []
    for image, (guess, truth) in enumerate(zip(inputs["predictions"], inputs["references"], strict=True), start=1):
        for points, score in zip(guess["keypoints"], guess["scores"], strict=True):
            points = np.concatenate([points, np.ones((5, 1))], axis=1)
            found.append({"image_id": image, "category_id": 1, "keypoints": points.ravel().tolist(), "score": score})
        for index in range(len(truth["area"])):
            people.append(
                {
                    "id": len(people) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "keypoints": truth["keypoints"][index].ravel().tolist(),
                    "num_keypoints": int((truth["keypoints"][index, :, 2] > 0).sum()),
                    "area": float(truth["area"][index]),
                    "bbox": truth["boxes"][index].tolist(),
                    "iscrowd": int(truth["iscrowd"][index]),
                }
            )
    images = [{"id": image + 1} for image in range(IMAGES)]
    dataset = {"images": images, "categories": [{"id": 1, "name": "person"}], "annotations": people}
    expected = _pycocotools(dataset, found, "keypoints", sigmas=kwargs["sigmas"])
    assert 0.05 < expected[0] < 0.95
    np.testing.assert_allclose(list(result.values()), expected, atol=1e-9)
    np.testing.assert_allclose(KeypointAveragePrecision().sigmas, COCOeval(iouType="keypoints").params.kpt_oks_sigmas)


def test_keypoint_similarity_by_hand() -> None:
    """One of two labelled keypoints is off so that its part is exp(-1/2): OKS 0.80, over 7 of the 10 thresholds."""
    sigma, area = 0.1, 100.0
    off = 2 * sigma * math.sqrt(area)  # exp(-d^2 / (2 area (2 sigma)^2)) at d = 2 sigma sqrt(area)
    found = {"keypoints": [[[10 + off, 10], [20, 20], [99, 99]]], "scores": [0.9]}
    truth = {"keypoints": [[[10, 10, 2], [20, 20, 1], [0, 0, 0]]], "area": [area]}
    result = KeypointAveragePrecision(sigmas=(sigma,) * 3).compute(predictions=[found], references=[truth])
    assert (1 + math.exp(-0.5)) / 2 == pytest.approx(0.803, abs=1e-3)
    assert result == {
        "keypoint_ap": pytest.approx(0.7),
        "keypoint_ap50": pytest.approx(1.0),
        "keypoint_ap75": pytest.approx(1.0),
    }


def test_boundary_measure_of_shifted_halves_by_hand() -> None:
    """In 100 x 100 pixels the tolerance is 0.008 * 141.4 = 1.13, so 2 pixels: edges 2 apart agree, 3 apart do not."""
    columns = np.arange(100)[None].repeat(100, axis=0)
    for shift, expected in ((0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0), (20, 0.0)):
        assert boundary_measure(columns < 50 + shift, columns < 50) == expected, shift
        assert region_similarity(columns < 50 + shift, columns < 50) == 50 / (50 + shift)
    # a strip of 10 columns has edges at 49 and 59; one of 30 columns at 49 and 79: half of each is found
    assert boundary_measure((columns > 49) & (columns < 80), (columns > 49) & (columns < 60)) == 0.5
    wide = np.zeros((100, 100), dtype=bool)
    wide[:, :50] = True
    empty = np.zeros_like(wide)
    assert boundary_measure(empty, empty) == region_similarity(empty, empty) == 1
    assert boundary_measure(empty, wide) == boundary_measure(wide, empty) == region_similarity(empty, wide) == 0


def _slow_edges(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    edges = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            around = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            edges[y, x] = any(mask[v, u] != mask[y, x] for v, u in around if v < height and u < width)
    return edges


@pytest.mark.parametrize("seed", range(4))
def test_j_and_f_by_slow_formulas(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (70, 130 + 60 * seed)  # tolerances of 2 and 3 pixels
    noise = [torch.nn.functional.interpolate(torch.tensor(generator.normal(size=(1, 1, 6, 9))), shape) for _ in "ab"]
    first, second = ((n + 0.8 * noise[0] > 0.1)[0, 0].numpy() for n in noise)
    radius = math.ceil(0.008 * math.hypot(*shape))
    f, t = _slow_edges(first), _slow_edges(second)
    precision = (f & dilation(t, disk(radius))).sum() / f.sum()
    recall = (t & dilation(f, disk(radius))).sum() / t.sum()
    assert 0.05 < precision < 1
    assert boundary_measure(first, second) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
    points, others = np.argwhere(f), np.argwhere(t)
    near = (((points[:, None] - others[None]) ** 2).sum(axis=-1) <= radius**2).any(axis=1).mean()
    assert near == pytest.approx(precision)
    assert region_similarity(first, second) == (first & second).sum() / (first | second).sum()


def test_j_and_f_averages_frames_then_objects() -> None:
    (guess, *_), (truth, *_) = _videos(np.random.default_rng(6))
    two_guess, two_truth = (videos[1] for videos in _videos(np.random.default_rng(7)))
    result = JAndF().compute(predictions=[guess, two_guess], references=[truth, two_truth])
    expected = []
    for g, t, index in ((guess, truth, 1), (two_guess, two_truth, 1), (two_guess, two_truth, 2)):
        frames = [((g[k] == index) & (t[k] != 255), t[k] == index) for k in (1, 2, 3)]  # neither the first nor the last
        expected.append([np.mean([measure(*f) for f in frames]) for measure in (region_similarity, boundary_measure)])
    j, f = np.array(expected).T
    assert result["j_per_object"] == pytest.approx(j)
    assert result["f_per_object"] == pytest.approx(f)
    assert result["j_mean"] == pytest.approx(j.mean())
    assert result["f_mean"] == pytest.approx(f.mean())
    assert result["j_and_f_mean"] == pytest.approx((j.mean() + f.mean()) / 2)
    whole = JAndF(inner_frames_only=False).compute(predictions=[guess], references=[truth])
    frames = [region_similarity((g == 1) & (t != 255), t == 1) for g, t in zip(guess, truth, strict=True)]
    assert whole["j_mean"] == pytest.approx(np.mean(frames))
    perfect = JAndF().compute(predictions=[np.where(truth == 255, 1, truth)], references=[truth])
    assert perfect["j_and_f_mean"] == 1  # what is predicted where a pixel does not count is no error
    other_id = JAndF().compute(predictions=[np.where(guess == 1, 7, guess)], references=[truth])
    assert other_id["j_mean"] == other_id["f_mean"] == 0


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


def test_inputs_that_are_missing_or_unknown_are_named() -> None:
    metric = DepthErrors()
    with pytest.raises(ValueError, match="depth_errors needs predictions and references, references did not come"):
        metric.add_batch(predictions=np.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="knows no input 'mask'; it takes predictions, references, valid"):
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
