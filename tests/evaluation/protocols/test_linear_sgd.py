"""The linear probe by SGD: many learning rates at once, as each alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.protocols import linear_sgd
from tests.helpers.supervised import RenderedData, small_model
from tests.helpers.tiny_data import clusters

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


def test_heads_of_all_learning_rates_train_as_if_each_were_alone() -> None:
    features, labels = clusters(5, 96, 3)
    settings = linear_sgd.LinearSGDSettings(epochs=4, batch_size=32)
    device = torch.device("cpu")
    rows = np.arange(96)
    together = linear_sgd.train_heads(features, labels, rows, (0.1, 5.0, 0.01), 3, settings, QUIET, device)
    [alone] = linear_sgd.train_heads(features, labels, rows, (0.1,), 3, settings, QUIET, device)
    torch.testing.assert_close(together[0].weight, alone.weight, rtol=1e-4, atol=1e-6)
    assert (together[0].weight - together[2].weight).abs().max() > 0.01

    # the same by the textbook: momentum 0.9, a cosine to 0, the learning rate scaled by 32 / 256
    generator, expected = np.random.default_rng(QUIET.seed), torch.nn.Linear(12, 3)
    zero = linear_sgd.train_heads(features, labels, rows, (0.0,), 3, settings, QUIET, device)[0]
    expected.load_state_dict(zero.state_dict())  # a head that has not learned has its first weights
    velocity = [torch.zeros_like(p) for p in expected.parameters()]
    for epoch in range(4):
        order = generator.permutation(rows)
        for part in range(3):
            chosen = np.sort(order[32 * part : 32 * part + 32])
            rate = 0.1 * 32 / 256 * 0.5 * (1 + np.cos(np.pi * (3 * epoch + part) / 12))
            loss = F.cross_entropy(expected(torch.from_numpy(features[chosen])), torch.from_numpy(labels[chosen]))
            for p, v, g in zip(
                expected.parameters(), velocity, torch.autograd.grad(loss, list(expected.parameters())), strict=True
            ):
                v.mul_(0.9).add_(g)
                p.data.sub_(rate * v)
    torch.testing.assert_close(alone.weight, expected.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_linear_probe_sees_class_tokens_and_the_mean_patch_token(
    layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    original = linear_sgd.train_heads

    def watch(features: np.ndarray, *given: Any) -> Any:
        seen.append(features)
        return original(features, *given)

    monkeypatch.setattr(linear_sgd, "train_heads", watch)
    model, data = small_model(), RenderedData(limit=40)
    settings = linear_sgd.LinearSGDSettings((0.1,), epochs=1, class_token_layers=layers, average_pool=True)
    result = linear_sgd.measure_linear_sgd(load_encoder(model), data, QUIET, settings)
    assert result.details["feature"] == f"class_tokens_{layers}+mean"
    pixels = load_encoder(model).normalize(next(data.train.batches(40))["image"])
    with torch.no_grad():
        states = model.eval()(pixels, output_hidden_states=True).hidden_states[-layers:]
        states = [model.layernorm(state) for state in states]
    parts = [state[:, 0] for state in states] + [states[-1][:, 1:].mean(dim=1)]
    np.testing.assert_allclose(seen[0], torch.cat(parts, dim=1), atol=1e-5)
    without = linear_sgd.measure_linear_sgd(load_encoder(model), data, QUIET, replace(settings, average_pool=False))
    assert seen[-1].shape[1] == 3 * 144  # the last floor, a thumbnail
    assert without.details["feature"] == f"class_tokens_{layers}"
