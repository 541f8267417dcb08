"""In which precision encoders and heads compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """bfloat16 autocast on a GPU, float32 elsewhere."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 inside of `mixed_precision`: for coordinates and scores, which bfloat16 would round."""
    with torch.autocast(device.type, enabled=False):
        yield
