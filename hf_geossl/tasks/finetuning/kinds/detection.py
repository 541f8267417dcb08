"""Fine-tuning for the boxes of objects."""

from collections import Counter
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedConfig

from hf_geossl.evaluation.metrics.coco_average_precision import COCOAveragePrecision
from hf_geossl.evaluation.metrics.metric import Metric
from hf_geossl.evaluation.reading.sample_reader import Sample
from hf_geossl.modeling.dense_heads import to_centers, to_corners
from hf_geossl.tasks.finetuning.kinds.base import FineTuningTask, Floors, name_classes
from hf_geossl.tasks.finetuning.kinds.classification import display
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import Split

SURE = 0.5  # the score from which on pictures show predicted objects, as `geossl predict` does


class ObjectDetection(FineTuningTask):
    """Boxes and categories of objects."""

    name, suffix, target = "detection", "ForObjectDetection", "boxes"
    metrics, min_crop = MappingProxyType({"box_ap": True, "box_ap50": True, "box_ap75": True}), 0.5

    def class_names(self, train: Split, test: Split, given: Sequence[str] | None) -> tuple[str, ...]:
        """See `FineTuningTask`; one category is enough."""
        present = [_categories(split) for split in (train, test)]
        for part, split in zip(present, (train, test), strict=True):
            if not part:
                raise ValueError(f"no image of {split.name} has an object: choose another column (--objects_column)")
        return name_classes(present, (train, test), train.samples.names.get("categories"), given)

    def config_fields(self, names: Sequence[str], settings: HeadSettings) -> dict[str, Any]:
        """See `FineTuningTask`."""
        decoder = {"decoder_type": settings.decoder, "decoder_channels": settings.decoder_channels}
        return {**super().config_fields(names, settings), **decoder}

    def labels(self, samples: Sequence[Sample]) -> list[dict[str, torch.Tensor]]:
        """Of each image `class_labels (objects,)` and `boxes (objects, 4)` as centers and sizes in shares of the image."""
        return [
            {
                "class_labels": sample["categories"],
                "boxes": to_centers(sample["boxes"]) / sample["image"].shape[-1],
            }
            for sample in samples
        ]

    def make_metric(self, config: PreTrainedConfig) -> COCOAveragePrecision:
        """See `FineTuningTask`."""
        return COCOAveragePrecision(("box",))

    def predictions(self, outputs: Any) -> list[dict[str, torch.Tensor]]:
        """Of each image boxes in shares of it, labels and scores."""
        scores, labels = outputs.logits.float().cpu().softmax(dim=-1)[..., :-1].max(dim=-1)
        boxes = to_corners(outputs.pred_boxes.float().cpu())
        found = [one > 1e-6 for one in scores]  # others only fill the batch up
        return [
            {"boxes": boxes[index][here], "labels": labels[index][here], "scores": scores[index][here]}
            for index, here in enumerate(found)
        ]

    def rows_of(self, metric: Metric[Any], predictions: Any, samples: Sequence[Sample]) -> Any:
        """See `FineTuningTask`; labels from 1, as the metric has them."""
        truths = [{"boxes": sample["boxes"], "labels": sample["categories"] + 1} for sample in samples]
        return metric.rows_of(
            [_in_pixels(one, sample) for one, sample in zip(predictions, samples, strict=True)], truths
        )

    def floors(self, metric: Metric[Any], train: Split, test: Split, rows: Any) -> Floors:
        """None: no box that does not look at the image finds an object."""
        return {}

    def draw(
        self, samples: Sequence[Sample], predictions: Sequence[Any], names: Sequence[str], title: str
    ) -> Image.Image:
        """See `FineTuningTask`; objects of which the model is at least a little sure."""
        from hf_geossl.evaluation.pictures.images import detections

        predicted = []
        for one, sample in zip(predictions, samples, strict=True):
            sure = one["scores"] >= SURE
            predicted.append({key: value[sure].numpy() for key, value in _in_pixels(one, sample).items()})
        truths = [{"boxes": sample["boxes"].numpy(), "labels": sample["categories"].numpy() + 1} for sample in samples]
        images = [display(sample) for sample in samples]
        return detections(images, predicted, truths, ("background", *names), title)


def _in_pixels(predicted: dict[str, torch.Tensor], sample: Sample) -> dict[str, torch.Tensor]:
    side = sample["image"].shape[-1]
    return {**predicted, "boxes": predicted["boxes"] * side, "labels": predicted["labels"] + 1}


def _categories(split: Split) -> Counter[int]:
    """How many objects of each category the images of a split have."""
    present: Counter[int] = Counter()
    for place in range(len(split)):
        present.update(torch.as_tensor(split[place]["categories"]).tolist())
    return present
