"""k nearest neighbours on frozen features: the class of an image without any training."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from hf_geossl.data.wording import counted
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.classifiers import (
    Predicted,
    accuracy_of,
    both_splits,
    count_classes,
    labelled_features,
    measure_classifier,
)
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.settings import ProtocolSettings

logger = logging.getLogger(__name__)

QUERIES, NEIGHBOURS = 512, 32768  # images in a block, whose similarities take 64 MB


@dataclass(frozen=True)
class KNNSettings(ProtocolSettings):
    """The protocol of DINO and iBOT.

    Args:
        neighbours (`tuple[int, ...]`): How many vote; those above the number of training images are left out, or the main one becomes that number.
        main_neighbours (`int`): Which of them `accuracy` is.
        temperature (`float`): A neighbour's vote weighs exp(cosine / temperature).
        feature (`str`): Which feature of `compute_features`.

    Source: DINO (arXiv 2104.14294) and iBOT (arXiv 2111.07832): 10, 20, 100 and 200 neighbours, temperature 0.07.
    """

    neighbours: tuple[int, ...] = (10, 20, 100, 200)
    main_neighbours: int = 20
    temperature: float = 0.07
    feature: str = "pooled"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.main_neighbours not in self.neighbours or min(self.neighbours) < 1:
            raise ValueError(
                f"neighbours must be at least 1 and hold main_neighbours = {self.main_neighbours}, got {self.neighbours}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


def vote(
    queries: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    neighbours: Sequence[int],
    num_classes: int,
    temperature: float,
    device: torch.device | str = "cpu",
) -> dict[int, np.ndarray]:
    """Votes of the nearest neighbours by cosine, weighted as `KNNSettings` say.

    Args:
        queries (`numpy.ndarray` of shape `(queries, width)`): Features of the images that are classified.
        features (`numpy.ndarray` of shape `(images, width)`): Features of the images that vote, of classes `labels`.
        neighbours (`Sequence[int]`): Numbers of neighbours, up to the number of images.

    Returns:
        `dict[int, numpy.ndarray]`: For each number of neighbours the votes, `(queries, num_classes)`, relative to that of
        a neighbour of cosine 1.
    """
    most = max(neighbours)
    classes = torch.from_numpy(np.array(labels)).long().to(device)
    blocks: dict[int, list[np.ndarray]] = {k: [] for k in neighbours}

    def load(rows: np.ndarray) -> torch.Tensor:
        return F.normalize(torch.from_numpy(np.array(rows, dtype=np.float32)).to(device), dim=1)

    for start in range(0, len(queries), QUERIES):
        query = load(queries[start : start + QUERIES])
        cosines = query.new_empty(len(query), 0)
        places = torch.empty(len(query), 0, dtype=torch.long, device=device)
        for first in range(0, len(features), NEIGHBOURS):
            block = query @ load(features[first : first + NEIGHBOURS]).T
            # (Q, k) so far and (Q, block): the nearest of both
            best, order = block.topk(min(most, block.shape[1]), dim=1)
            cosines, places = torch.cat([cosines, best], dim=1), torch.cat([places, order + first], dim=1)
            cosines, order = cosines.topk(min(most, cosines.shape[1]), dim=1)
            places = places.gather(1, order)
        weights = ((cosines - 1) / temperature).exp()
        for k in neighbours:
            votes = weights.new_zeros(len(query), num_classes)
            blocks[k].append(votes.scatter_add_(1, classes[places[:, :k]], weights[:, :k]).cpu().numpy())
    return {k: np.concatenate(votes) for k, votes in blocks.items()}


def measure_knn(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: KNNSettings
) -> TaskResult:
    """Accuracy of weighted k-NN.

    The metrics are those of the main number of neighbours, and `accuracy_k10` and so on of the others.

    Raises:
        ValueError: If there are no labels.
    """
    splits = both_splits(data)
    main = min(settings.main_neighbours, splits[0].count or settings.main_neighbours)
    if main < settings.main_neighbours:
        logger.warning(
            "%s has %s, fewer than the %d that vote: all vote (--set knn.main_neighbours=5 knn.neighbours=[5] takes fewer)",
            splits[0].name, counted(main, "image"), settings.main_neighbours,
        )  # fmt: skip

    def predict(model: Encoder, column: str) -> Predicted:
        features, labels, queries, truth = labelled_features(model, splits, column, "label", options)
        voting = min(main, len(labels))  # some images may be broken
        num_classes, _ = count_classes(splits[0], labels, truth)
        neighbours = [k for k in settings.neighbours if k <= len(labels) and k != voting]
        votes = vote(
            queries, features, labels, [voting, *neighbours], num_classes, settings.temperature, encoder.device
        )
        others = {f"accuracy_k{k}": accuracy_of(votes[k], truth) for k in neighbours}
        details = {"voting": voting} if voting < settings.main_neighbours else {}
        return Predicted(votes[voting], truth, labels, details, others)

    title = f"{encoder.name}, {main}-NN on {splits[1].name}"
    return measure_classifier(encoder, settings.feature, splits[0], settings, options, title, predict)


PROTOCOLS = {"knn": EvaluationProtocol(measure_knn, KNNSettings)}
