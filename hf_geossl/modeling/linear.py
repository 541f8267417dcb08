"""Linear layers, whose float32 products on a CPU oneDNN makes where PyTorch would take a slower library."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _python_dispatch

SMALLEST = 2**20  # multiplications; below, the call costs more than the product


def _has_wide_vectors() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(_python_dispatch, "_get_current_dispatch_mode")
    )


# PyTorch gives float32 products to MKL, which on AMD's CPUs leaves half of each AVX-512 register empty.
ONE_DNN = _has_wide_vectors()


def _suits_one_dnn(entered: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        ONE_DNN
        and entered.device.type == weight.device.type == "cpu"
        and entered.dtype == weight.dtype == torch.float32
        and entered.ndim > 1
        and entered.numel() * weight.shape[0] >= SMALLEST
        and {type(entered), type(weight)} <= {torch.Tensor, nn.Parameter}
        and not torch.is_autocast_enabled("cpu")
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and _python_dispatch._get_current_dispatch_mode()
        is None  # those that count or change operations know PyTorch's
    )


def product(entered: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` for where no gradient is recorded: oneDNN's product has none."""
    if _suits_one_dnn(entered, weight) and not torch.is_grad_enabled():
        return torch.ops.mkldnn._linear_pointwise(entered, weight, bias, "none", [], "")
    return F.linear(entered, weight, bias)


def gradients_of_linear(
    ctx: Any, gradient: torch.Tensor, entered: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Of what entered a linear layer, of its weight and of its bias, which are the first three inputs of a function."""
    rows = gradient.flatten(0, -2)
    of_entered = of_weight = of_bias = None
    if ctx.needs_input_grad[0]:
        of_entered = product(gradient, weight.to(gradient.dtype).T).to(entered.dtype)
    if ctx.needs_input_grad[1]:
        entered_rows = entered.to(gradient.dtype).flatten(0, -2)
        if rows.shape[1] < entered_rows.shape[1]:  # oneDNN copies its first argument: let it be the smaller one
            of_weight = product(rows.T, entered_rows.T).to(weight.dtype)
        else:
            of_weight = product(entered_rows.T, rows.T).T.to(weight.dtype)
    if ctx.needs_input_grad[2]:
        of_bias = rows.sum(dim=0).to(weight.dtype)
    return of_entered, of_weight, of_bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entered: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(entered, weight)
        return product(entered, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients_of_linear(ctx, gradients[0], *ctx.saved_tensors)


def linear(entered: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, with the same values and gradients to float32's rounding.

    Args:
        entered (`torch.Tensor` of shape `(..., in_features)`): What enters the layer.
        weight (`torch.Tensor` of shape `(out_features, in_features)`): Weight.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): Bias.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`.
    """
    if torch.is_grad_enabled() and _suits_one_dnn(entered, weight):
        return _Linear.apply(entered, weight, bias)
    return product(entered, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps `(..., in_features)` to `(..., out_features)`."""
        return linear(input, self.weight, self.bias)
