"""The training loop of heads: its schedules, its seed, and learning rates by depth."""

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

from hf_geossl.evaluation.fitting.fit import fit, layer_decay_groups, seeded
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationOptions
from tests.helpers.supervised import small_model

QUIET = EvaluationOptions(progress=False)


def rates(schedule: str, steps: int = 8, warmup_steps: int = 2) -> list[float]:
    """The learning rates of a weight whose gradient is always 1, by how far SGD moves it."""
    weight = nn.Parameter(torch.zeros(()))
    places: list[float] = []

    def compute_loss(batch: int) -> torch.Tensor:
        places.append(weight.item())
        return weight * 1.0

    optimizer = torch.optim.SGD([weight], lr=0.5)
    fit(
        optimizer,
        compute_loss,
        iter(range(steps)),
        QUIET,
        steps=steps,
        description="",
        warmup_steps=warmup_steps,
        schedule=schedule,
    )
    places.append(weight.item())
    return [before - after for before, after in pairwise(places)]


def test_learning_rates_follow_the_schedules() -> None:
    assert rates("poly") == pytest.approx([0.25, 0.5, *(0.5 * (1 - k / 6) for k in range(6))], abs=1e-6)
    cosine = [0.25 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert rates("cosine") == pytest.approx([0.25, 0.5, *cosine], abs=1e-6)
    assert rates("constant", warmup_steps=0) == pytest.approx([0.5] * 8)


def test_gradients_are_clipped_and_losses_returned() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    losses = fit(
        optimizer,
        lambda batch: (weight * batch).sum(),
        iter([torch.tensor([30.0, 40.0])]),
        QUIET,
        steps=1,
        description="",
        schedule="constant",
        max_norm=1.0,
    )
    assert losses == [250.0]
    torch.testing.assert_close(weight.data, torch.tensor([2.4, 3.2]))


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    weight = nn.Parameter(torch.zeros(()))
    batches: Iterator[float] = iter([math.inf])
    with pytest.raises(FloatingPointError, match="heads: the loss is nan at step 0; lower the learning rate"):
        fit(torch.optim.SGD([weight]), lambda batch: weight * batch, batches, QUIET, steps=1, description="heads")


def test_draws_inside_follow_from_the_seed_and_leave_the_generator_alone() -> None:
    state = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with seeded(3, torch.device("cpu")):
            drawn.append(torch.rand(4))
    torch.manual_seed(3)
    assert torch.equal(drawn[0], torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    torch.set_rng_state(state)


def test_learning_rates_decay_from_the_head_down() -> None:
    encoder, head = load_encoder(small_model()).trainable_copy(), nn.Linear(96, 5)
    groups = layer_decay_groups(encoder, head, 1e-3, 0.05, 0.5, trunk_factor=0.1)
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(group_of) == len(list(encoder.module.parameters())) + 2
    for name, parameter in encoder.module.named_parameters():
        group = group_of[id(parameter)]
        # 3 layers under the head: embeddings are 4 below it, layer 0 is 3 below, the final norm 1
        below = 3 - int(name.split("layer.")[1].split(".")[0]) if "layer." in name else 1 if "layernorm" in name else 4
        assert group["lr"] == pytest.approx(1e-4 * 0.5**below), name
        decayed = parameter.ndim > 1 and "token" not in name and "position" not in name
        assert group["weight_decay"] == (0.05 if decayed else 0.0), name
    assert {group_of[id(p)]["lr"] for p in head.parameters()} == {1e-3}
    assert (group_of[id(head.weight)]["weight_decay"], group_of[id(head.bias)]["weight_decay"]) == (0.05, 0.0)
