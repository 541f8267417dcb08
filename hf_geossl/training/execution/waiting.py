"""What spares the host from waiting for its GPU while that has nothing to do: values read late, a step made on conditions."""

from typing import Any

import torch
from transformers import Trainer, TrainingArguments


class HostCopy:
    """Values of a tensor on their way to the host, read without waiting for what the device is given after it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._values, self._copied = tensor, None
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def tolist(self) -> list:
        """The values, as soon as the device has computed them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


class ConditionalAdamW(torch.optim.AdamW):
    """AdamW that makes a step or leaves it out, moments too, as a tensor on the device says; where it is fused.

    It is what a gradient scaler asks of fused optimizers (`found_inf`).
    """

    found_inf: torch.Tensor | None = None

    @property
    def is_conditional(self) -> bool:
        """Whether `make_step_where` can be called."""
        return all(group["fused"] for group in self.param_groups)

    def make_step_where(self, made: torch.Tensor | None) -> None:
        """Makes the next steps only where `made`, bool of shape `()`, is True; all of them with None."""
        self.found_inf = None if made is None else (~made).float()


def conditional_adamw(args: TrainingArguments, optimizers: Any = None) -> dict[str, Any]:
    """The argument of `Trainer` that puts `ConditionalAdamW` in the place of its fused AdamW; nothing for other optimizers.

    `optimizers` is what the user gives `Trainer` of this name.
    """
    if any(optimizers or ()) or getattr(args.optim, "value", args.optim) != "adamw_torch_fused":
        return {}
    return {"optimizer_cls_and_kwargs": (ConditionalAdamW, Trainer.get_optimizer_cls_and_kwargs(args)[1])}
