"""The linear probe of DINO and iBOT: one linear layer on the class tokens of the last layers, by SGD."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.classifiers import (
    Predicted,
    accuracy_of,
    both_splits,
    count_classes,
    hold_out,
    labelled_features,
    measure_classifier,
)
from hf_geossl.evaluation.fitting.fit import fit, seeded
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.settings import ProtocolSettings, Scale, Work


@dataclass(frozen=True)
class LinearSGDSettings(ProtocolSettings):
    """The published protocol, with two differences.

    Features are cached, so that images are not cropped and mirrored anew in each epoch; and the learning rate is chosen on
    held-out training images instead of the test images.

    Args:
        learning_rates (`tuple[float, ...]`): Peaks for a batch of 256; each trains a head of its own, all at once.
        epochs (`int`): Passes over the training images.
        batch_size (`int`): Images in a step; learning rates are multiplied by `batch_size` / 256.
        momentum, weight_decay (`float`): Of SGD; the learning rate falls along a cosine.
        class_token_layers (`int`): From how many of the last layers, each after the final norm; all of a trunk that has
            fewer. 4 is published for ViT-S, 1 with `average_pool` for ViT-B and ViT-L.
        average_pool (`bool`): Whether the mean patch token of the last layer, after the final norm, stands beside them; the
            features are then in memory.
        held_out (`float`): Share of the training images that the learning rate is chosen on; the chosen one then trains
            once more on all of them.

    Source: DINO (arXiv 2104.14294, appendix) and iBOT (arXiv 2111.07832, appendix): 100 epochs, batch 1024, momentum 0.9,
    no weight decay, the best of these learning rates.
    """

    learning_rates: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
    epochs: int = 100
    batch_size: int = 1024
    momentum: float = 0.9
    weight_decay: float = 0.0
    class_token_layers: int = 4
    average_pool: bool = False
    held_out: float = 0.1

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        steps = 3 * 2 * self.epochs * max(1, scale.train // self.batch_size)
        heads = (len(self.learning_rates) + 1) * scale.width * self.class_token_layers
        return Work({"images": scale.images}, 2 * scale.images, steps, 3 * self.epochs * scale.train * 60.0 * heads)


def train_heads(
    features: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    learning_rates: tuple[float, ...],
    num_classes: int,
    settings: LinearSGDSettings,
    options: EvaluationOptions,
    device: torch.device,
) -> nn.ModuleList:
    """Trains one linear layer for each learning rate, all from the same weights and on the same batches.

    Args:
        features (`numpy.ndarray` of shape `(images, width)`): Of the training images, of classes `labels`.
        rows (`numpy.ndarray` of integers): Which images are trained on.
        learning_rates (`tuple[float, ...]`): For a batch of 256.
    """
    size = min(settings.batch_size, len(rows))
    with seeded(options.seed, device):
        first = nn.Linear(features.shape[1], num_classes)
        nn.init.normal_(first.weight, std=0.01)
        nn.init.zeros_(first.bias)
        heads = nn.ModuleList(copy.deepcopy(first) for _ in learning_rates).to(device)
        groups = [
            {"params": list(head.parameters()), "lr": rate * size / 256}
            for head, rate in zip(heads, learning_rates, strict=True)
        ]
        optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)

        def batches() -> Iterator[dict[str, Any]]:
            generator = np.random.default_rng(options.seed)
            while True:
                order = generator.permutation(rows)
                for start in range(0, len(rows) - size + 1, size):
                    chosen = np.sort(order[start : start + size])  # neighbours on the disk are read together
                    yield {"x": torch.from_numpy(features[chosen]), "y": torch.from_numpy(labels[chosen]).long()}

        def loss(batch: dict[str, Any]) -> torch.Tensor:
            weight, bias = (torch.cat([getattr(head, part) for head in heads]) for part in ("weight", "bias"))
            scores = F.linear(batch["x"].to(device), weight, bias).unflatten(1, (len(heads), num_classes))
            truth = batch["y"].to(device)[:, None].expand(-1, len(heads))
            return F.cross_entropy(scores.float().flatten(0, 1), truth.flatten()) * len(heads)  # each its own mean

        steps = settings.epochs * (len(rows) // size)
        fit(optimizer, loss, batches(), options, steps=steps, description="linear heads", schedule="cosine")
    return heads


@torch.no_grad()
def score(head: nn.Module, features: np.ndarray, device: torch.device) -> np.ndarray:
    """Scores `(images, num_classes)` of features `(images, width)`, in float32."""
    blocks = (np.array(features[start : start + 8192]) for start in range(0, len(features), 8192))
    return np.concatenate([head(torch.from_numpy(block).to(device)).cpu().numpy() for block in blocks])


def measure_linear_sgd(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearSGDSettings
) -> TaskResult:
    """Accuracy of a linear layer that is trained by SGD."""
    splits, device = both_splits(data), encoder.device

    def predict(model: Encoder, columns: str) -> Predicted:
        features, labels, queries, truth = labelled_features(model, splits, columns, "label", options)
        num_classes, _ = count_classes(splits[0], labels, truth)
        held_out = hold_out(len(labels), settings.held_out, options.seed)
        rows, rates = np.arange(len(labels)), settings.learning_rates
        heads = train_heads(features, labels, rows[~held_out], rates, num_classes, settings, options, device)
        right = [accuracy_of(score(head, features[held_out], device), labels[held_out]) for head in heads]
        best = rates[int(np.argmax(right))]
        [head] = train_heads(features, labels, rows, (best,), num_classes, settings, options, device)
        by_rate = {f"{rate:g}": value for rate, value in zip(rates, right, strict=True)}
        details = {"feature": columns, "learning_rate": best, "held_out_accuracy": by_rate}
        return Predicted(score(head, queries, device), truth, labels, details)

    columns = f"class_tokens_{min(settings.class_token_layers, encoder.num_layers)}"
    columns += "+mean" if settings.average_pool else ""
    title = f"{encoder.name}, linear probe by SGD on {splits[1].name}"
    return measure_classifier(encoder, columns, splits[0], settings, options, title, predict)


PROTOCOLS = {"linear_sgd": EvaluationProtocol(measure_linear_sgd, LinearSGDSettings)}
