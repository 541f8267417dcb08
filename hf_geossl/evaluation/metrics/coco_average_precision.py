"""Average precision of object detection and instance segmentation as COCO defines it.

That is over classes and IoU thresholds .50 to .95, with 100 detections an image.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import faster_coco_eval.faster_eval_api_cpp as compiled
import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as run_lengths

from .metric import (
    Boolean,
    Features,
    Integer,
    Metric,
    Number,
    check_shape,
    nested,
    pairs,
    to_array,
    to_floats,
    to_integers,
)

Annotation = dict[str, Any]  # an object as COCO writes it, without `id` and `image_id`
Row = tuple[list[Annotation], list[Annotation]]  # predicted and true objects of an image
_KINDS = {"box": "bbox", "mask": "segm"}  # and their names in COCO
_FIELDS = {"box": "boxes", "mask": "masks"}


class COCOAveragePrecision(Metric[list[Row]]):
    """COCO's AP, AP50 and AP75, by faster-coco-eval.

    Masks are stored run-length encoded. (torchmetrics' wrapper rounds the IoU thresholds to float32 and, for masks alone, does
    not count what is predicted in images without objects.)

    Args:
        kinds (`tuple` of `"box"`, `"mask"`): What is measured. Defaults to boxes alone.
        box_format (`"xyxy"` or `"xywh"`): Corners (torchvision's), or corner and size (COCO's files). Defaults to `"xyxy"`.

    Raises:
        ValueError: If kinds or box_format is another, or in `add_batch` if a key is missing, shapes differ, numbers are not
            finite or a box has a negative size.
    """

    image_features: ClassVar[Features] = {
        "predictions": {
            "boxes": nested(Number, 2),
            "labels": nested(Integer, 1),
            "masks": nested(Boolean, 3),
            "scores": nested(Number, 1),
        },
        "references": {
            "boxes": nested(Number, 2),
            "labels": nested(Integer, 1),
            "masks": nested(Boolean, 3),
            "iscrowd": nested(Integer, 1),
        },
    }
    inputs = """
Args:
    predictions: One dictionary an image: `boxes` of shape `(objects, 4)` in pixels, `scores` and `labels` of shape
        `(objects,)`, and for masks `masks` of shape `(objects, height, width)`, True in the object.
    references: One dictionary an image: `boxes`, `labels` and `masks` as above, and if known `iscrowd` of shape `(objects,)`
        (1 for a crowd, which counts neither as missed nor as a false positive).

Returns:
    `box_ap`, `box_ap50`, `box_ap75`, and `mask_ap`, `mask_ap50`, `mask_ap75` for masks, in 0..1, NaN where the references
    hold no object.
"""
    source = (
        "Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014; https://cocodataset.org/#detection-eval."
    )

    def __init__(self, kinds: tuple[str, ...] = ("box",), box_format: str = "xyxy", **kwargs: object) -> None:
        super().__init__(**kwargs)
        if not kinds or isinstance(kinds, str) or not set(kinds) <= set(_KINDS):
            raise ValueError(f'kinds must be ("box",), ("mask",) or both, got {kinds!r}')
        if box_format not in ("xyxy", "xywh"):
            raise ValueError(f'box_format must be "xyxy" or "xywh", got {box_format!r}')
        self.kinds = tuple(kinds)
        self.box_format = box_format

    def rows_of(self, predictions: object, references: object) -> list[Row]:
        """Objects of each image as COCO writes them: predicted, true."""
        rows = []
        for prediction, reference in pairs(predictions, references):
            row = self._objects("predictions", prediction), self._objects("references", reference)
            sizes = {tuple(one["segmentation"]["size"]) for one in row[0] + row[1] if "segmentation" in one}
            if len(sizes) > 1:
                raise ValueError(f"masks of an image must be equal in size, got {sorted(sizes)}")
            rows.append(row)
        return rows

    def summarize(self, total: list[Row]) -> dict[str, float]:
        """See `Metric`."""
        return self.resampler(total)(None)

    def resampler(self, rows: list[Row]) -> Callable[[np.ndarray | None], dict[str, float]]:
        """See `Metric`; objects are matched once."""
        matched = {}
        for kind in self.kinds:
            other = {"box": "segmentation", "mask": "bbox"}[kind]
            images = [(_without(other, predicted), _without(other, true)) for predicted, true in rows]
            matched[kind] = MatchedImages(images, _KINDS[kind])
        return partial(_average_precisions, matched)

    def _objects(self, name: str, image_fields: object) -> list[Annotation]:
        """An image's objects as COCO writes them."""
        needed = ["labels", *(_FIELDS[kind] for kind in self.kinds)]
        needed += ["scores"] if name == "predictions" else []
        if not isinstance(image_fields, dict) or not set(needed) <= set(image_fields):
            came = sorted(image_fields) if isinstance(image_fields, dict) else type(image_fields).__name__
            raise ValueError(f"{name} must be a dictionary an image with {', '.join(needed)}, got {came}")
        labels = to_integers(f"{name}' labels", image_fields["labels"], (None,), stop=2**31)
        objects: list[Annotation] = [{"category_id": label} for label in labels.tolist()]

        def add(key: str, values: Sequence[object]) -> None:
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

    def _boxes(self, name: str, value: object, count: int) -> list[list[float]]:
        """x, y, width and height."""
        boxes = to_array(name, value)
        boxes = to_floats(name, boxes if boxes.size else np.zeros((0, 4)), (count, 4))
        if self.box_format == "xyxy":
            boxes[:, 2:] -= boxes[:, :2]
        if (boxes[:, 2:] < 0).any():
            raise ValueError(f"{name} must be {self.box_format} with sizes of 0 or more, got {boxes[:, 2:].min()}")
        return boxes.tolist()


def _average_precisions(matched: dict[str, "MatchedImages"], images: np.ndarray | None) -> dict[str, float]:
    """AP, AP50 and AP75 of each kind."""
    return {
        f"{kind}_{name}": value
        for kind, one in matched.items()
        for name, value in zip(("ap", "ap50", "ap75"), one.average_precisions(images), strict=True)
    }


def _encoded(name: str, value: object, count: int) -> list[Annotation]:
    """Masks as run lengths."""
    masks = to_array(name, value)
    if not masks.size and not count:
        return []
    check_shape(name, masks, (count, None, None))
    if masks.dtype.kind not in "bui" or masks.min() < 0 or masks.max() > 1:
        raise ValueError(f"{name} must be True or False, got {masks.dtype}; put a threshold to scores first")
    return [run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def _without(field: str, objects: Sequence[Annotation]) -> list[Annotation]:
    return [{key: value for key, value in one.items() if key != field} for one in objects]


class MatchedImages:
    """Objects of images, the predicted ones matched with the true ones once, so that AP follows for any choice of the images.

    Args:
        images (`Sequence[Row]`): Predicted and true objects of each image.
        kind (`"bbox"`, `"segm"` or `"keypoints"`): What they are matched by.
        options: Of faster-coco-eval's `COCOeval_faster`.
    """

    def __init__(self, images: Sequence[Row], kind: str, **options: object) -> None:
        predicted, true = (
            [{**one, "image_id": image} for image, row in enumerate(images, start=1) for one in row[side]]
            for side in (0, 1)
        )
        sizes: dict[int, Any] = {
            one["image_id"]: one["segmentation"]["size"] for one in true + predicted if kind == "segm"
        }
        dataset = COCO()
        dataset.dataset = {
            "images": [
                {"id": image, **dict(zip(("height", "width"), sizes.get(image, ()), strict=False))}
                for image in range(1, len(images) + 1)
            ],
            "categories": [{"id": label} for label in sorted({one["category_id"] for one in true + predicted})],
            "annotations": [{**one, "id": index} for index, one in enumerate(true, start=1)],
        }
        dataset.createIndex()
        evaluation = COCOeval_faster(dataset, dataset.loadRes(predicted), iouType=kind, separate_eval=True, **options)
        params = evaluation.params
        evaluation.params.maxDets, evaluation.params.areaRng = (
            params.maxDets[-1:],
            params.areaRng[:1],
        )  # what is read below
        evaluation.evaluate()
        self._params, matches = evaluation._paramsEval, evaluation._evalImgs_cpp
        each = np.empty(len(matches), dtype=object)
        each[:] = matches
        self._matches = each.reshape(-1, len(images))  # (categories, images)

    def average_precisions(self, images: np.ndarray | None = None) -> tuple[float, float, float]:
        """COCO's AP over thresholds .50 to .95, at .50 and at .75; NaN without objects.

        Args:
            images (`np.ndarray`, *optional*): Indices of as many images as there are, some of them perhaps more than once;
                each once by default.
        """
        chosen = self._matches if images is None else self._matches[:, images]
        # (thresholds, recalls, categories, 1, 1), -1 without objects
        precision = compiled.COCOevalAccumulate(self._params, chosen.flatten().tolist())["precision"]
        parts = precision, *(precision[np.isclose(self._params.iouThrs, threshold)] for threshold in (0.5, 0.75))
        known = [part[part > -1] for part in parts]
        ap, ap50, ap75 = (float(values.mean()) if len(values) else float("nan") for values in known)
        return ap, ap50, ap75
