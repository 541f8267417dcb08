"""What the model of a run gets: recorded while it trains, and made again for an evaluation."""

from collections.abc import Callable
from typing import Any

import torch

from hf_geossl.training.feed import EVALUATION_VIEWS, seed_at


def record_inputs(trainer: Any) -> list[dict[str, Any]]:
    """A list that each micro-batch of the training is added to from here on, as the model gets it."""
    seen: list[dict[str, Any]] = []
    make_inputs: Callable[..., Any] = trainer.feed.make_inputs

    def make_and_note(*args: Any) -> Any:
        inputs, keys = make_inputs(*args)
        seen.append(inputs)
        return inputs, keys

    trainer.feed.make_inputs = make_and_note
    return seen


def evaluation_inputs(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What the model gets of a batch of `trainer.get_eval_dataloader()`."""
    crops = dict(batch)
    number = crops.pop("evaluation_batch")
    generator = torch.Generator().manual_seed(seed_at(trainer.args.seed, 0, EVALUATION_VIEWS, number))
    return trainer.views.augment(crops, generator)
