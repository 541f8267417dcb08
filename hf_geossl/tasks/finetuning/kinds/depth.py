"""Fine-tuning for the depth of each pixel."""

import logging
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_geossl.evaluation.metrics.depth_errors import DepthErrors
from hf_geossl.evaluation.metrics.metric import Metric
from hf_geossl.evaluation.reading.sample_reader import Sample
from hf_geossl.modeling.dense_heads import MINIMUM_DEPTH
from hf_geossl.tasks.finetuning.kinds.base import FineTuningTask, Floors
from hf_geossl.tasks.finetuning.kinds.classification import display
from hf_geossl.tasks.finetuning.settings import HeadSettings
from hf_geossl.tasks.finetuning.splits import Split

logger = logging.getLogger(__name__)


class DepthEstimation(FineTuningTask):
    """Metres of each pixel; 0 is unknown. Predictions start at the geometric mean of the training images' depths."""

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

    def check(self, splits: Sequence[Split], settings: HeadSettings) -> None:
        """Counts the depths that the cap leaves out."""
        for split in splits:
            known, beyond, nearest = 0, 0, np.inf
            for place in range(len(split)):
                depth = np.asarray(split[place]["depth"])
                depth = depth[depth > MINIMUM_DEPTH]
                known, beyond = known + depth.size, beyond + int((depth >= settings.max_depth).sum())
                nearest = min(nearest, depth.min(initial=np.inf))
            if beyond == known:
                raise ValueError(
                    f"all depths of {split.name} are from {nearest:.4g} metres on, of which --max_depth {settings.max_depth:g} "
                    "leaves none: give a larger one, or see to --depth_scale"
                )
            if beyond:
                logger.warning(
                    f"{split.name}: {beyond:,} of {known:,} known depths ({100 * beyond / known:.2g} %) are from "
                    f"{settings.max_depth:g} metres on, and do not count (--max_depth)"
                )

    def prepare_head(self, model: PreTrainedModel, train: Split) -> None:
        """Lets the fresh head predict about the geometric mean of the training images' depths, by the bias of its last layer.

        Without it predictions would start at half of the cap, far from most data.
        """
        cap = float(model.config.max_depth)
        share = min(max(_geometric_mean(train, cap) / cap, 1e-4), 1 - 1e-4)
        last = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
        if last.bias is None or last.bias.numel() != 1:
            raise TypeError(f"the last layer of {type(model).__name__} must give one number with a bias, got {last}")
        nn.init.constant_(last.bias, float(np.log(share / (1 - share))))

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
        constant = _geometric_mean(train, metric.cap if isinstance(metric, DepthErrors) else np.inf)
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


def _geometric_mean(split: Split, cap: float) -> float:
    """Of the depths in metres of a split that are known and below a cap; 1 where there are none."""
    total, count = 0.0, 0
    for place in range(len(split)):
        depth = np.asarray(split[place]["depth"], dtype=np.float64)
        known = depth[(depth > MINIMUM_DEPTH) & (depth < cap)]
        total, count = total + float(np.log(known).sum()), count + known.size
    return float(np.exp(total / max(count, 1)))
