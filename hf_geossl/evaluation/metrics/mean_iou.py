"""Mean intersection over union of semantic segmentation, with pixel accuracy and mean class accuracy.

Pixels of all images are counted together (not image by image). As in mmsegmentation and in `evaluate`'s own mean_iou,
a class that is in neither truth nor prediction is left out of the mean IoU (one that is only predicted counts as 0), and a
class that is not in the truth is left out of the mean accuracy. Pixels whose truth is `ignore_index` count nowhere.
"""

from typing import Any, ClassVar

import numpy as np

from .metric import Features, Integer, SummedMetric, mean_of_known, nested, pairs, shares, to_integers


class MeanIoU(SummedMetric):
    """Mean IoU, pixel accuracy and mean class accuracy of the pixels of all images.

    (`torchmetrics.segmentation.MeanIoU` takes the mean of each image, which is another number.)

    Args:
        num_classes (`int`): 2 or more.
        ignore_index (`int`): The label of pixels that do not count, outside 0..num_classes-1 or one of them. Defaults to
            255.

    Raises:
        ValueError: If num_classes is below 2, or in `add_batch` if sizes differ or labels lie outside.
    """

    image_features: ClassVar[Features] = {"predictions": nested(Integer, 2), "references": nested(Integer, 2)}
    inputs = """
Args:
    predictions: Maps of classes of shape `(images, height, width)`, in 0..num_classes-1; or a list of maps of shape
        `(height, width)`, of one size or several.
    references: Maps of the same sizes, which may also hold `ignore_index`.

Returns:
    `mean_iou`, `pixel_accuracy` (aAcc), `mean_class_accuracy` (mAcc), in 0..1 and NaN where every pixel is ignored;
    `iou_per_class`, `accuracy_per_class`: lists, NaN for classes that are left out.
"""
    source = (
        "Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010; Long et al., CVPR 2015, section 4."
    )

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more, got {num_classes}")
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def rows_of(self, predictions: object, references: object) -> np.ndarray:
        """Each image's confusion matrix in pixels, truth by prediction, int32, `(images, num_classes * num_classes)`."""
        maps = pairs(predictions, references)
        rows = np.zeros((len(maps), self.num_classes**2), dtype=np.int32)
        for row, (prediction, reference) in zip(rows, maps, strict=True):
            truth = to_integers("references", reference, (None, None), self.num_classes, besides=self.ignore_index)
            guess = to_integers("predictions", prediction, truth.shape, self.num_classes)
            counted = truth != self.ignore_index
            cells = self.num_classes * truth[counted] + guess[counted]
            row += np.bincount(cells, minlength=self.num_classes**2).astype(np.int32)
        return rows

    def summarize(self, total: np.ndarray) -> dict[str, float]:
        """See `SummedMetric`."""
        iou, accuracy, right = self._by_class(total)
        return {"mean_iou": mean_of_known(iou), "pixel_accuracy": right, "mean_class_accuracy": mean_of_known(accuracy)}

    def details(self, total: np.ndarray) -> dict[str, Any]:
        """See `Metric`."""
        iou, accuracy, _ = self._by_class(total)
        return {"iou_per_class": iou.tolist(), "accuracy_per_class": accuracy.tolist()}

    def _by_class(self, total: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """IoU and accuracy of each class, and the share of pixels that are right."""
        confusion = np.asarray(total, dtype=np.float64).reshape(self.num_classes, self.num_classes)
        truth, predicted, hits = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
        right = float(hits.sum() / truth.sum()) if truth.any() else float("nan")
        return shares(hits, truth + predicted - hits), shares(hits, truth), right
