"""PCKh: the share of visible body joints that are predicted within a fraction of the head's size.

As on MPII, all visible joints of all people are counted together. MPII's own mean leaves out pelvis and thorax: set them
invisible; its head size is 0.6 times the diagonal of the head box.
"""

from typing import Any, ClassVar

import numpy as np

from .metric import Boolean, Features, Number, SummedMetric, check_shape, nested, shares, to_array, to_floats


class PCKh(SummedMetric):
    """Share of joints whose distance is at most `threshold` head sizes.

    Args:
        threshold (`float`): In head sizes, above 0. Defaults to 0.5 (PCKh@.5).

    Raises:
        ValueError: If threshold is not above 0, or in `add_batch` if shapes differ, a visible joint or a head size is not
            finite, or a head size is not above 0.
    """

    image_features: ClassVar[Features] = {
        "predictions": nested(Number, 2),
        "references": nested(Number, 2),
        "head_sizes": Number,
        "visible": nested(Boolean, 1),
    }
    inputs = """
Args:
    predictions: Joints, x and y in pixels, of shape `(people, joints, 2)`.
    references: True joints, of the same shape.
    head_sizes: In pixels, above 0, of shape `(people,)`.
    visible: True where a joint counts, of shape `(people, joints)`. All count by default.

Returns:
    `pckh`, in 0..1 and NaN where no joint is visible; `pckh_per_joint`: a list, NaN for a joint that nobody shows.
"""
    source = (
        "Andriluka et al., 2D Human Pose Estimation: New Benchmark and State of the Art Analysis, CVPR 2014, section 4."
    )
    same_columns = "references must have as many joints in every batch"

    def __init__(self, threshold: float = 0.5, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if threshold <= 0:
            raise ValueError(f"threshold must be above 0, got {threshold}")
        self.threshold = threshold

    def rows_of(
        self, predictions: object, references: object, head_sizes: object = None, visible: object = None
    ) -> np.ndarray:
        """Joints that are right, joints that are visible: `np.ndarray` of float64, of shape `(people, 2 * joints)`."""
        if head_sizes is None:
            raise ValueError("pckh needs head_sizes, one a person, in pixels")
        truth = to_array("references", references).astype(np.float64)
        check_shape("references", truth, (None, None, 2))
        guess = to_array("predictions", predictions).astype(np.float64)
        check_shape("predictions", guess, truth.shape)
        sizes = to_floats("head_sizes", head_sizes, (len(truth),))
        if (sizes <= 0).any():
            raise ValueError(f"head_sizes must be above 0, got {sizes.min()}")
        shown = np.ones(truth.shape[:2]) if visible is None else to_array("visible", visible).astype(np.float64)
        check_shape("visible", shown, truth.shape[:2])
        shown = (shown > 0).astype(np.float64)
        distance = np.linalg.norm(guess - truth, axis=-1)
        if not np.isfinite(distance[shown > 0]).all():
            raise ValueError("predictions and references must be finite where a joint is visible, got NaN or infinity")
        right = (distance <= self.threshold * sizes[:, None]) * shown
        return np.concatenate([right, shown], axis=1)

    def summarize(self, total: np.ndarray) -> dict[str, float]:
        """See `SummedMetric`."""
        right, shown = total.reshape(2, -1).sum(axis=1)
        return {"pckh": float(right / shown) if shown else float("nan")}

    def details(self, total: np.ndarray) -> dict[str, Any]:
        """See `Metric`."""
        return {"pckh_per_joint": shares(*total.reshape(2, -1)).tolist()}
