"""How the weights move: `OptimizerPlan` holds what is a function of the optimizer step, or of a parameter's name."""

import logging
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from hf_geossl.training.adaptation.trunk import lr_multiplier, name_in_trunk
from hf_geossl.training.arguments import TeacherStudentTrainingArguments
from hf_geossl.training.schedules import cosine, late_start, steps_of, warmup_cosine
from hf_geossl.training.sharding import full_tensor, gradient_norms, local_parts

logger = logging.getLogger(__name__)


class OptimizerPlan:
    """Learning rate, weight decay, teacher momentum, parameter groups and clipping of a run.

    One convention for the optimizer step: steps are counted from 0, and `step` is the number of steps made before it. Step
    `step` uses the learning rate and the weight decay of `step`; after it the teacher moves with the momentum of `step`.
    """

    def __init__(self, args: TeacherStudentTrainingArguments) -> None:
        self.args = args

    def lr_lambda(self, step: int, total_steps: int, warmup_steps: int, end: float) -> float:
        """Learning rate at a step as a share of the peak, in [0, 1]; `end` is the share at `total_steps`."""
        return warmup_cosine(step, total_steps, warmup_steps, 1.0, end)

    def lr_multiplier(self, name: str, model: PreTrainedModel) -> float:
        """Learning rate of the parameter `name` of `model`, as a share of the run's; see `adaptation.trunk`."""
        return lr_multiplier(name, model, self.args.layer_decay, self.args.patch_embed_learning_rate)

    def trunk_ramp(self, step: int) -> float:
        """Share of its learning rate that the trunk has at a step: 0 while it is frozen, then linearly up to 1."""
        args = self.args
        frozen, warmup = (
            steps_of(steps, args.max_steps) for steps in (args.freeze_trunk_steps, args.trunk_warmup_steps)
        )
        return late_start(step, frozen, warmup)

    def drop_frozen_gradients(self, model: PreTrainedModel, step: int) -> None:
        """Takes the trunk's gradients away while it is frozen, so that no optimizer moves or decays it, or has state of it.

        It is not `requires_grad` that changes in the course of a run: DDP waits for the gradients that it was made with.
        """
        if self.trunk_ramp(step) == 0.0:
            frozen = [value for name, value in model.named_parameters() if name_in_trunk(name, model) is not None]
            nn.ParameterList(frozen).zero_grad(set_to_none=True)

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of the decayed parameters at a step."""
        start, end = self.args.weight_decay, self.args.weight_decay_end
        return start if end is None else cosine(step, self.args.max_steps, start, end)

    def teacher_momentum_at(self, step: int) -> float:
        """Momentum that the teacher moves with after a step."""
        return cosine(step, self.args.max_steps, self.args.teacher_momentum, self.args.teacher_momentum_end)

    def decayed_parameters(self, model: nn.Module) -> list[str]:
        """Names of the trained tensors of two or more dimensions that are no bias: class token and positions too.

        Source: arXiv 2304.08014, the authors' code.
        """
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.ndim >= 2 and not name.endswith(".bias")
        ]

    def split_groups(self, optimizer: torch.optim.Optimizer, model: PreTrainedModel) -> None:
        """Divides a new optimizer's groups by learning rate, once.

        Those with weight decay are marked as `decayed`; where the trunk starts later than the heads, its own as `trunk`.

        Raises:
            ValueError: If a parameter is not the model's.
        """
        if all("decayed" in group for group in optimizer.param_groups):
            return
        names = set(self.decayed_parameters(model))
        decayed = {id(parameter) for name, parameter in model.named_parameters() if name in names}
        starts_later = bool(self.args.freeze_trunk_steps or self.args.trunk_warmup_steps)
        kinds = {
            id(p): (self.lr_multiplier(name, model), not (starts_later and name_in_trunk(name, model) is not None))
            for name, p in model.named_parameters()
        }
        if any(id(parameter) not in kinds for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError(
                "the optimizer holds parameters that are not the model's, which it would train in vain: make it of "
                "model.parameters() of the model that is given beside it"
            )
        groups = []
        for group in optimizer.param_groups:
            group["decayed"] = all(id(parameter) in decayed for parameter in group["params"])
            for kind in sorted({kinds[id(parameter)] for parameter in group["params"]}, reverse=True):
                chosen = [parameter for parameter in group["params"] if kinds[id(parameter)] == kind]
                multiplier, is_head = kind
                groups.append({**group, "params": chosen, "lr": group["lr"] * multiplier})
                if starts_later:
                    groups[-1]["trunk"] = not is_head
        optimizer.param_groups[:] = groups

    def make_scheduler(self, optimizer: torch.optim.Optimizer, num_training_steps: int) -> LambdaLR:
        """The learning rate's schedule: warm-up and cosine to `min_learning_rate`; of the trunk with its own rise before it."""
        warmup, peak = self.args.get_warmup_steps(num_training_steps), self.args.learning_rate
        if warmup >= num_training_steps:
            logger.warning(f"the warm-up of {warmup} steps is as long as the run: the learning rate only rises")
        elif warmup > num_training_steps / 2:
            share = f"{warmup / num_training_steps:.0%} of the run's {num_training_steps}"
            logger.warning(f"the warm-up of {warmup} steps is {share}; --warmup_steps 0.05 makes it 5 % of a run")
        if self.args.min_learning_rate is None:
            end = 0.01
        else:
            end = self.args.min_learning_rate / peak if peak else 0.0

        def of_heads(step: int) -> float:
            return self.lr_lambda(step, num_training_steps, warmup, end)

        def of_trunk(step: int) -> float:
            return of_heads(step) * self.trunk_ramp(step)

        return LambdaLR(optimizer, [of_trunk if group.get("trunk") else of_heads for group in optimizer.param_groups])

    def clip_gradients(self, model: nn.Module, accelerator: Accelerator, step: int) -> torch.Tensor:
        """Clips to `max_grad_norm`: all gradients together, or each tensor by itself; returns the norm before.

        Those of a frozen trunk count for nothing.
        """
        self.drop_frozen_gradients(accelerator.unwrap_model(model), step)
        if self.args.clip_mode == "global":
            norm = accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
            return full_tensor(cast(torch.Tensor, norm))
        accelerator.unscale_gradients()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return clip_each_tensor(gradients, self.args.max_grad_norm)


def clip_each_tensor(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Clips each gradient to `max_norm` by itself, in place, without waiting for the device.

    Returns the norm of all of them together, before, of shape `()`.

    Source: arXiv 2304.08014, the authors' code; epsilon 1e-6 in the quotient.
    """
    norms = gradient_norms(gradients)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(local_parts(gradients), list(factors.unbind()))
    return torch.linalg.vector_norm(norms)
