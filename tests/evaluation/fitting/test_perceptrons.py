"""Perceptrons: on what is not linear, and trained together as each would be alone."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

from hf_geossl.evaluation.fitting.perceptrons import Perceptrons
from hf_geossl.evaluation.fitting.regression import Pairs, Ridge
from hf_geossl.evaluation.options import EvaluationOptions

CPU = torch.device("cpu")
QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


def test_perceptron_learns_what_is_not_linear_and_leaves_the_generator_alone() -> None:
    def pairs(seed: int, images: int) -> Pairs:
        x = np.random.default_rng(seed).uniform(-1, 1, size=(images, 3)).astype(np.float32)
        return Pairs([(x,)], [30 * np.abs(x[:, :1]) - 15 + 5 * x[:, 1:2] * x[:, 2:]])

    state = torch.random.get_rng_state()
    given: dict[str, Any] = {
        "hidden_size": 64,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "options": QUIET,
        "device": CPU,
    }
    train, test = pairs(1, 512), pairs(2, 200)
    found = Perceptrons({"x": train}, [(-20, 20)], epochs=60, **given).predict({"x": test})["x"]
    assert r2_score(test.truth, found) > 0.97
    assert r2_score(test.truth, Ridge(train, np.arange(512) < 99, (1e-3,), CPU).predict(test)) < 0.1
    again = Perceptrons({"x": train}, [(-20, 20)], epochs=60, **given).predict({"x": test})["x"]
    np.testing.assert_array_equal(found, again)
    assert torch.equal(state, torch.random.get_rng_state())


def alone(train: Pairs, test: Pairs, hidden: int, epochs: int, size: int) -> np.ndarray:
    """One perceptron in plain PyTorch, with an optimizer of its own."""
    x = torch.stack([torch.from_numpy(np.concatenate(parts, axis=1)) for parts in train.parts])
    y = torch.stack([torch.from_numpy(target) for target in train.targets]).float() / 3
    mean, deviation = x.flatten(0, 1).mean(0), x.flatten(0, 1).std(0, correction=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = (x.shape[2], hidden, hidden, y.shape[2])
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimizer, generator = torch.optim.Adam(network.parameters(), 1e-2), np.random.default_rng(0)
    for epoch in range(epochs):
        order = generator.permutation(x.shape[1])
        for start in range(0, x.shape[1] - size + 1, size):
            rows = np.sort(order[start : start + size])
            loss = nn.functional.mse_loss(network((x[epoch % 2, rows] - mean) / deviation), y[epoch % 2, rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    queries = torch.cat([torch.from_numpy(np.concatenate(parts, axis=1)) for parts in test.parts])
    return (network((queries - mean) / deviation) * 3).detach().numpy()


@pytest.mark.parametrize("resident", [2**20, 0])
def test_together_they_are_what_each_is_alone(resident: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_geossl.evaluation.fitting.perceptrons.RESIDENT", resident)

    def kinds(seed: int) -> dict[str, Pairs]:
        draw = np.random.default_rng(seed)
        x, z = ([draw.normal(2, 3, (40, width)).astype(np.float32) for _ in range(2)] for width in (3, 7))
        targets = [draw.uniform(-3, 3, (40, 2)) for _ in range(2)]
        return {"narrow": Pairs([(part,) for part in x], targets), "wide": Pairs([(z[0], part) for part in z], targets)}

    train, test = kinds(1), kinds(2)
    together = Perceptrons(
        train,
        [(-3, 3), (-3, 3)],
        hidden_size=16,
        epochs=6,
        batch_size=16,
        learning_rate=1e-2,
        options=QUIET,
        device=CPU,
    ).predict(test)
    for name in train:
        np.testing.assert_allclose(together[name], alone(train[name], test[name], 16, 6, 16), atol=2e-5)
