"""Steps of a layer whose backward pass computes again what costs little time and much memory to keep."""

from typing import Any

import torch
from torch.nn import functional as F

GELU_APPROXIMATIONS = {"gelu": "none", "gelu_pytorch_tanh": "tanh"}


class _GELULinear(torch.autograd.Function):
    """A linear layer of GELU's output, which is not kept: the input of GELU is, and GELU is cheap."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, approximate: str
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.approximate = approximate
        return F.linear(F.gelu(hidden, approximate=approximate), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        gradient = gradients[0]
        rows = gradient.flatten(0, -2)
        of_hidden = of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            activated = F.gelu(hidden, approximate=ctx.approximate).to(gradient.dtype)
            of_weight = (rows.T @ activated.flatten(0, -2)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(dim=0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            of_activated = (gradient @ weight.to(gradient.dtype)).to(hidden.dtype)
            of_hidden = torch.ops.aten.gelu_backward(of_activated, hidden, approximate=ctx.approximate)
        return of_hidden, of_weight, of_bias, None


def gelu_linear(hidden: torch.Tensor, linear: torch.nn.Linear, approximate: str) -> torch.Tensor:
    """
    `linear(gelu(hidden))`, with the same values and gradients as written so, for a quarter less of a layer's memory.

    Args:
        hidden (`torch.Tensor` of shape `(..., in_features)`): What goes into GELU.
        linear (`torch.nn.Linear`): The layer after it, plain and without hooks.
        approximate (`str`): As `torch.nn.functional.gelu`, `"none"` or `"tanh"`.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`.
    """
    return _GELULinear.apply(hidden, linear.weight, linear.bias, approximate)


class _ExplicitAttention(torch.autograd.Function):
    """Attention by matrix products, whose weights are computed again in the backward pass."""

    @staticmethod
    def weights(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
        """Softmax `(batch, heads, tokens, tokens)` in float32."""
        return torch.softmax((query * scaling) @ key.transpose(-1, -2), dim=-1, dtype=torch.float32)

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        weights = _ExplicitAttention.weights(query, key, scaling).to(value.dtype)
        return (weights @ value).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        gradient = gradients[0].transpose(1, 2)  # (B, tokens, heads, d) -> (B, heads, tokens, d)
        weights = _ExplicitAttention.weights(query, key, ctx.scaling)
        of_value = weights.to(value.dtype).transpose(-1, -2) @ gradient
        of_weights = (gradient @ value.transpose(-1, -2)).float()
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, torch.float32).to(query.dtype)
        return of_scores @ key * ctx.scaling, of_scores.transpose(-1, -2) @ query * ctx.scaling, of_value, None


def explicit_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """
    Attention without a mask, for bfloat16 on a CPU: there PyTorch's own is slower, in the backward pass several times.

    Args:
        query (`torch.Tensor` of shape `(batch, heads, queries, head_dim)`): Queries.
        key, value (`torch.Tensor` of shape `(batch, heads, keys, head_dim)`): Keys and values.
        scaling (`float`): Factor of the scores before the softmax, which is in float32.

    Returns:
        `torch.Tensor` of shape `(batch, queries, heads, head_dim)`, contiguous.
    """
    return _ExplicitAttention.apply(query, key, value, scaling)
