"""J and F of video object segmentation (DAVIS): region similarity J is the IoU of an object's mask in a frame, contour accuracy
F the F-measure of its boundary; both are averaged over frames, then over the objects of all videos.

A boundary pixel is found if the other boundary comes within `tolerance` image diagonals, rounded up to pixels (dilation with
a disk, the benchmark's stand-in for matching boundary points). An object that is neither in truth nor in prediction has J =
F = 1 in that frame.
"""

import math
from typing import Any

import numpy as np
from scipy import ndimage

from hf_geossl.evaluation.metrics.inputs import check_shape, pairs, to_array
from hf_geossl.evaluation.metrics.streaming import Integer, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: A list of videos, each a map of object ids of shape `(frames, height, width)`; 0 is background.
    references: True ids, of the same shapes; `ignore_index` where a pixel does not count. The objects of a video are the
        ids that its references hold in any frame (ids that only a prediction holds are background).

Returns:
    `j_and_f_mean`, `j_mean`, `f_mean`, in 0..1, NaN without objects; `j_per_object`, `f_per_object`: lists, video by video,
    by id.
"""
_SOURCE = (
    "Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016, section 5.1; "
    "Pont-Tuset et al., The 2017 DAVIS Challenge on Video Object Segmentation, 2017."
)


class JAndF(StreamingMetric):
    """J, F and their mean.

    Args:
        inner_frames_only (`bool`): Leave out the first frame (it is given) and the last, as DAVIS 2017 does in its
            semi-supervised evaluation. Defaults to True.
        tolerance (`float`): Of the boundary, in image diagonals, 0 or more. Defaults to 0.008.
        ignore_index (`int`): The reference's label of pixels that do not count. Defaults to 255.
        kwargs: Of `evaluate.Metric`.

    Raises:
        ValueError: If tolerance is below 0, or in `add_batch` if shapes differ or a video has no frame to evaluate.
    """

    def __init__(
        self, inner_frames_only: bool = True, tolerance: float = 0.008, ignore_index: int = 255, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if tolerance < 0:
            raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
        self.options: dict[str, Any] = {
            "inner_frames_only": inner_frames_only,
            "tolerance": tolerance,
            "ignore_index": ignore_index,
        }
        self.reset()

    def _info(self) -> Any:
        return describe(
            __doc__, _INPUTS, {"predictions": nested(Integer, 3), "references": nested(Integer, 3)}, source=_SOURCE
        )

    def reset(self) -> None:
        self.objects: list[tuple[float, float]] = []

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        for video in [_objects(*video, **self.options) for video in pairs(predictions, references)]:
            self.objects += video

    def result(self) -> dict[str, Any]:
        j, f = np.array(self.objects).reshape(-1, 2).T
        return {
            **summarize(np.array([j.sum(), f.sum(), len(j)])),
            "j_per_object": j.tolist(),
            "f_per_object": f.tolist(),
        }


def sums_of(
    predictions: Any,
    references: Any,
    *,
    inner_frames_only: bool = True,
    tolerance: float = 0.008,
    ignore_index: int = 255,
) -> np.ndarray:
    """What J and F add up over videos, for bootstrapping.

    Args:
        predictions, references, inner_frames_only, tolerance, ignore_index: See [`JAndF`].

    Returns:
        `np.ndarray` of float64, of shape `(videos, 3)`: J and F added over the video's objects, and how many those are.

    Raises:
        ValueError: See [`JAndF`].
    """
    options: dict[str, Any] = {
        "inner_frames_only": inner_frames_only,
        "tolerance": tolerance,
        "ignore_index": ignore_index,
    }
    videos = [np.array(_objects(*video, **options)).reshape(-1, 2) for video in pairs(predictions, references)]
    return np.array([[*objects.sum(axis=0), len(objects)] for objects in videos]).reshape(-1, 3)


def summarize(sums: np.ndarray) -> dict[str, float]:
    """Args:
        sums (`np.ndarray` of shape `(3,)`): Sum over videos of the rows of [`sums_of`].

    Returns:
        `dict[str, float]`: [`JAndF`]'s numbers, without the lists.
    """
    j, f = (float(total / sums[2]) if sums[2] else float("nan") for total in sums[:2])
    return {"j_and_f_mean": (j + f) / 2, "j_mean": j, "f_mean": f}


def region_similarity(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Args:
        prediction, reference (`np.ndarray` of bool, of shape `(height, width)`): One object's masks in a frame.

    Returns:
        `float`: Their IoU; 1 where both are empty.
    """
    union = int((prediction | reference).sum())
    return float((prediction & reference).sum() / union) if union else 1.0


def boundary_measure(prediction: np.ndarray, reference: np.ndarray, tolerance: float = 0.008) -> float:
    """Args:
        prediction, reference (`np.ndarray` of bool, of shape `(height, width)`): One object's masks in a frame.
        tolerance (`float`): In image diagonals. Defaults to 0.008.

    Returns:
        `float`: The F-measure of the boundaries; 1 where neither mask has one, 0 where one has none.
    """
    radius = math.ceil(tolerance * math.hypot(*reference.shape))
    found, true = _boundary(prediction), _boundary(reference)
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    # within a disk of the other boundary: what dilating that one covers, by its distance transform
    precision = (ndimage.distance_transform_edt(~true)[found] <= radius).mean()
    recall = (ndimage.distance_transform_edt(~found)[true] <= radius).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one to the right, below, or below to the right."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def _objects(
    prediction: Any, reference: Any, *, inner_frames_only: bool, tolerance: float, ignore_index: int
) -> list[tuple[float, float]]:
    """J and F of each object of a video."""
    truth = to_array("references", reference)
    check_shape("references", truth, (None, None, None))
    guess = to_array("predictions", prediction)
    check_shape("predictions", guess, truth.shape)
    for name, ids in (("references", truth), ("predictions", guess)):
        if ids.dtype.kind not in "bui":
            raise ValueError(f"{name} must be integer object ids, got {ids.dtype}")
    objects = [index for index in np.unique(truth).tolist() if index not in (0, ignore_index)]
    if inner_frames_only:
        truth, guess = truth[1:-1], guess[1:-1]
    if not len(truth):
        raise ValueError(
            "references must have frames to evaluate, got none; with inner_frames_only 3 or more are needed"
        )
    counts = truth != ignore_index
    result = []
    for index in objects:
        masks = [((g == index) & c, (t == index) & c) for g, t, c in zip(guess, truth, counts, strict=True)]
        j = np.mean([region_similarity(*pair) for pair in masks])
        f = np.mean([boundary_measure(*pair, tolerance=tolerance) for pair in masks])
        result.append((float(j), float(f)))
    return result
