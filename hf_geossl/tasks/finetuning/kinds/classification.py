"""Fine-tuning for the class of an image."""

from collections import Counter
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig

from hf_geossl.evaluation.metrics.accuracy import Accuracy
from hf_geossl.evaluation.metrics.metric import Metric
from hf_geossl.evaluation.reading.sample_reader import Sample
from hf_geossl.tasks.finetuning.kinds.base import FineTuningTask, Floors, name_classes
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import Split


class ImageClassification(FineTuningTask):
    """One class an image."""

    name, suffix, target = "classification", "ForImageClassification", "label"
    metrics, min_crop = MappingProxyType({"accuracy": True, "mean_per_class_accuracy": True, "loss": False}), 0.3

    def class_names(self, train: Split, test: Split, given: Sequence[str] | None) -> tuple[str, ...]:
        """See `FineTuningTask`."""
        present = [Counter(int(split[place]["label"]) for place in range(len(split))) for split in (train, test)]
        names = name_classes(present, (train, test), train.samples.names.get("label"), given)
        if len(present[0]) < 2:
            only = names[next(iter(present[0]))]
            raise ValueError(
                f"the training images must show at least two classes, all {len(train)} of {train.name} are of {only!r}"
            )
        return names

    def labels(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Class numbers `(batch,)`."""
        return torch.tensor([int(sample["label"]) for sample in samples])

    def config_fields(self, names: Sequence[str], settings: HeadSettings) -> dict[str, Any]:
        """See `FineTuningTask`."""
        return {**super().config_fields(names, settings), "problem_type": "single_label_classification"}

    def make_metric(self, config: PreTrainedConfig) -> Accuracy:
        """See `FineTuningTask`."""
        return Accuracy(len(config.id2label or ()))

    def predictions(self, outputs: Any) -> torch.Tensor:
        """Logits `(batch, classes)`."""
        return outputs.logits.float().cpu()

    def rows_of(self, metric: Metric[Any], predictions: Any, samples: Sequence[Sample]) -> np.ndarray:
        """See `FineTuningTask`."""
        return metric.rows_of(predictions, self.labels(samples))

    def floors(self, metric: Metric[Any], train: Split, test: Split, rows: Any) -> Floors:
        """The most frequent class of the training images, everywhere."""
        most = Counter(int(train[place]["label"]) for place in range(len(train))).most_common(1)[0][0]
        right = np.mean([int(test[place]["label"]) == most for place in range(len(test))])
        return {"accuracy": {"constant": float(right)}}

    def draw(
        self, samples: Sequence[Sample], predictions: Sequence[Any], names: Sequence[str], title: str
    ) -> Image.Image:
        """Images under what they are and are taken for."""
        from hf_geossl.evaluation.pictures.images import labelled_images

        pairs = [
            (names[int(sample["label"])], names[int(logits.argmax())])
            for sample, logits in zip(samples, predictions, strict=True)
        ]
        return labelled_images(np.stack([display(sample) for sample in samples]), pairs, title)


def display(sample: Sample) -> np.ndarray:
    """An image `(height, width, channels)` to be shown."""
    return np.asarray(sample["image"]).transpose(1, 2, 0)
