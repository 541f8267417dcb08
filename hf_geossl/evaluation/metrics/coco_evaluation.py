"""COCO's evaluation by faster-coco-eval, for boxes, masks and keypoints."""

from collections.abc import Sequence
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster

Annotation = dict[str, Any]  # an object as COCO writes it, without `id` and `image_id`
Row = tuple[list[Annotation], list[Annotation]]  # predicted and true objects of an image


def average_precisions(images: Sequence[Row], kind: str, **options: object) -> tuple[float, float, float]:
    """Average precision as COCO defines it.

    Args:
        images (`Sequence[Row]`): COCO results and COCO annotations of each image, with objects or without.
        kind (`"bbox"`, `"segm"` or `"keypoints"`): What is compared.
        options: Of `COCOeval_faster`.

    Returns:
        `tuple[float, float, float]`: AP over thresholds .50 to .95, at .50 and at .75, NaN where there is no object.
    """
    predicted, true = (
        [{**one, "image_id": image} for image, row in enumerate(images, start=1) for one in row[side]]
        for side in (0, 1)
    )
    sizes: dict[int, Any] = {one["image_id"]: one["segmentation"]["size"] for one in true + predicted if kind == "segm"}
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
    evaluation = COCOeval_faster(dataset, dataset.loadRes(predicted), iouType=kind, **options)
    evaluation.run()
    ap, ap50, ap75 = (float(value) if value >= 0 else float("nan") for value in evaluation.all_stats[:3])  # -1: nothing
    return ap, ap50, ap75
