"""Losses on held-out images: means over images of one pass."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.training.logs.held_out import HeldOutLosses
from hf_geossl.training.seeds import EVALUATION, EVALUATION_VIEWS, seed_at
from tests.helpers.gtsa_run import make_trainer
from tests.helpers.inputs import evaluation_inputs


def test_evaluation_gives_the_pretraining_loss_of_one_pass(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, per_device_eval_batch_size=10)
    trainer.eval_dataset = None
    first = trainer.evaluate(images)["eval_loss"]
    assert trainer.evaluate(images)["eval_loss"] == first
    batches = list(trainer.get_eval_dataloader(images))
    assert [len(batch["crop_boxes"]) for batch in batches] == [10, 10, 4]
    trainer.model.eval()
    losses = [trainer.model(**evaluation_inputs(trainer, batch)).loss.item() for batch in batches]  # the final weights
    assert first == pytest.approx(np.average(losses, weights=[10, 10, 4]), abs=1e-5)  # over images


class Small(torch.nn.Module):
    """A model whose loss is the mean of its images plus a number that it draws."""

    teacher = None

    def forward(self, crops: torch.Tensor) -> dict[str, torch.Tensor]:
        assert not self.training
        self.drawn = torch.rand(())
        return {"loss": crops.float().mean() + self.drawn, "a_loss": crops.float().mean()}


class Batches(list[Any]):
    """Batches that know how many images all processes have."""

    images = 7


def _measure(folder: Path, sizes: tuple[int, ...], rank: int = 0) -> tuple[dict[str, float], list[float]]:
    args: Any = SimpleNamespace(device=torch.device("cpu"), seed=3, process_index=rank)
    views: Any = SimpleNamespace(
        augment=lambda batch, generator: {"crops": batch["crops"] + torch.rand((), generator=generator).item()}
    )
    alone: Any = SimpleNamespace(gather=lambda tensor: tensor, autocast=contextlib.nullcontext)
    drawn: list[float] = []
    model: Any = Small()
    batches = [
        {"crops": torch.full((size, 2), 10.0 * number), "evaluation_batch": number} for number, size in enumerate(sizes)
    ]
    held_out = HeldOutLosses(args, views, alone, dict)
    means = held_out.measure(model, Batches(batches), lambda batch: batch, lambda: drawn.append(model.drawn.item()))
    return means, drawn


def test_means_are_over_images_from_the_same_draws_each_time(tmp_path: Path) -> None:
    """Batches of 3, 3 and 1 images with values 0, 10 and 20, each with a colour and a number drawn from its place."""
    torch.manual_seed(11)
    state = torch.get_rng_state()
    means, drawn = _measure(tmp_path, (3, 3, 1))
    assert torch.equal(torch.get_rng_state(), state)
    colours = [
        torch.rand((), generator=torch.Generator().manual_seed(seed_at(3, 0, EVALUATION_VIEWS, number))).item()
        for number in range(3)
    ]
    with torch.random.fork_rng(devices=[]):
        expected = []
        for number in range(3):
            torch.manual_seed(seed_at(3, 0, EVALUATION, number))
            expected.append(torch.rand(()).item())
    assert drawn == expected
    parts = [0 + colours[0], 10 + colours[1], 20 + colours[2]]
    assert means["a_loss"] == pytest.approx(np.average(parts, weights=[3, 3, 1]), rel=1e-6)
    assert means["loss"] == pytest.approx(np.average(np.add(parts, drawn), weights=[3, 3, 1]), rel=1e-6)
    torch.manual_seed(12)
    assert _measure(tmp_path, (3, 3, 1)) == (means, drawn)
    assert _measure(tmp_path, (3, 3, 1), rank=1)[1] != drawn


def test_the_generator_is_left_as_it_was_where_a_batch_fails(tmp_path: Path) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        _measure(tmp_path, (3, -1))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_image_gives_no_number(tmp_path: Path) -> None:
    assert _measure(tmp_path, ()) == ({}, [])
