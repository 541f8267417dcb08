"""Multilayer perceptrons on pairs of features: one for each kind of features, all of them trained at once."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from hf_geossl.evaluation.fitting.fit import fit, seeded
from hf_geossl.evaluation.fitting.regression import Pairs
from hf_geossl.evaluation.options import EvaluationOptions

RESIDENT = 2**32  # bytes of features that lie on the device during training; more are read batch by batch
Batch = tuple[list[torch.Tensor], torch.Tensor]  # standardised features of each kind, and targets


class Perceptrons:
    """Two hidden layers with ReLU on standardised features, trained by Adam on the mean squared error.

    The learning rate is constant. An epoch visits each image once, with the next of its transformations. Perceptrons are
    independent of each other: each starts from the same draws and sees the same images in the same order, as if it were alone.

    Args:
        pairs (`Mapping[str, Pairs]`): Features by their kind; of the same images, with the same targets.
        ranges (`Sequence[tuple[float, float]]`): The smallest and largest value of each target, which become -1 and 1.
        hidden_size (`int`): Width of both hidden layers.
        epochs, batch_size, learning_rate: Of the training.
        options (`EvaluationOptions`): Seed and progress.
        device (`torch.device`): Where they are trained.

    Source: The evaluation head of SIE (arXiv 2302.10283), which EquiCoherent (arXiv 2503.18753) follows.
    """

    def __init__(
        self,
        pairs: Mapping[str, Pairs],
        ranges: Sequence[tuple[float, float]],
        *,
        hidden_size: int,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        options: EvaluationOptions,
        device: torch.device,
    ) -> None:
        self._device = device
        low, high = torch.tensor(ranges, dtype=torch.float64, device=device).T
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._scales = {name: _mean_and_deviation(one, device) for name, one in pairs.items()}
        first = next(iter(pairs.values()))
        size = min(batch_size, first.images)
        batches = self._batches(pairs, epochs, size, options.seed)

        def loss(batch: Batch) -> torch.Tensor:
            inputs, targets = batch
            with torch.autocast(device.type, enabled=False):
                wanted = ((targets - self._middle) / self._half).float()
                return (self._networks(inputs) - wanted).square().mean(dim=(1, 2)).sum()  # each its own mean

        self._networks = _Networks([one.width for one in pairs.values()], hidden_size, first.outputs, options.seed)
        self._networks.to(device)
        optimizer = torch.optim.Adam(self._networks.parameters(), learning_rate, fused=True)
        steps = epochs * (first.images // size)
        fit(optimizer, loss, batches, options, steps=steps, description="MLPs", schedule="constant")

    def _batches(self, pairs: Mapping[str, Pairs], epochs: int, size: int, seed: int) -> Iterator[Batch]:
        first, transformations = next(iter(pairs.values())), range(len(next(iter(pairs.values())).parts))
        images = np.arange(first.images)
        numbers = sum(one.width for one in pairs.values()) * first.images * len(transformations)
        resident = None
        if 4 * numbers <= RESIDENT:
            resident = [self._rows(pairs, transformation, images) for transformation in transformations]
        generator = np.random.default_rng(seed)
        for epoch in range(epochs):
            order = generator.permutation(first.images)
            transformation = epoch % len(transformations)
            for start in range(0, first.images - size + 1, size):
                chosen = np.sort(order[start : start + size])
                if resident is None:
                    yield self._rows(pairs, transformation, chosen)
                else:
                    inputs, targets = resident[transformation]
                    rows = torch.from_numpy(chosen).to(self._device, non_blocking=True)
                    yield [x[rows] for x in inputs], targets[rows]

    def _rows(self, pairs: Mapping[str, Pairs], transformation: int, images: np.ndarray) -> Batch:
        inputs = [
            self._standardized(name, one.rows(transformation, images)[0].to(self._device))
            for name, one in pairs.items()
        ]
        targets = next(iter(pairs.values())).targets[transformation][images]
        return inputs, torch.from_numpy(np.asarray(targets, np.float64)).to(self._device)

    def _standardized(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._scales[name]
        return (x - mean) / deviation

    @torch.no_grad()
    def predict(self, pairs: Mapping[str, Pairs]) -> dict[str, np.ndarray]:
        """Predictions `(transformations * images, outputs)` in the units of the targets, by the kind of features."""
        predictions = {}
        for place, (name, one) in enumerate(pairs.items()):
            blocks = (
                self._networks.forward_one(place, self._standardized(name, x.to(self._device)))
                for x, _ in one.blocks(np.arange(one.images))
            )
            parts = [(block.double() * self._half + self._middle).cpu() for block in blocks]
            predictions[name] = torch.cat(parts).numpy()
        return predictions


def _mean_and_deviation(pairs: Pairs, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    count, total, squares = 0, torch.zeros(pairs.width).double(), torch.zeros(pairs.width).double()
    for x, _ in pairs.blocks(np.arange(pairs.images)):
        count, total, squares = count + len(x), total + x.double().sum(0), squares + x.double().square().sum(0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    return mean.float().to(device), torch.where(deviation > 1e-6, deviation, 1.0).float().to(device)


class _Networks(nn.Module):
    """Perceptrons whose first layers differ in width; the others are multiplied together."""

    def __init__(self, widths: Sequence[int], hidden_size: int, outputs: int, seed: int) -> None:
        super().__init__()
        networks = []
        for width in widths:
            with seeded(seed, torch.device("cpu")):
                sizes = ((width, hidden_size), (hidden_size, hidden_size), (hidden_size, outputs))
                networks.append([nn.Linear(*pair) for pair in sizes])
        self.first = nn.ModuleList(layers[0] for layers in networks)
        self.second_weight, self.second_bias = _stacked([layers[1] for layers in networks])
        self.third_weight, self.third_bias = _stacked([layers[2] for layers in networks])

    def forward(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features `(batch, width)` of each kind -> predictions `(networks, batch, outputs)`."""
        hidden = torch.stack([layer(x) for layer, x in zip(self.first, inputs, strict=True)]).relu()
        hidden = torch.baddbmm(self.second_bias, hidden, self.second_weight).relu()
        return torch.baddbmm(self.third_bias, hidden, self.third_weight)

    def forward_one(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """The same of one network alone: `(batch, width)` -> `(batch, outputs)`."""
        hidden = self.first[place](x).relu()
        hidden = torch.addmm(self.second_bias[place], hidden, self.second_weight[place]).relu()
        return torch.addmm(self.third_bias[place], hidden, self.third_weight[place])


def _stacked(layers: Sequence[nn.Linear]) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights `(layers, inputs, outputs)` and biases `(layers, 1, outputs)`."""
    weights = torch.stack([layer.weight.detach().T for layer in layers]).contiguous()
    return nn.Parameter(weights), nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))
