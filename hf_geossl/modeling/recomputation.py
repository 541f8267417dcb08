"""Steps of a layer whose backward pass computes again what costs little time and much memory to keep."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .linear import Linear, gradients_of_linear, product

GELU_APPROXIMATIONS = {"gelu": "none", "gelu_pytorch_tanh": "tanh"}


def is_plain(*modules: nn.Module) -> bool:
    """Whether these are linear layers and layer norms that nobody hooks, has changed (as adapters do) or compiles."""
    return not torch.compiler.is_compiling() and all(
        type(module).forward in (Linear.forward, nn.Linear.forward, nn.LayerNorm.forward)
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        for module in modules
    )


class _GELULinear(torch.autograd.Function):
    """A linear layer of GELU's output, which is not kept: the input of GELU is, and GELU is cheap."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, approximate: str
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.approximate = approximate
        return product(F.gelu(hidden, approximate=approximate), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        activated = F.gelu(hidden, approximate=ctx.approximate)
        of_hidden, of_weight, of_bias = gradients_of_linear(ctx, gradients[0], activated, weight)
        if of_hidden is not None:
            of_hidden = torch.ops.aten.gelu_backward(of_hidden, hidden, approximate=ctx.approximate)
        return of_hidden, of_weight, of_bias, None


def gelu_linear(hidden: torch.Tensor, linear: nn.Linear, approximate: str) -> torch.Tensor:
    """`linear(gelu(hidden))`, with the same values and gradients as written so, for a quarter less of a layer's memory.

    Args:
        hidden (`torch.Tensor` of shape `(..., in_features)`): What goes into GELU.
        linear (`torch.nn.Linear`): The layer after it, see `is_plain`.
        approximate (`str`): As `torch.nn.functional.gelu`, `"none"` or `"tanh"`.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`.
    """
    return _GELULinear.apply(hidden, linear.weight, linear.bias, approximate)


class _NormLinear(torch.autograd.Function):
    """A linear layer of a layer norm's output, which is not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        normed = F.layer_norm(hidden, hidden.shape[-1:], norm_weight, norm_bias, eps)
        ctx.save_for_backward(hidden, weight, norm_weight, norm_bias)
        ctx.eps, ctx.dtype = eps, normed.dtype
        return product(normed, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, norm_weight, norm_bias = ctx.saved_tensors
        entered, scale, shift = (tensor.to(ctx.dtype) for tensor in (hidden, norm_weight, norm_bias))
        shape = list(hidden.shape[-1:])
        normed, mean, inverse_deviation = torch.native_layer_norm(entered, shape, scale, shift, ctx.eps)
        of_normed, of_weight, of_bias = gradients_of_linear(ctx, gradients[0], normed, weight)
        del normed
        wanted = [ctx.needs_input_grad[place] for place in (0, 3, 4)]
        of_hidden, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(
            of_normed, entered, shape, mean, inverse_deviation, scale, shift, wanted
        )
        return of_hidden.to(hidden.dtype), of_weight, of_bias, of_scale, of_shift, None


def norm_linear(hidden: torch.Tensor, norm: nn.Module | None, linear: nn.Linear) -> torch.Tensor:
    """`linear(norm(hidden))`, with the same values and gradients as written so; where both are plain and there is a gradient,
    the norm's output is not kept.

    Args:
        hidden (`torch.Tensor` of shape `(..., in_features)`): What goes into the norm.
        norm (`torch.nn.LayerNorm`, *optional*): With weight and bias; none where `hidden` is normed already.
        linear (`torch.nn.Linear`): The layer after it.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`.
    """
    if norm is None:
        return linear(hidden)
    if hidden.requires_grad and isinstance(norm, nn.LayerNorm) and is_plain(norm, linear):
        return _NormLinear.apply(hidden, linear.weight, linear.bias, norm.weight, norm.bias, norm.eps)
    return linear(norm(hidden))


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
    """Attention without a mask, for bfloat16 on a CPU: there PyTorch's own is slower, in the backward pass several times.

    Args:
        query (`torch.Tensor` of shape `(batch, heads, queries, head_dim)`): Queries.
        key, value (`torch.Tensor` of shape `(batch, heads, keys, head_dim)`): Keys and values.
        scaling (`float`): Factor of the scores before the softmax, which is in float32.

    Returns:
        `torch.Tensor` of shape `(batch, queries, heads, head_dim)`, contiguous.
    """
    return _ExplicitAttention.apply(query, key, value, scaling)
