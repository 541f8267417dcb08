"""Fine-tuning for the depth of each pixel."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig

from hf_geossl.evaluation.metrics.depth_errors import DepthErrors
from hf_geossl.evaluation.metrics.metric import Metric
from hf_geossl.evaluation.reading.sample_reader import Sample
from hf_geossl.modeling.dense_heads import MINIMUM_DEPTH
from hf_geossl.tasks.finetuning.kinds.base import FineTuningTask, Floors
from hf_geossl.tasks.finetuning.kinds.classification import display
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import Split


class DepthEstimation(FineTuningTask):
    """Metres of each pixel; 0 is unknown."""

    name, suffix, target = "depth", "ForDepthEstimation", "depth"
    metrics, min_crop = MappingProxyType({"abs_rel": False, "rmse": False, "delta1": True, "loss": False}), 1.0

    def class_names(self, train: Split, test: Split, given: Sequence[str] | None) -> tuple[str, ...]:
        """None; checks that some depth of both splits is known."""
        if given:
            raise ValueError("class_names mean nothing for depth: leave --class_names out")
        for split in (train, test):
            if not any(bool((split[place]["depth"] > MINIMUM_DEPTH).any()) for place in range(len(split))):
                raise ValueError(
                    f"no pixel of {split.name} has a depth above {MINIMUM_DEPTH} metres: see to --depth_scale"
                )
        return ()

    def config_fields(self, names: Sequence[str], settings: HeadSettings) -> dict[str, Any]:
        """See `FineTuningTask`."""
        return {
            "decoder_type": settings.decoder,
            "decoder_channels": settings.decoder_channels,
            "max_depth": settings.max_depth,
        }

    def labels(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Metres `(batch, height, width)`."""
        return torch.stack([sample["depth"] for sample in samples])

    def make_metric(self, config: PreTrainedConfig) -> DepthErrors:
        """See `FineTuningTask`."""
        return DepthErrors(MINIMUM_DEPTH, config.max_depth)

    def predictions(self, outputs: Any) -> torch.Tensor:
        """Metres `(batch, height, width)`."""
        return outputs.predicted_depth.float().cpu()

    def rows_of(self, metric: Metric[Any], predictions: Any, samples: Sequence[Sample]) -> np.ndarray:
        """See `FineTuningTask`."""
        return metric.rows_of(predictions, self.labels(samples))

    def floors(self, metric: Metric[Any], train: Split, test: Split, rows: Any) -> Floors:
        """The geometric mean of the training images' depths, everywhere."""
        total, count = 0.0, 0
        cap = metric.cap if isinstance(metric, DepthErrors) else np.inf
        for place in range(len(train)):
            depth = np.asarray(train[place]["depth"], dtype=np.float64)
            known = depth[(depth > MINIMUM_DEPTH) & (depth < cap)]
            total, count = total + float(np.log(known).sum()), count + known.size
        constant = np.exp(total / max(count, 1))
        truths = (np.asarray(test[place]["depth"])[None] for place in range(len(test)))
        parts = [metric.rows_of(np.full(truth.shape, constant), truth) for truth in truths]
        return {name: {"constant": value} for name, value in metric.numbers_of(metric.join(parts)).items()}

    def draw(
        self, samples: Sequence[Sample], predictions: Sequence[Any], names: Sequence[str], title: str
    ) -> Image.Image:
        """See `FineTuningTask`."""
        from hf_geossl.evaluation.pictures.images import depth_samples

        truths = np.stack([np.asarray(sample["depth"]) for sample in samples])
        images = np.stack([display(sample) for sample in samples])
        return depth_samples(images, truths, np.stack([np.asarray(depth) for depth in predictions]), title)
