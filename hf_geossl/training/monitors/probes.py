"""Measurements of features while a run goes on, which leave its random numbers as they are."""

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.sharding import unshard

Inputs = Mapping[str, torch.Tensor]
Features = Callable[[TeacherStudentModel, Inputs], dict[str, torch.Tensor]]


def spread(features: torch.Tensor) -> float | None:
    """How evenly normalised features point in all directions.

    Args:
        features (`torch.Tensor` of shape `(rows, channels)`): The features.

    Returns:
        `float` or `None`: Norm of the standard deviations of the channels: 0 where all features are the same, 1 where
        they are even. None for a single row.
    """
    if len(features) < 2:
        return None
    return F.normalize(features.float(), dim=-1).std(dim=0, correction=0).norm().item()


class Probes:
    """Measures the spread of features every few steps.

    Args:
        every (`int`): Optimizer steps between two measurements; 0 is never.
        features (`Callable`): Model and inputs -> features `(rows, channels)` by the name of their spread.
    """

    def __init__(self, every: int, features: Features) -> None:
        self.every, self.features = every, features

    def is_due(self, step: int) -> bool:
        """Whether step `step` is measured."""
        return bool(self.every) and step % self.every == 0

    @torch.no_grad()
    def measure(self, model: TeacherStudentModel, inputs: Inputs) -> dict[str, float]:
        """The spreads of a batch by name.

        Args:
            model (`TeacherStudentModel`): The model, without a wrapper.
            inputs (`Mapping[str, torch.Tensor]`): What its forward takes.

        Returns:
            `dict[str, float]`: One of each kind of features that has more than one row.
        """
        unshard(model)
        network = model if model.teacher is None else model.teacher
        training = network.training
        network.eval()  # stochastic depth would draw numbers that the run needs
        measured = {name: spread(features) for name, features in self.features(model, inputs).items()}
        network.train(training)
        return {name: value for name, value in measured.items() if value is not None}
