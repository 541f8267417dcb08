"""Fine-tuning for the class of each pixel."""

import logging
from collections import Counter
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig

from hf_geossl.evaluation.metrics.mean_iou import MeanIoU
from hf_geossl.evaluation.metrics.metric import Metric
from hf_geossl.evaluation.reading.annotations import IGNORED
from hf_geossl.evaluation.reading.sample_reader import Sample
from hf_geossl.tasks.finetuning.kinds.base import FineTuningTask, Floors, name_classes
from hf_geossl.tasks.finetuning.kinds.classification import display
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import Split

logger = logging.getLogger(__name__)


class SemanticSegmentation(FineTuningTask):
    """One class a pixel; 255 has none."""

    name, suffix, target = "segmentation", "ForSemanticSegmentation", "semantic"
    metrics, min_crop = (
        MappingProxyType({"mean_iou": True, "pixel_accuracy": True, "mean_class_accuracy": True, "loss": False}),
        0.25,
    )

    def class_names(self, train: Split, test: Split, given: Sequence[str] | None) -> tuple[str, ...]:
        """See `FineTuningTask`."""
        present = [_classes(split) for split in (train, test)]
        for part, split in zip(present, (train, test), strict=True):
            if not part:
                raise ValueError(f"no pixel of {split.name} has a class: choose another column (--semantic_column)")
        names = name_classes(present, (train, test), train.samples.names.get("semantic"), given)
        if not given and min(min(part) for part in present) > 0:
            logger.warning(
                f"{train.name}: no mask shows the class 0, and so a class is learned that nothing is of: --reduce_labels takes 0 "
                "as no class, and numbers the others from 0"
            )
        if len(present[0]) < 2:
            only = names[next(iter(present[0]))]
            raise ValueError(
                f"the training masks must show at least two classes, all pixels of {train.name} are of {only!r}"
            )
        return names

    def labels(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Maps of classes `(batch, height, width)`."""
        return torch.stack([sample["semantic"] for sample in samples]).long()

    def config_fields(self, names: Sequence[str], settings: HeadSettings) -> dict[str, Any]:
        """See `FineTuningTask`."""
        decoder = {"decoder_type": settings.decoder, "decoder_channels": settings.decoder_channels}
        return {**super().config_fields(names, settings), **decoder, "semantic_loss_ignore_index": IGNORED}

    def make_metric(self, config: PreTrainedConfig) -> MeanIoU:
        """See `FineTuningTask`."""
        return MeanIoU(len(config.id2label or ()), IGNORED)

    def predictions(self, outputs: Any) -> torch.Tensor:
        """Maps of classes `(batch, height, width)`."""
        return outputs.logits.float().argmax(dim=1).cpu()

    def rows_of(self, metric: Metric[Any], predictions: Any, samples: Sequence[Sample]) -> np.ndarray:
        """See `FineTuningTask`."""
        return metric.rows_of(predictions, torch.stack([sample["semantic"] for sample in samples]))

    def floors(self, metric: Metric[Any], train: Split, test: Split, rows: Any) -> Floors:
        """One class everywhere, the best for it."""
        truth = rows.sum(axis=0).reshape(round(rows.shape[1] ** 0.5), -1).sum(axis=1)
        return {"mean_iou": {"constant": float(truth.max() / truth.sum() / (truth > 0).sum())}}

    def draw(
        self, samples: Sequence[Sample], predictions: Sequence[Any], names: Sequence[str], title: str
    ) -> Image.Image:
        """See `FineTuningTask`."""
        from hf_geossl.evaluation.pictures.images import segmentation_samples

        truths = np.stack([np.asarray(sample["semantic"]) for sample in samples])
        images = np.stack([display(sample) for sample in samples])
        return segmentation_samples(images, truths, np.stack([np.asarray(map_) for map_ in predictions]), names, title)


def _classes(split: Split) -> Counter[int]:
    """In how many images of a split each class is."""
    present: Counter[int] = Counter()
    for place in range(len(split)):
        present.update(np.unique(np.asarray(split[place]["semantic"])).tolist())
    present.pop(IGNORED, None)
    return present
