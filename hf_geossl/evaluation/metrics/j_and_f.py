"""J and F of video object segmentation (DAVIS).

Region similarity J is the IoU of an object's mask in a frame, contour accuracy F the F-measure of its boundary; both are
averaged over frames, then over the objects of all videos.

A boundary pixel is right if the other boundary comes within `tolerance` image diagonals, rounded up to pixels (dilation with
a disk, the benchmark's stand-in for matching boundary points). An object that is neither in truth nor in prediction has J =
F = 1 in that frame.
"""

import math
from typing import Any, ClassVar

import numpy as np
from scipy import ndimage

from .metric import Features, Integer, Metric, check_shape, nested, pairs, to_array


class JAndF(Metric[list[np.ndarray]]):
    """J, F and their mean.

    Args:
        inner_frames_only (`bool`): Leave out the first frame (it is given) and the last, as DAVIS 2017 does in its
            semi-supervised evaluation. Defaults to True.
        tolerance (`float`): Of the boundary, in image diagonals, 0 or more. Defaults to 0.008.
        ignore_index (`int`): The reference's label of pixels that do not count. Defaults to 255.

    Raises:
        ValueError: If tolerance is below 0, or in `add_batch` if shapes differ or a video has no frame to evaluate.
    """

    image_features: ClassVar[Features] = {"predictions": nested(Integer, 3), "references": nested(Integer, 3)}
    inputs = """
Args:
    predictions: A list of videos, each a map of object ids of shape `(frames, height, width)`; 0 is background.
    references: True ids, of the same shapes; `ignore_index` where a pixel does not count. The objects of a video are the
        ids that its references hold in any frame (ids that only a prediction holds are background).

Returns:
    `j_and_f_mean`, `j_mean`, `f_mean`, in 0..1, NaN without objects; `j_per_object`, `f_per_object`: lists, video by video,
    by id.
"""
    source = (
        "Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016, "
        "section 5.1; Pont-Tuset et al., The 2017 DAVIS Challenge on Video Object Segmentation, 2017."
    )

    def __init__(
        self, inner_frames_only: bool = True, tolerance: float = 0.008, ignore_index: int = 255, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        if tolerance < 0:
            raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
        self.inner_frames_only, self.tolerance, self.ignore_index = inner_frames_only, tolerance, ignore_index

    def rows_of(self, predictions: object, references: object) -> list[np.ndarray]:
        """J and F of each video's objects, `(objects, 2)`."""
        return [self._objects(*video) for video in pairs(predictions, references)]

    def summarize(self, total: list[np.ndarray]) -> dict[str, float]:
        """See `Metric`."""
        objects = np.concatenate(total)
        j, f = objects.mean(axis=0).tolist() if len(objects) else (float("nan"), float("nan"))
        return {"j_and_f_mean": (j + f) / 2, "j_mean": j, "f_mean": f}

    def details(self, total: list[np.ndarray]) -> dict[str, Any]:
        """See `Metric`."""
        j, f = np.concatenate(total).T
        return {"j_per_object": j.tolist(), "f_per_object": f.tolist()}

    def _objects(self, prediction: object, reference: object) -> np.ndarray:
        truth = to_array("references", reference)
        check_shape("references", truth, (None, None, None))
        guess = to_array("predictions", prediction)
        check_shape("predictions", guess, truth.shape)
        for name, ids in (("references", truth), ("predictions", guess)):
            if ids.dtype.kind not in "bui":
                raise ValueError(f"{name} must be integer object ids, got {ids.dtype}")
        objects = [index for index in np.unique(truth).tolist() if index not in (0, self.ignore_index)]
        if self.inner_frames_only:
            truth, guess = truth[1:-1], guess[1:-1]
        if not len(truth):
            raise ValueError(
                "references must have frames to evaluate, got none; with inner_frames_only 3 or more are needed"
            )
        counts = truth != self.ignore_index
        result = np.zeros((len(objects), 2))
        for row, index in zip(result, objects, strict=True):
            masks = [((g == index) & c, (t == index) & c) for g, t, c in zip(guess, truth, counts, strict=True)]
            row[0] = np.mean([region_similarity(*pair) for pair in masks])
            row[1] = np.mean([boundary_measure(*pair, tolerance=self.tolerance) for pair in masks])
        return result


def region_similarity(prediction: np.ndarray, reference: np.ndarray) -> float:
    """J of an object's two masks in a frame, `(height, width)` of bool: their IoU; 1 where both are empty."""
    union = int((prediction | reference).sum())
    return float((prediction & reference).sum() / union) if union else 1.0


def boundary_measure(prediction: np.ndarray, reference: np.ndarray, tolerance: float = 0.008) -> float:
    """F of an object's two masks in a frame: the F-measure of their boundaries, within a tolerance in image diagonals.

    It is 1 where neither mask has a boundary, and 0 where one has none.
    """
    radius = math.ceil(tolerance * math.hypot(*reference.shape))
    edge, true_edge = _boundary(prediction), _boundary(reference)
    if not edge.any() or not true_edge.any():
        return float(edge.any() == true_edge.any())
    # within a disk of the other boundary: what dilating that one covers, by its distance transform
    precision = (ndimage.distance_transform_edt(~true_edge)[edge] <= radius).mean()
    recall = (ndimage.distance_transform_edt(~edge)[true_edge] <= radius).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one to the right, below, or below to the right."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
