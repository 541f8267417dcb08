"""Average precision of keypoint detection as COCO defines it.

That is over object keypoint similarity (OKS) thresholds .50 to .95, with 20 detections an image.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from .coco_average_precision import Annotation, MatchedImages, Row
from .metric import Features, Integer, Metric, Number, check_shape, nested, pairs, to_array, to_floats

COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),  # nose, eyes, ears
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),  # shoulders, elbows, wrists
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),  # hips, knees, ankles
)


class KeypointAveragePrecision(Metric[list[Row]]):
    """OKS AP, AP50 and AP75, by faster-coco-eval.

    Args:
        sigmas (`tuple[float]`): How far annotators stray at each keypoint, relative to the square root of the area. Defaults
            to those of COCO's 17 keypoints.

    Raises:
        ValueError: If a sigma is not above 0, or in `add_batch` if a key is missing, shapes differ or numbers are not finite.
    """

    image_features: ClassVar[Features] = {
        "predictions": {"keypoints": nested(Number, 3), "scores": nested(Number, 1)},
        "references": {
            "keypoints": nested(Number, 3),
            "area": nested(Number, 1),
            "iscrowd": nested(Integer, 1),
            "boxes": nested(Number, 2),
        },
    }
    inputs = """
Args:
    predictions: One dictionary an image: `keypoints`, x and y in pixels, of shape `(people, keypoints, 2)` (a third number
        is not read), and `scores` of shape `(people,)`.
    references: One dictionary an image: `keypoints` of shape `(people, keypoints, 3)`, the third number 0 where a keypoint
        is not labelled, 1 or 2 where it is; `area` of shape `(people,)`, of the person's mask in square pixels; and if
        known `iscrowd` of shape `(people,)` and `boxes` of shape `(people, 4)`, x, y, width and height (which people without
        a labelled keypoint need).

Returns:
    `keypoint_ap`, `keypoint_ap50`, `keypoint_ap75`, in 0..1, NaN where the references hold no labelled keypoint.
"""
    source = (
        "Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014; https://cocodataset.org/#keypoints-eval."
    )

    def __init__(self, sigmas: tuple[float, ...] = COCO_SIGMAS, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.sigmas = to_floats("sigmas", sigmas, (None,))
        if not len(self.sigmas) or (self.sigmas <= 0).any():
            raise ValueError(f"sigmas must be above 0, one a keypoint, got {sigmas}")

    def rows_of(self, predictions: object, references: object) -> list[Row]:
        """People of each image as COCO writes them: predicted, true."""
        return [(self._predicted(people), self._true(truth)) for people, truth in pairs(predictions, references)]

    def summarize(self, total: list[Row]) -> dict[str, float]:
        """See `Metric`."""
        return self.resampler(total)(None)

    def resampler(self, rows: list[Row]) -> Callable[[np.ndarray | None], dict[str, float]]:
        """See `Metric`; people are matched once."""
        matched = MatchedImages(rows, "keypoints", kpt_oks_sigmas=self.sigmas.tolist())
        names = "keypoint_ap", "keypoint_ap50", "keypoint_ap75"
        return lambda images: dict(zip(names, matched.average_precisions(images), strict=True))

    def _predicted(self, people: object) -> list[Annotation]:
        prediction = _checked("predictions", people, ("keypoints", "scores"))
        scores = to_floats("predictions' scores", prediction["scores"], (None,))
        points = self._points("predictions", prediction["keypoints"], len(scores))[..., :2]
        points = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)
        return [
            {"category_id": 1, "keypoints": person.ravel().tolist(), "score": float(score)}
            for person, score in zip(points, scores, strict=True)
        ]

    def _true(self, labelled_people: object) -> list[Annotation]:
        reference = _checked("references", labelled_people, ("keypoints", "area"))
        area = to_floats("references' area", reference["area"], (None,))
        points = self._points("references", reference["keypoints"], len(area))
        check_shape("references' keypoints", points, (len(area), len(self.sigmas), 3))
        crowd = reference.get("iscrowd")
        crowds = np.zeros(len(area)) if crowd is None else to_floats("references' iscrowd", crowd, (len(area),))
        boxes = reference.get("boxes")
        if boxes is not None and len(area):
            boxes = to_floats("references' boxes", boxes, (len(area), 4))
        people = []
        for index, person in enumerate(points):
            labelled = person[person[:, 2] > 0, :2]
            if boxes is not None:
                box = boxes[index].tolist()
            elif len(labelled):  # OKS itself does not read it
                box = [*labelled.min(axis=0).tolist(), *np.ptp(labelled, axis=0).tolist()]
            else:
                raise ValueError("references must have boxes where a person has no labelled keypoint")
            people.append(
                {
                    "category_id": 1,
                    "keypoints": person.ravel().tolist(),
                    "num_keypoints": len(labelled),
                    "area": float(area[index]),
                    "bbox": box,
                    "iscrowd": int(crowds[index]),
                }
            )
        return people

    def _points(self, name: str, value: object, people: int) -> np.ndarray:
        points = to_array(f"{name}' keypoints", value)
        if not points.size:
            points = np.zeros((0, len(self.sigmas), 3))
        check_shape(f"{name}' keypoints", points, (people, len(self.sigmas), None))
        if points.shape[-1] not in (2, 3):
            raise ValueError(f"{name}' keypoints must be x, y and a flag, got {points.shape[-1]} numbers a keypoint")
        return to_floats(f"{name}' keypoints", points, points.shape)


def _checked(name: str, image: object, needed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(image, dict) or not set(needed) <= set(image):
        came = sorted(image) if isinstance(image, dict) else type(image).__name__
        raise ValueError(f"{name} must be a dictionary an image with {' and '.join(needed)}, got {came}")
    return image
