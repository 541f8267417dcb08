"""k nearest neighbours on frozen features: the class of an image without any training."""

import logging
from dataclasses import dataclass

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
from hf_geossl.evaluation.settings import ProtocolSettings, Scale, Work
from hf_geossl.training.monitors.classifiers import vote

logger = logging.getLogger(__name__)


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

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        return Work({"images": scale.images}, 2 * scale.images, operations=6 * scale.train * scale.test * scale.width)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.main_neighbours not in self.neighbours or min(self.neighbours) < 1:
            raise ValueError(
                f"neighbours must be at least 1 and hold main_neighbours = {self.main_neighbours}, got {self.neighbours}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


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
