"""Average precision of object detection and instance segmentation as COCO defines it: over classes and IoU thresholds .50 to
.95, with 100 detections an image.
"""

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as run_lengths

from hf_geossl.evaluation.metrics.coco_evaluation import average_precisions
from hf_geossl.evaluation.metrics.inputs import check_shape, pairs, to_array, to_floats, to_integers
from hf_geossl.evaluation.metrics.streaming import Boolean, Integer, Number, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: One dictionary an image: `boxes` of shape `(objects, 4)` in pixels, `scores` and `labels` of shape
        `(objects,)`, and for masks `masks` of shape `(objects, height, width)`, True in the object.
    references: One dictionary an image: `boxes`, `labels` and `masks` as above, and if known `iscrowd` of shape `(objects,)`
        (1 for a crowd, which is neither to be found nor wrong to find).

Returns:
    `box_ap`, `box_ap50`, `box_ap75`, and `mask_ap`, `mask_ap50`, `mask_ap75` for masks, in 0..1, NaN where the references
    hold no object.
"""
_SOURCE = "Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014; https://cocodataset.org/#detection-eval."
_KINDS = {"box": "bbox", "mask": "segm"}  # and how COCO calls them


class COCOAveragePrecision(StreamingMetric):
    """COCO's AP, AP50 and AP75, by faster-coco-eval. Masks are kept run-length encoded. (torchmetrics' wrapper of it rounds the
    IoU thresholds to float32 and, for masks alone, does not count what is found in images without objects.)

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
        if not kinds or isinstance(kinds, str) or not set(kinds) <= set(_KINDS):
            raise ValueError(f'kinds must be ("box",), ("mask",) or both, got {kinds!r}')
        if box_format not in ("xyxy", "xywh"):
            raise ValueError(f'box_format must be "xyxy" or "xywh", got {box_format!r}')
        self.kinds = tuple(kinds)
        self.box_format = box_format
        self.reset()

    def _info(self) -> Any:
        objects = {"boxes": nested(Number, 2), "labels": nested(Integer, 1), "masks": nested(Boolean, 3)}
        features = {
            "predictions": {**objects, "scores": nested(Number, 1)},
            "references": {**objects, "iscrowd": nested(Integer, 1)},
        }
        return describe(__doc__, _INPUTS, features, source=_SOURCE)

    def reset(self) -> None:
        self.images = 0
        self.found: list[dict[str, Any]] = []
        self.truth: list[dict[str, Any]] = []

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        images = pairs(predictions, references)
        found: list[dict[str, Any]] = []
        truth: list[dict[str, Any]] = []
        for image, (prediction, reference) in enumerate(images, start=self.images + 1):
            new = [self._objects("predictions", prediction, image), self._objects("references", reference, image)]
            sizes = {tuple(one["segmentation"]["size"]) for one in new[0] + new[1] if "segmentation" in one}
            if len(sizes) > 1:
                raise ValueError(f"masks of an image must be equal in size, got {sorted(sizes)}")
            found += new[0]
            truth += new[1]
        self.found += found
        self.truth += truth
        self.images += len(images)

    def result(self) -> dict[str, Any]:
        values: dict[str, float] = {}
        for kind in self.kinds:
            field = {"box": "bbox", "mask": "segmentation"}[kind]
            others = {"bbox", "segmentation"} - {field}
            found, truth = (
                [{key: value for key, value in one.items() if key not in others} for one in objects]
                for objects in (self.found, self.truth)
            )
            precisions = average_precisions(self.images, truth, found, _KINDS[kind])
            values |= dict(zip((f"{kind}_ap", f"{kind}_ap50", f"{kind}_ap75"), precisions, strict=True))
        return values

    def _objects(self, name: str, image_fields: Any, image: int) -> list[dict[str, Any]]:
        """An image's objects as COCO writes them."""
        needed = ["labels", *({"box": "boxes", "mask": "masks"}[kind] for kind in self.kinds)]
        needed += ["scores"] if name == "predictions" else []
        if not isinstance(image_fields, dict) or not set(needed) <= set(image_fields):
            came = sorted(image_fields) if isinstance(image_fields, dict) else type(image_fields).__name__
            raise ValueError(f"{name} must be a dictionary an image with {', '.join(needed)}, got {came}")
        labels = to_integers(f"{name}' labels", image_fields["labels"], (None,), stop=2**31)
        objects: list[dict[str, Any]] = [{"image_id": image, "category_id": label} for label in labels.tolist()]

        def add(key: str, values: list[Any]) -> None:
            for one, value in zip(objects, values, strict=True):
                one[key] = value

        if name == "predictions":
            add("score", to_floats("predictions' scores", image_fields["scores"], (len(labels),)).tolist())
        else:
            crowds = image_fields.get("iscrowd")
            crowds = np.zeros(len(labels), dtype=int) if crowds is None else crowds
            add("iscrowd", to_integers("references' iscrowd", crowds, (len(labels),), stop=2).tolist())
            add("area", [1.0] * len(labels))  # a field COCO needs for AP by size
        if "box" in self.kinds:
            add("bbox", self._boxes(f"{name}' boxes", image_fields["boxes"], len(labels)))
        if "mask" in self.kinds:
            add("segmentation", _encoded(f"{name}' masks", image_fields["masks"], len(labels)))
        return objects

    def _boxes(self, name: str, value: Any, count: int) -> list[list[float]]:
        """x, y, width and height."""
        boxes = to_array(name, value)
        boxes = to_floats(name, boxes if boxes.size else np.zeros((0, 4)), (count, 4))
        if self.box_format == "xyxy":
            boxes[:, 2:] -= boxes[:, :2]
        if (boxes[:, 2:] < 0).any():
            raise ValueError(f"{name} must be {self.box_format} with sizes of 0 or more, got {boxes[:, 2:].min()}")
        return boxes.tolist()


def _encoded(name: str, value: Any, count: int) -> list[dict[str, Any]]:
    """Masks as run lengths."""
    masks = to_array(name, value)
    if not masks.size and not count:
        return []
    check_shape(name, masks, (count, None, None))
    if masks.dtype.kind not in "bui" or masks.min() < 0 or masks.max() > 1:
        raise ValueError(f"{name} must be True or False, got {masks.dtype}; put a threshold to scores first")
    return [run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
