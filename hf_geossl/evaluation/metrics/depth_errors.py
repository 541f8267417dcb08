"""Errors of depth estimation: mean absolute relative error, root mean square error, and the share of pixels within a factor
of 1.25.

As on NYU Depth v2 and KITTI: pixels count whose reference lies between `minimum` and `cap`; predictions are clipped to that
range; each image's errors are means over its pixels, and images are averaged with equal weight.
"""

from typing import Any

import numpy as np
import torch
from torchmetrics.functional import mean_absolute_percentage_error, mean_squared_error

from hf_geossl.evaluation.metrics.inputs import check_shape, pairs, to_array
from hf_geossl.evaluation.metrics.streaming import Boolean, Number, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: Depths of shape `(images, height, width)`, in the references' unit (metres); or a list of maps of shape
        `(height, width)`, of one size or several.
    references: Depths of the same sizes; 0, NaN and infinity mean that a pixel has none.
    valid: True where a pixel may count (a crop, say), of the same sizes. All may by default.

Returns:
    `abs_rel`, `rmse` (in the references' unit), `delta1` (in 0..1): means over images that have a pixel that counts, NaN
    where none has; `images`: how many those are.
"""
_SOURCE = (
    "Eigen et al., Depth Map Prediction from a Single Image using a Multi-Scale Deep Network, NIPS 2014, section 4.3."
)
_KEYS = ("abs_rel", "rmse", "delta1")


class DepthErrors(StreamingMetric):
    """AbsRel and RMSE by torchmetrics, delta1 by its formula (max(prediction / reference, reference / prediction) < 1.25).

    Args:
        minimum (`float`): Depths up to this do not count. Defaults to 0.001.
        cap (`float`): Depths from this on do not count: 10 m on NYU Depth v2, 80 m on KITTI. Defaults to 10.
        kwargs: Of `evaluate.Metric`.

    Raises:
        ValueError: If not 0 < minimum < cap, or in `add_batch` if sizes differ or a prediction that counts is NaN.
    """

    def __init__(self, minimum: float = 1e-3, cap: float = 10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check_range(minimum, cap)
        self.minimum = minimum
        self.cap = cap
        self.reset()

    def _info(self) -> Any:
        depth = nested(Number, 2)
        return describe(
            __doc__, _INPUTS, {"predictions": depth, "references": depth, "valid": nested(Boolean, 2)}, source=_SOURCE
        )

    def reset(self) -> None:
        self.errors = torch.zeros(len(_KEYS), dtype=torch.float64)
        self.images = 0

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        counted = _counted(predictions, references, inputs.get("valid"), self.minimum, self.cap)
        for guess, truth in (pair for pair in counted if len(pair[0])):
            depth, true_depth = torch.from_numpy(guess), torch.from_numpy(truth)
            factor = torch.maximum(depth / true_depth, true_depth / depth)
            self.errors += torch.stack(
                [
                    mean_absolute_percentage_error(depth, true_depth),
                    mean_squared_error(depth, true_depth, squared=False),
                    (factor < 1.25).double().mean(),
                ]
            )
            self.images += 1

    def result(self) -> dict[str, Any]:
        means = (self.errors / self.images).tolist()  # 0 / 0 is NaN
        return {**dict(zip(_KEYS, means, strict=True)), "images": self.images}


def sums_of(
    predictions: Any, references: Any, *, valid: Any = None, minimum: float = 1e-3, cap: float = 10.0
) -> np.ndarray:
    """What the errors add up over images, for bootstrapping.

    Args:
        predictions, references, valid, minimum, cap: See [`DepthErrors`].

    Returns:
        `np.ndarray` of float64, of shape `(images, 4)`: AbsRel, RMSE and delta1 of the image, and 1; all 0 where no pixel
        counts.

    Raises:
        ValueError: See [`DepthErrors`].
    """
    _check_range(minimum, cap)
    counted = _counted(predictions, references, valid, minimum, cap)
    sums = np.zeros((len(counted), 4))
    for row, (depth, truth) in zip(sums, counted, strict=True):
        if len(depth):
            error = depth - truth
            within = np.maximum(depth / truth, truth / depth) < 1.25
            row[:] = (np.abs(error) / truth).mean(), np.sqrt((error**2).mean()), within.mean(), 1
    return sums


def summarize(sums: np.ndarray) -> dict[str, float]:
    """Args:
        sums (`np.ndarray` of shape `(4,)`): Sum over images of the rows of [`sums_of`].

    Returns:
        `dict[str, float]`: [`DepthErrors`]'s numbers, without the count.
    """
    return {key: float(sums[i] / sums[3]) if sums[3] else float("nan") for i, key in enumerate(_KEYS)}


def _check_range(minimum: float, cap: float) -> None:
    if not 0 < minimum < cap:
        raise ValueError(f"minimum and cap must be 0 < minimum < cap, got {minimum} and {cap}")


def _counted(
    predictions: Any, references: Any, valid: Any, minimum: float, cap: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Depths and true depths of each image's pixels that count."""
    maps = pairs(predictions, references)
    masks = [None] * len(maps) if valid is None else valid
    if len(masks) != len(maps):
        raise ValueError(f"valid must hold a mask for each image, got {len(masks)} for {len(maps)}")
    counted = []
    for (prediction, reference), mask in zip(maps, masks, strict=True):
        truth = to_array("references", reference).astype(np.float64)
        check_shape("references", truth, (None, None))
        depth = to_array("predictions", prediction).astype(np.float64)
        check_shape("predictions", depth, truth.shape)
        counts = (truth > minimum) & (truth < cap)  # False for NaN
        if mask is not None:
            allowed = to_array("valid", mask)
            check_shape("valid", allowed, truth.shape)
            counts &= allowed.astype(bool)
        if np.isnan(depth[counts]).any():
            raise ValueError(
                f"predictions must be numbers where the reference counts, got {int(np.isnan(depth[counts]).sum())} NaN"
            )
        counted.append((np.clip(depth[counts], minimum, cap), truth[counts]))
    return counted
