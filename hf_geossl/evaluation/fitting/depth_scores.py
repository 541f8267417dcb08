"""The score of predicted depths, and which pixels count."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from hf_geossl.evaluation.fitting.dense_training import Batch
from hf_geossl.evaluation.fitting.segmenters import DenseScore, score_batches
from hf_geossl.evaluation.heads.depth import MINIMUM
from hf_geossl.evaluation.metrics.depth_errors import DepthErrors
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.protocol import TaskResult

EvalCrop = Literal[None, "eigen", "garg"]
# first and last row, first and last column (exclusive), in parts of the map's height and width
EVAL_CROPS = {
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


def check_depth_settings(cap: float, eval_crop: str | None) -> None:
    """Refuses a crop that there is not, and a cap below the smallest depth."""
    if not cap > MINIMUM:
        raise ValueError(f"cap must be above {MINIMUM} metres, got {cap}")
    if eval_crop is not None and eval_crop not in EVAL_CROPS:
        raise ValueError(f"eval_crop must be one of {', '.join(EVAL_CROPS)}, or None, got {eval_crop!r}")


def crop_mask(eval_crop: EvalCrop, height: int, width: int) -> np.ndarray:
    """The pixels that count by a published crop.

    "eigen" is that of NYU Depth v2, rows 45 to 471 and columns 41 to 601 of 480 x 640; "garg" of KITTI, the lower part without
    the sides (Eigen's own crop of KITTI has other shares); None all pixels. The crop is taken in parts of the map's height
    and width, and rounded down.

    Source: Eigen et al., NIPS 2014, as in BTS (arXiv 1907.10326); Garg et al. (arXiv 1603.04992), as in Monodepth
    (arXiv 1609.03677).
    """
    mask = np.zeros((height, width), dtype=bool)
    parts = EVAL_CROPS[eval_crop] if eval_crop else (0, 1, 0, 1)
    # a part such as 471 / 480 of 480 may come out a little below 471
    top, bottom, left, right = (
        int(part * length + 1e-9) for part, length in zip(parts, (height, height, width, width), strict=True)
    )
    mask[top:bottom, left:right] = True
    return mask


@dataclass(frozen=True)
class ScoredDepth(DenseScore):
    """The score of predicted depths."""

    def result(self, options: EvaluationOptions, title: str, details: Mapping[str, Any]) -> TaskResult:
        """That of `DenseScore`; images without a pixel that counts are not counted."""
        result = super().result(options, title, details)
        result.details["images"] = int(self.rows[:, -1].sum())
        return result

    def draw(self, title: str) -> Image.Image:
        """See `DenseScore`."""
        from hf_geossl.evaluation.pictures.images import depth_samples

        return depth_samples(*self.shown, title)


def score_depth(batches: Iterator[Batch], cap: float, eval_crop: EvalCrop) -> ScoredDepth:
    """Measures predicted metres `(batch, height, width)`, see `LinearDepthSettings`."""
    metric = DepthErrors(MINIMUM, cap)

    def rows_of(predicted: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
        valid = np.broadcast_to(crop_mask(eval_crop, *truth.shape[-2:]), truth.shape)
        return metric.rows_of(predicted, truth, valid)

    return ScoredDepth(metric, *score_batches(metric, batches, rows_of))


def mean_log_depth(depths: np.ndarray, cap: float) -> float:
    """The mean logarithm of the metres that count."""
    total, count = 0.0, 0
    for depth in depths:
        logs = np.log(depth[(depth > MINIMUM) & (depth < cap)], dtype=np.float64)
        total, count = total + float(logs.sum()), count + len(logs)
    if count == 0:
        raise ValueError(f"no training pixel has a depth between {MINIMUM} and {cap} metres: check depth_scale and cap")
    return total / count
