"""Average precision of keypoints against pycocotools, and by hand."""

import math
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_geossl.evaluation.metrics import (
    KeypointAveragePrecision,
)
from tests.helpers.metric_cases import CASES, IMAGES


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


def test_keypoint_average_precision_is_pycocotools() -> None:
    kwargs, inputs = CASES["keypoint_average_precision"]
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


def test_resampled_images_have_the_numbers_of_these_images_matched_anew() -> None:
    kwargs, inputs = CASES["keypoint_average_precision"]
    metric = KeypointAveragePrecision(**kwargs)
    rows = metric.rows_of(**inputs)
    resample, generator = metric.resampler(rows), np.random.default_rng(0)
    for _ in range(8):
        images = generator.integers(len(rows), size=len(rows))
        assert resample(images) == pytest.approx(metric.summarize([rows[index] for index in images]), nan_ok=True)
    assert resample(None) == metric.summarize(rows)
