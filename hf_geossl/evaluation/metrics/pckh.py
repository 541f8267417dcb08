"""PCKh: the share of visible body joints that are found within a fraction of the head's size.

As on MPII, all visible joints of all people are counted together. MPII's own mean leaves out pelvis and thorax: set them
invisible; its head size is 0.6 times the diagonal of the head box.
"""

from typing import Any

import numpy as np

from hf_geossl.evaluation.metrics.inputs import check_shape, to_array, to_floats
from hf_geossl.evaluation.metrics.streaming import Boolean, Number, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: Joints, x and y in pixels, of shape `(people, joints, 2)`.
    references: True joints, of the same shape.
    head_sizes: In pixels, above 0, of shape `(people,)`.
    visible: True where a joint counts, of shape `(people, joints)`. All count by default.

Returns:
    `pckh`, in 0..1 and NaN where no joint is visible; `pckh_per_joint`: a list, NaN for a joint that nobody shows.
"""
_SOURCE = (
    "Andriluka et al., 2D Human Pose Estimation: New Benchmark and State of the Art Analysis, CVPR 2014, section 4."
)


class PCKh(StreamingMetric):
    """Share of joints whose distance is at most `threshold` head sizes.

    Args:
        threshold (`float`): In head sizes, above 0. Defaults to 0.5 (PCKh@.5).
        kwargs: Of `evaluate.Metric`.

    Raises:
        ValueError: If threshold is not above 0, or in `add_batch` if shapes differ, a visible joint or a head size is not
            finite, or a head size is not above 0.
    """

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if threshold <= 0:
            raise ValueError(f"threshold must be above 0, got {threshold}")
        self.threshold = threshold
        self.reset()

    def _info(self) -> Any:
        joints = nested(Number, 2)
        features = {"predictions": joints, "references": joints, "head_sizes": Number, "visible": nested(Boolean, 1)}
        return describe(__doc__, _INPUTS, features, source=_SOURCE)

    def reset(self) -> None:
        self.sums: np.ndarray | None = None

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        if "head_sizes" not in inputs:
            raise ValueError("pckh needs head_sizes, one a person, in pixels")
        sums = sums_of(predictions, references, threshold=self.threshold, **inputs).sum(axis=0)
        if self.sums is not None and len(self.sums) != len(sums):
            raise ValueError(f"references must have {len(self.sums) // 2} joints as before, got {len(sums) // 2}")
        self.sums = sums if self.sums is None else self.sums + sums

    def result(self) -> dict[str, Any]:
        assert self.sums is not None
        found, shown = self.sums.reshape(2, -1)
        per_joint = np.divide(found, shown, out=np.full(len(shown), np.nan), where=shown > 0)
        return {**summarize(self.sums), "pckh_per_joint": per_joint.tolist()}


def sums_of(
    predictions: Any, references: Any, *, head_sizes: Any, visible: Any = None, threshold: float = 0.5
) -> np.ndarray:
    """What PCKh adds up over people, for bootstrapping.

    Args:
        predictions, references, head_sizes, visible, threshold: See [`PCKh`].

    Returns:
        `np.ndarray` of float64, of shape `(people, 2 * joints)`: joints found, joints visible.

    Raises:
        ValueError: See [`PCKh`].
    """
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
    found = (distance <= threshold * sizes[:, None]) * shown
    return np.concatenate([found, shown], axis=1)


def summarize(sums: np.ndarray) -> dict[str, float]:
    """Args:
        sums (`np.ndarray` of shape `(2 * joints,)`): Sum over people of the rows of [`sums_of`].

    Returns:
        `dict[str, float]`: [`PCKh`]'s number, without the list.
    """
    found, shown = sums.reshape(2, -1).sum(axis=1)
    return {"pckh": float(found / shown) if shown else float("nan")}
