"""Average precision of objects against pycocotools, and by hand."""

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_geossl.evaluation.metrics import COCOAveragePrecision, KeypointAveragePrecision
from tests.helpers.metric_cases import CASES, IMAGES


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
    _, inputs = CASES["coco_average_precision"]
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


def test_resampled_images_have_the_numbers_of_these_images_matched_anew() -> None:
    kwargs, inputs = CASES["coco_average_precision"]
    metric = COCOAveragePrecision(**kwargs)
    rows = metric.rows_of(**inputs)
    resample, generator = metric.resampler(rows), np.random.default_rng(0)
    for _ in range(8):
        images = generator.integers(len(rows), size=len(rows))
        assert resample(images) == pytest.approx(metric.summarize([rows[index] for index in images]), nan_ok=True)
    assert resample(None) == metric.summarize(rows)
