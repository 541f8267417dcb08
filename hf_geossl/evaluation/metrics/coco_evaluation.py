"""COCO's evaluation by faster-coco-eval, for boxes, masks and keypoints."""

from typing import Any

from faster_coco_eval import COCO, COCOeval_faster


def average_precisions(
    images: int, truth: list[dict[str, Any]], found: list[dict[str, Any]], kind: str, **options: Any
) -> tuple[float, float, float]:
    """Args:
        images (`int`): How many there are, numbered from 1, with objects or without.
        truth (`list[dict]`): COCO annotations, without `id`.
        found (`list[dict]`): COCO results.
        kind (`"bbox"`, `"segm"` or `"keypoints"`): What is compared.
        options: Of `COCOeval_faster`.

    Returns:
        `tuple[float, float, float]`: AP over thresholds .50 to .95, at .50 and at .75, NaN where there is nothing to find.
    """
    sizes: dict[int, Any] = {one["image_id"]: one["segmentation"]["size"] for one in truth + found if kind == "segm"}
    dataset = COCO()
    dataset.dataset = {
        "images": [
            {"id": image, **dict(zip(("height", "width"), sizes.get(image, ()), strict=False))}
            for image in range(1, images + 1)
        ],
        "categories": [{"id": label} for label in sorted({one["category_id"] for one in truth + found})],
        "annotations": [{**one, "id": index} for index, one in enumerate(truth, start=1)],
    }
    dataset.createIndex()
    evaluation = COCOeval_faster(dataset, dataset.loadRes([dict(one) for one in found]), iouType=kind, **options)
    evaluation.run()
    ap, ap50, ap75 = (float(value) if value >= 0 else float("nan") for value in evaluation.all_stats[:3])  # -1: nothing
    return ap, ap50, ap75
