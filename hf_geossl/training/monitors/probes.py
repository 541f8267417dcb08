"""The spread of features, measured on the batches that are trained on."""

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.sharding import unshard

Inputs = Mapping[str, torch.Tensor]
Features = Callable[[TeacherStudentModel, Inputs], dict[str, torch.Tensor]]


def spread(features: torch.Tensor) -> float | None:
    """How evenly normalised features of shape `(rows, channels)` point in all directions; None for a single row.

    It is the norm of the channels' standard deviations: 0 where all features are the same, 1 where they are even.
    """
    if len(features) < 2:
        return None
    return F.normalize(features.float(), dim=-1).std(dim=0, correction=0).norm().item()


class Probes:
    """Measures every few steps (0 is never) the spread of features, `(rows, channels)` by its name."""

    def __init__(self, every: int, features: Features) -> None:
        self.every, self.features = every, features
        self.contrast: float | None = None  # of the images that were last measured

    def is_due(self, step: int) -> bool:
        """Whether step `step` is measured."""
        return bool(self.every) and step % self.every == 0

    @torch.no_grad()
    def measure(self, model: TeacherStudentModel, inputs: Inputs) -> dict[str, float]:
        """The spreads of a batch by name, of each kind of features that has more than one row."""
        unshard(model)
        network = model if model.teacher is None else model.teacher
        training = network.training
        network.eval()  # stochastic depth would draw numbers that the run needs
        measured = {name: spread(features) for name, features in self.features(model, inputs).items()}
        network.train(training)
        views = next((value for name, value in inputs.items() if name.endswith("pixel_values")), None)
        self.contrast = None if views is None else views.float().std(dim=(-2, -1)).mean().item()
        return {name: value for name, value in measured.items() if value is not None}
