"""Mean intersection over union of semantic segmentation, with pixel accuracy and mean class accuracy.

Pixels of all images are counted together (not image by image). As in mmsegmentation and in `evaluate`'s own mean_iou,
a class that is in neither truth nor prediction is left out of the mean IoU (one that is only predicted counts as 0), and a
class that is not in the truth is left out of the mean accuracy. Pixels whose truth is `ignore_index` count nowhere.
"""

import math
from typing import Any

import numpy as np
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from hf_geossl.evaluation.metrics.inputs import pairs, to_integers
from hf_geossl.evaluation.metrics.streaming import Integer, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: Maps of classes of shape `(images, height, width)`, in 0..num_classes-1; or a list of maps of shape
        `(height, width)`, of one size or several.
    references: Maps of the same sizes, which may also hold `ignore_index`.

Returns:
    `mean_iou`, `pixel_accuracy` (aAcc), `mean_class_accuracy` (mAcc), in 0..1 and NaN where every pixel is ignored;
    `iou_per_class`, `accuracy_per_class`: lists, NaN for classes that are left out.
"""
_SOURCE = "Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010; Long et al., CVPR 2015, section 4."


class MeanIoU(StreamingMetric):
    """Mean IoU, pixel accuracy and mean class accuracy; confusion matrix and IoU by torchmetrics
    (`torchmetrics.segmentation.MeanIoU` takes the mean of each image, which is another number).

    Args:
        num_classes (`int`): 2 or more.
        ignore_index (`int`): The label of pixels that do not count, outside 0..num_classes-1 or one of them. Defaults to
            255.
        kwargs: Of `evaluate.Metric`.

    Raises:
        ValueError: If num_classes is below 2, or in `add_batch` if sizes differ or labels lie outside.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.jaccard = MulticlassJaccardIndex(num_classes, average=None, ignore_index=ignore_index, validate_args=False)

    def _info(self) -> Any:
        return describe(
            __doc__, _INPUTS, {"predictions": nested(Integer, 2), "references": nested(Integer, 2)}, source=_SOURCE
        )

    def reset(self) -> None:
        self.jaccard.reset()

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        maps = _maps(predictions, references, self.num_classes, self.ignore_index)  # all are checked before one counts
        for prediction, reference in maps:
            self.jaccard.update(torch.from_numpy(prediction)[None], torch.from_numpy(reference)[None])

    def result(self) -> dict[str, Any]:
        iou = self.jaccard.compute().double().numpy()
        confusion = self.jaccard.confmat.double().numpy()
        truth, predicted, hits = confusion.sum(1), confusion.sum(0), confusion.diagonal()
        iou[truth + predicted == 0] = np.nan  # torchmetrics says 0
        accuracy = np.divide(hits, truth, out=np.full(len(truth), np.nan), where=truth > 0)
        return {
            "mean_iou": _mean(iou),
            "pixel_accuracy": float(hits.sum() / truth.sum()) if truth.any() else float("nan"),
            "mean_class_accuracy": _mean(accuracy),
            "iou_per_class": iou.tolist(),
            "accuracy_per_class": accuracy.tolist(),
        }


def sums_of(predictions: Any, references: Any, *, num_classes: int, ignore_index: int = 255) -> np.ndarray:
    """Each image's confusion matrix, for bootstrapping.

    Args:
        predictions, references: See [`MeanIoU`].
        num_classes (`int`): 2 or more.
        ignore_index (`int`): See [`MeanIoU`].

    Returns:
        `np.ndarray` of int32, of shape `(images, num_classes * num_classes)`: pixels, truth by prediction.

    Raises:
        ValueError: See [`MeanIoU`].
    """
    maps = _maps(predictions, references, num_classes, ignore_index)
    sums = np.zeros((len(maps), num_classes**2), dtype=np.int32)
    for row, (prediction, reference) in zip(sums, maps, strict=True):
        counted = reference != ignore_index
        row += np.bincount(num_classes * reference[counted] + prediction[counted], minlength=num_classes**2)
    return sums


def summarize(sums: np.ndarray) -> dict[str, float]:
    """Args:
        sums (`np.ndarray` of shape `(num_classes * num_classes,)`): Sum over images of the rows of [`sums_of`].

    Returns:
        `dict[str, float]`: [`MeanIoU`]'s numbers, without the lists.
    """
    num_classes = math.isqrt(len(sums))
    confusion = np.asarray(sums, dtype=np.float64).reshape(num_classes, num_classes)
    truth, hits = confusion.sum(axis=1), confusion.diagonal()
    union = truth + confusion.sum(axis=0) - hits
    return {
        "mean_iou": _mean(hits[union > 0] / union[union > 0]),
        "pixel_accuracy": float(hits.sum() / truth.sum()) if truth.any() else float("nan"),
        "mean_class_accuracy": _mean(hits[truth > 0] / truth[truth > 0]),
    }


def _mean(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN where nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _maps(
    predictions: Any, references: Any, num_classes: int, ignore_index: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    maps = []
    for prediction, reference in pairs(predictions, references):
        truth = to_integers("references", reference, (None, None), num_classes, besides=ignore_index)
        maps.append((to_integers("predictions", prediction, truth.shape, num_classes), truth))
    return maps
