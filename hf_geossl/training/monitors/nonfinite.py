"""Optimizer steps whose loss or gradient is not finite are left out, on all processes together."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from hf_geossl.training.checkpoints.files import newest_whole_checkpoint
from hf_geossl.training.execution.waiting import HostCopy

logger = logging.getLogger(__name__)


class NonFiniteLossError(FloatingPointError):
    """Losses or gradients stay infinite or not a number; the message names the step, the images and the last checkpoint."""


class NonFiniteGuard:
    """Decides on all processes together whether an optimizer step is left out, and counts the steps that were.

    Attributes:
        skipped, in_a_row (`int`): Steps left out since the start of the run, and since the last step that was made.
        skips (`bool`): Whether the present step is left out.
        overflows (`bool`): Whether a gradient scaler leaves it out, which then lowers its scale.
        pending (`bool`): Whether that is still to be read.
        keys (`list[str]`): The images of the present step.
    """

    def __init__(self, max_in_a_row: int, run_dir: Path, rank: int = 0, world_size: int = 1) -> None:
        self.max_in_a_row, self.run_dir, self.rank, self.world_size = max_in_a_row, run_dir, rank, world_size
        self.skipped = self.in_a_row = 0
        self.step = 0  # that was last asked about
        self.begin_step()

    def begin_step(self) -> None:
        """Forgets the step before."""
        self._loss: torch.Tensor | None = None
        self._gradient: torch.Tensor | None = None
        self._flags: HostCopy | None = None
        self.skips = self.overflows = False
        self.keys: list[str] = []

    @property
    def pending(self) -> bool:
        """Whether the device has been asked about the present step, and its answer has not been read."""
        return self._flags is not None

    def observe_images(self, keys: list[str]) -> None:
        """Notes the images of a micro-batch."""
        self.keys = [*self.keys, *keys]

    def observe_loss(self, loss: torch.Tensor) -> None:
        """Notes whether a micro-batch's loss is finite, without waiting for the device."""
        finite = torch.isfinite(loss)
        self._loss = finite if self._loss is None else self._loss & finite

    def observe_grad_norm(self, norm: torch.Tensor | float) -> None:
        """Notes whether the norm of the step's gradient is finite, without waiting for the device."""
        if self._loss is not None:
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self._gradient = torch.isfinite(torch.as_tensor(norm, device=self._loss.device))

    def ask(self, step: int, received_signal: int) -> torch.Tensor | None:
        """Asks the device, for all processes together, whether step `step` can be made; `read` tells the host.

        Takes the signal that this process has received. Gives a bool of shape `()` on the device, None without a loss.
        """
        self.step = step
        if self._loss is None:
            return None
        gradient = self._loss if self._gradient is None else self._gradient
        flags = torch.stack([(~finite).long().reshape(()) for finite in (self._loss, gradient)])
        flags = torch.cat([flags, torch.full_like(flags[:1], received_signal)])
        if self.world_size > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        self._flags = HostCopy(flags)
        return flags[:2].sum() == 0

    def read(self, scaled: bool = False) -> int:
        """Reads, for all processes together, whether the step is left out; waits for the device, once a step.

        Returns the signal that any process has received, or 0. With `scaled` a gradient scaler handles gradients that are
        not finite.
        """
        assert self._flags is not None
        broken_loss, broken_gradient, received_signal = self._flags.tolist()
        self._flags = None
        self.skips = bool(broken_loss or (broken_gradient and not scaled))
        self.overflows = bool(broken_gradient and scaled and not broken_loss)
        return received_signal

    def skip_overflow(self) -> None:
        """Counts the present step as left out although the gradient scaler can lower its scale no further."""
        self.skips = True

    def count_skipped(self, step: int) -> None:
        """Counts the present step as left out and writes down its images; raises at the last of `max_in_a_row`."""
        self.skipped += 1
        self.in_a_row += 1
        record = self.run_dir / f"nonfinite_step_{step}_rank_{self.rank}.json"
        own_loss = self._loss is None or bool(self._loss)
        text = json.dumps({"step": step, "loss_of_this_process_is_finite": own_loss, "keys": self.keys}, indent=1)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            record.write_text(text)
        except OSError as error:
            logger.warning(f"{record.name} could not be written ({error.strerror})")
        more = " ..." if len(self.keys) > 4 else ""
        images = f"its images are {', '.join(self.keys[:4])}{more} (all in {record.name})"
        if self.in_a_row < self.max_in_a_row:
            logger.warning(
                f"step {step} is left out, its loss or gradient is not finite: weights and teacher stay; {images}. "
                f"The run stops after {self.max_in_a_row} such steps in a row (max_nonfinite_steps)"
            )
            return
        last = newest_whole_checkpoint(self.run_dir)
        kept = f"{last.name} is kept" if last else "there is no checkpoint yet"
        before = self.in_a_row - 1
        row = f", as {'in the step' if before == 1 else f'in the {before} steps'} before it" if before else ""
        raise NonFiniteLossError(
            f"the loss of step {step} or its gradient is not finite{row}; {images}; the weights did not move and {kept}. "
            "Lower base_learning_rate, lengthen warmup_steps or train in bf16 instead of fp16, then resume."
        )

    def count_made(self) -> None:
        """Notes that the weights have moved."""
        self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint holds of the guard."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int] | None) -> None:
        """Goes on from a checkpoint's `state_dict()`; from 0 without one. What a call of `train` that broke off left goes."""
        state = state or {"skipped": 0, "in_a_row": 0}
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.begin_step()
