"""
Average precision of object detection and instance segmentation as COCO defines it: over classes and IoU thresholds .50 to
.95, with 100 detections an image.
"""

from typing import Any

import numpy as np
import torch
from torchmetrics.detection import MeanAveragePrecision

from .inputs import check_shape, pairs, to_array, to_floats, to_integers
from .streaming import Boolean, Integer, Number, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: One dictionary an image: `boxes` of shape `(objects, 4)` in pixels, `scores` and `labels` of shape
        `(objects,)`, and for masks `masks` of shape `(objects, height, width)`, True in the object.
    references: One dictionary an image: `boxes`, `labels`, `masks` as above, and if known `iscrowd` (1 for a crowd, which
        is neither to be found nor wrong to find) and `area`, of shape `(objects,)`.

Returns:
    `box_ap`, `box_ap50`, `box_ap75`, and `mask_ap`, `mask_ap50`, `mask_ap75` for masks, in 0..1, NaN where the references
    hold no object.
"""
_SOURCE = "Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014; https://cocodataset.org/#detection-eval."
_FIELDS = {"box": "bbox", "mask": "segm"}


class COCOAveragePrecision(StreamingMetric):
    """
    COCO's AP, AP50 and AP75, by faster-coco-eval through torchmetrics. Masks are kept run-length encoded.

    Args:
        kinds (`tuple` of `"box"`, `"mask"`): What is measured. Defaults to boxes alone.
        box_format (`"xyxy"` or `"xywh"`): Corners (torchvision's), or corner and size (COCO's files). Defaults to `"xyxy"`.
        kwargs: Of `evaluate.Metric`.

    Raises:
        ValueError: If kinds or box_format is another, or in `add_batch` if a key is missing, shapes differ, numbers are not
            finite or a box has a negative size.
    """

    def __init__(self, kinds: tuple[str, ...] = ("box",), box_format: str = "xyxy", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not kinds or isinstance(kinds, str) or not set(kinds) <= set(_FIELDS):
            raise ValueError(f'kinds must be ("box",), ("mask",) or both, got {kinds!r}')
        if box_format not in ("xyxy", "xywh"):
            raise ValueError(f'box_format must be "xyxy" or "xywh", got {box_format!r}')
        self.kinds = tuple(kinds)
        self.box_format = box_format
        options: dict[str, Any] = {"box_format": box_format, "iou_type": tuple(_FIELDS[kind] for kind in kinds)}
        self.precision = MeanAveragePrecision(**options, backend="faster_coco_eval")
        self.precision.warn_on_many_detections = False  # the best 100 are taken, as COCO does

    def _info(self) -> Any:
        objects = {"boxes": nested(Number, 2), "labels": nested(Integer, 1), "masks": nested(Boolean, 3)}
        features = {
            "predictions": {**objects, "scores": nested(Number, 1)},
            "references": {**objects, "iscrowd": nested(Integer, 1), "area": nested(Number, 1)},
        }
        return describe(__doc__, _INPUTS, features, source=_SOURCE)

    def reset(self) -> None:
        self.precision.reset()

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        images = pairs(predictions, references)
        found = [self._checked("predictions", prediction, ("scores",), ()) for prediction, _ in images]
        truth = [self._checked("references", reference, (), ("iscrowd", "area")) for _, reference in images]
        self.precision.update(found, truth)

    def result(self) -> dict[str, Any]:
        measured = self.precision.compute()
        values = {}
        for kind in self.kinds:
            prefix = f"{_FIELDS[kind]}_" if len(self.kinds) > 1 else ""
            for suffix in ("", "_50", "_75"):
                value = float(measured[f"{prefix}map{suffix}"])
                values[f"{kind}_ap{suffix[1:]}"] = value if value >= 0 else float("nan")  # -1: nothing to find
        return values

    def _checked(
        self, name: str, image: Any, required: tuple[str, ...], optional: tuple[str, ...]
    ) -> dict[str, torch.Tensor]:
        needed = ("labels", *required, *({"box": "boxes", "mask": "masks"}[kind] for kind in self.kinds))
        if not isinstance(image, dict) or not set(needed) <= set(image):
            came = sorted(image) if isinstance(image, dict) else type(image).__name__
            raise ValueError(f"{name} must be a dictionary an image with {', '.join(needed)}, got {came}")
        labels = to_integers(f"{name}' labels", image["labels"], (None,), stop=2**31)
        count = len(labels)
        fields: dict[str, np.ndarray] = {"labels": labels}
        for key in (*required, *(key for key in optional if image.get(key) is not None)):
            fields[key] = to_floats(f"{name}' {key}", image[key], (count,))
        if "iscrowd" in fields:
            fields["iscrowd"] = fields["iscrowd"].astype(np.int64)
        if "box" in self.kinds:
            boxes = to_array(f"{name}' boxes", image["boxes"])
            fields["boxes"] = to_floats(f"{name}' boxes", boxes if boxes.size else np.zeros((0, 4)), (count, 4))
            sizes = fields["boxes"][:, 2:] - (fields["boxes"][:, :2] if self.box_format == "xyxy" else 0)
            if (sizes < 0).any():
                raise ValueError(f"{name}' boxes must be {self.box_format} with sizes of 0 or more, got {sizes.min()}")
        if "mask" in self.kinds:
            masks = to_array(f"{name}' masks", image["masks"])
            if masks.size and (masks.dtype.kind not in "bui" or masks.max() > 1):
                raise ValueError(
                    f"{name}' masks must be True or False, got {masks.dtype}; put a threshold to scores first"
                )
            masks = masks if count else masks.reshape(0, *masks.shape[-2:]) if masks.ndim == 3 else np.zeros((0, 1, 1))
            check_shape(f"{name}' masks", masks, (count, None, None))
            fields["masks"] = masks.astype(bool)
        return {key: torch.from_numpy(field) for key, field in fields.items()}
