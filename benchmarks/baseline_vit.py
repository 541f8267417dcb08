"""
A plain ViT and a plain optimizer step, as research code writes them: explicit softmax attention, loops over parameters.

Parameters have the names of ours, so that weights and gradients can be compared; nothing else is shared.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class PlainAttention(nn.Module):
    """Self-attention with the weights written out."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.scale = (config.hidden_size // self.heads) ** -0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        weights = (query @ key.transpose(-2, -1)) * self.scale
        weights = weights.softmax(dim=-1)
        return self.projection((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class PlainMLP(nn.Module):
    """Two linear layers."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = nn.GELU(approximate="tanh" if config.hidden_act == "gelu_pytorch_tanh" else "none")
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        return self.fc2(self.activation(self.fc1(x)))


class PlainLayer(nn.Module):
    """A pre-norm transformer layer with stochastic depth."""

    def __init__(self, config: Any, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = PlainAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = PlainMLP(config)
        self.drop_path = drop_path

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Drops the branch of some samples in training."""
        if self.drop_path == 0.0 or not self.training:
            return x
        kept = 1 - self.drop_path
        mask = kept + torch.rand((x.shape[0], 1, 1), dtype=x.dtype, device=x.device)
        return x.div(kept) * mask.floor_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, tokens, hidden_size)` to the same shape."""
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class PlainEmbeddings(nn.Module):
    """Patches, positions, and class and mask token where there are some."""

    def __init__(self, config: Any, mask_token: bool) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.side = config.image_height_width[0] // patch
        self.offset = getattr(config, "position_interpolation_offset", 0.0)
        self.mode = config.position_interpolation
        self.patch_embeddings = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_class_token else None
        self.mask_token = nn.Parameter(torch.zeros(1, width)) if mask_token else None
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.use_class_token + self.side**2, width))

    def positions(self, side: int) -> torch.Tensor:
        """The patches' positions `(1, side ** 2, hidden_size)` at another size."""
        patches = self.position_embeddings[:, -(self.side**2) :]
        if side == self.side:
            return patches
        grid = patches.reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        if self.offset:
            factor = (side + self.offset) / self.side
            grid = F.interpolate(grid, scale_factor=(factor, factor), mode=self.mode)
        else:
            grid = F.interpolate(grid, size=(side, side), mode=self.mode, antialias=self.mode == "bilinear")
        return grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)

    def forward(
        self, images: torch.Tensor, kept: torch.Tensor | None = None, masked: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Maps `(batch, channels, side, side)` to tokens; `kept` patches enter, `masked (batch, patches)` are hidden."""
        x = self.patch_embeddings(images)
        side = x.shape[-1]
        x = x.flatten(2).transpose(1, 2)
        if masked is not None and self.mask_token is not None:
            x = torch.where(masked[..., None], self.mask_token, x)
        x = x + self.positions(side)
        if kept is not None:
            x = x[:, kept]
        if self.cls_token is None:
            return x
        first = self.cls_token + self.position_embeddings[:, :1]
        return torch.cat([first.expand(len(x), -1, -1), x], dim=1)


class PlainViT(nn.Module):
    """The trunk: all tokens after the final norm."""

    def __init__(self, config: Any, drop_path_rate: float, mask_token: bool = False) -> None:
        super().__init__()
        self.embeddings = PlainEmbeddings(config, mask_token)
        self.encoder = nn.Module()
        rates = [drop_path_rate * i / max(config.num_hidden_layers - 1, 1) for i in range(config.num_hidden_layers)]
        self.encoder.layer = nn.ModuleList([PlainLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, images: torch.Tensor, kept: torch.Tensor | None = None, masked: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Maps `(batch, channels, side, side)` to `(batch, tokens, hidden_size)`."""
        x = self.embeddings(images, kept, masked)
        for layer in self.encoder.layer:
            x = layer(x)
        return self.layernorm(x)


@torch.no_grad()
def move_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """The moving average, a parameter at a time."""
    trained = dict(student.named_parameters())
    for name, parameter in teacher.named_parameters():
        parameter.data.mul_(momentum).add_((1 - momentum) * trained[name].detach().data)


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Clips the gradient of each tensor by its own norm."""
    for parameter in parameters:
        if parameter.grad is not None:
            factor = limit / (parameter.grad.data.norm(2) + 1e-6)
            if factor < 1:
                parameter.grad.data.mul_(factor)


@torch.no_grad()
def clip_all(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Clips the gradients of all tensors by their common norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.sqrt(torch.stack([(gradient**2).sum() for gradient in gradients]).sum())
    if norm >= limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)
