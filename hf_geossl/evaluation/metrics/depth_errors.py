"""Errors of depth estimation: absolute relative, root mean square, and the share of pixels within a factor of 1.25.

As on NYU Depth v2 and KITTI: pixels count whose reference lies between `minimum` and `cap`; predictions are clipped to that
range; each image's errors are means over its pixels, and images are averaged with equal weight.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .metric import Boolean, Features, Number, SummedMetric, check_shape, nested, pairs, to_array


class DepthErrors(SummedMetric):
    """AbsRel, RMSE and delta1 (the share of pixels with max(prediction / reference, reference / prediction) < 1.25).

    Args:
        minimum (`float`): Depths up to this do not count. Defaults to 0.001.
        cap (`float`): Depths from this on do not count: 10 m on NYU Depth v2, 80 m on KITTI. Defaults to 10.

    Raises:
        ValueError: If not 0 < minimum < cap, or in `add_batch` if sizes differ or a prediction that counts is NaN.
    """

    image_features: ClassVar[Features] = {
        "predictions": nested(Number, 2),
        "references": nested(Number, 2),
        "valid": nested(Boolean, 2),
    }
    inputs = """
Args:
    predictions: Depths of shape `(images, height, width)`, in the references' unit (metres); or a list of maps of shape
        `(height, width)`, of one size or several.
    references: Depths of the same sizes; 0, NaN and infinity mean that a pixel has none.
    valid: True where a pixel may count (a crop, say), of the same sizes. All may by default.

Returns:
    `abs_rel`, `rmse` (in the references' unit), `delta1` (in 0..1): means over images that have a pixel that counts, NaN
    where none has; `images`: how many those are.
"""
    source = "Eigen et al., Depth Map Prediction from a Single Image using a Multi-Scale Deep Network, NIPS 2014, section 4.3."

    def __init__(self, minimum: float = 1e-3, cap: float = 10.0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if not 0 < minimum < cap:
            raise ValueError(f"minimum and cap must be 0 < minimum < cap, got {minimum} and {cap}")
        self.minimum, self.cap = minimum, cap

    def rows_of(
        self, predictions: object, references: object, valid: Sequence[object] | np.ndarray | None = None
    ) -> np.ndarray:
        """AbsRel, RMSE and delta1 of the image, and 1, `(images, 4)`; all 0 where no pixel counts."""
        maps = pairs(predictions, references)
        masks: Sequence[object] | np.ndarray = [None] * len(maps) if valid is None else valid
        if len(masks) != len(maps):
            raise ValueError(f"valid must hold a mask for each image, got {len(masks)} for {len(maps)}")
        rows = np.zeros((len(maps), 4))
        for row, (prediction, reference), mask in zip(rows, maps, masks, strict=True):
            depth, truth = self._counted(prediction, reference, mask)
            if len(depth):
                error = depth - truth
                within = np.maximum(depth / truth, truth / depth) < 1.25
                row[:] = (np.abs(error) / truth).mean(), np.sqrt((error**2).mean()), within.mean(), 1
        return rows

    def summarize(self, total: np.ndarray) -> dict[str, float]:
        """See `SummedMetric`."""
        means = total[:3] / total[3] if total[3] else np.full(3, np.nan)
        return dict(zip(("abs_rel", "rmse", "delta1"), means.tolist(), strict=True))

    def details(self, total: np.ndarray) -> dict[str, Any]:
        """See `Metric`."""
        return {"images": int(total[3])}

    def _counted(self, prediction: object, reference: object, mask: object) -> tuple[np.ndarray, np.ndarray]:
        """Depths and true depths of an image's pixels that count."""
        truth = to_array("references", reference).astype(np.float64)
        check_shape("references", truth, (None, None))
        depth = to_array("predictions", prediction).astype(np.float64)
        check_shape("predictions", depth, truth.shape)
        counts = (truth > self.minimum) & (truth < self.cap)  # False for NaN
        if mask is not None:
            allowed = to_array("valid", mask)
            check_shape("valid", allowed, truth.shape)
            counts &= allowed.astype(bool)
        if np.isnan(depth[counts]).any():
            raise ValueError(
                f"predictions must be numbers where the reference counts, got {int(np.isnan(depth[counts]).sum())} NaN"
            )
        return np.clip(depth[counts], self.minimum, self.cap), truth[counts]
