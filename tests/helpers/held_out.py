"""The inputs that an evaluation makes of a batch, made again."""

from typing import Any

import torch

from hf_geossl.training.seeds import EVALUATION_VIEWS, seed_at


def evaluation_inputs(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What the model gets of a batch of `trainer.get_eval_dataloader()`."""
    crops = dict(batch)
    number = crops.pop("evaluation_batch")
    generator = torch.Generator().manual_seed(seed_at(trainer.args.seed, 0, EVALUATION_VIEWS, number))
    return trainer.views.augment(crops, generator)
