"""`ScheduledTrainer`: how the weights move: schedules of the step, parameter groups, clipping."""

from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR

from hf_geossl.training.schedules import cosine, warmup_cosine
from hf_geossl.training.sharding import gradient_norms, local_parts, whole
from hf_geossl.training.stream_trainer import StreamTrainer


def clip_each_tensor(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Clips each gradient by itself, in place, without waiting for the device.

    Args:
        gradients (`list[torch.Tensor]`): The gradients; at least one.
        max_norm (`float`): Above 0; no gradient's norm is larger afterwards.

    Returns:
        `torch.Tensor` of shape `()`: the norm of all of them together, before.

    Source: arXiv 2304.08014, the authors' code; epsilon 1e-6 in the quotient.
    """
    norms = gradient_norms(gradients)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(local_parts(gradients), list(factors.unbind()))
    return torch.linalg.vector_norm(norms)


class ScheduledTrainer(StreamTrainer):
    """What is a function of the optimizer step, and of each parameter's kind; the rest is `TeacherStudentTrainer`'s."""

    # ---- Schedules, functions of the step ----

    def learning_rate_share_at(self, step: int, total_steps: int, warmup_steps: int, end: float) -> float:
        """Learning rate at optimizer step `step` as a share of the peak; `end` is the share at `total_steps`."""
        return warmup_cosine(step, total_steps, warmup_steps, 1.0, end)

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of the decayed parameters at optimizer step `step`."""
        start, end = self.args.weight_decay, self.args.weight_decay_end
        return start if end is None else cosine(step, self.state.max_steps, start, end)

    def teacher_momentum_at(self, step: int) -> float:
        """Momentum that the teacher moves with after optimizer step `step`."""
        return cosine(step, self.state.max_steps, self.args.teacher_momentum, self.args.teacher_momentum_end)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up and cosine to `min_learning_rate`; for another `lr_scheduler_type` transformers' own."""
        if self.lr_scheduler is not None or self.args.lr_scheduler_type != "cosine":
            return super().create_scheduler(num_training_steps, optimizer)
        warmup, peak = self.args.get_warmup_steps(num_training_steps), self.args.learning_rate
        if self.args.min_learning_rate is None:
            end = 0.01
        else:
            end = self.args.min_learning_rate / peak if peak else 0.0
        self.lr_scheduler = LambdaLR(
            cast(torch.optim.Optimizer, optimizer or self.optimizer),
            lambda step: self.learning_rate_share_at(step, num_training_steps, warmup, end),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_optimizer(self, model: Any = None) -> Any:
        """Transformers' optimizer; groups know whether they are decayed, and have `learning_rate_share` of the rate."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if created:
            trained = self.model if model is None else model
            names = set(self.get_decay_parameter_names(trained))
            decayed = {id(parameter) for name, parameter in trained.named_parameters() if name in names}
            shares = {id(parameter): self.learning_rate_share(name) for name, parameter in trained.named_parameters()}
            groups = []
            for group in optimizer.param_groups:
                group["decayed"] = all(id(parameter) in decayed for parameter in group["params"])
                for share in sorted({shares[id(parameter)] for parameter in group["params"]}, reverse=True):
                    chosen = [parameter for parameter in group["params"] if shares[id(parameter)] == share]
                    groups.append({**group, "params": chosen, "lr": group["lr"] * share})
            optimizer.param_groups[:] = groups  # there is no state yet
        return optimizer

    def learning_rate_share(self, name: str) -> float:
        """Learning rate of a parameter as a share of the run's."""
        return 1.0

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Trained tensors of two or more dimensions that are no bias: class token and positions too (GTSA, 2.7)."""
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.ndim >= 2 and not name.endswith(".bias")
        ]

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clips to `max_grad_norm`: all gradients together, or each tensor by itself; returns the norm before."""
        if self.args.clip_mode == "global":
            return whole(super()._clip_grad_norm(model))
        self.accelerator.unscale_gradients()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return clip_each_tensor(gradients, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As transformers', of all processes' parts."""
        return whole(super()._get_grad_norm(model, grad_norm))
