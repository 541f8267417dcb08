"""What EquiCoherent trains beside trunk and decoders: the split of the features, and the hosts' heads."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_equicoherent import EquiCoherentConfig
from .objectives import mean_over_processes


class SplitHead(nn.Linear):
    """A linear layer whose last channels are for the decoders (z_equi), the others for the host's head (z_inv).

    Args:
        in_features (`int`): Width of the tokens.
        patch_features (`int`): Channels in all (d_patch).
        equivariant_features (`int`): The last of them (d_equi).

    Source: arXiv 2503.18753; the split before the host's head, the same for every host.
    """

    def __init__(self, in_features: int, patch_features: int, equivariant_features: int) -> None:
        super().__init__(in_features, patch_features)
        self.invariant_features = patch_features - equivariant_features

    def forward(self, tokens: torch.Tensor, equivariant: bool = False) -> torch.Tensor:
        """Maps `(..., in_features)` to z_inv `(..., d_patch - d_equi)`, or to z_equi `(..., d_equi)`."""
        split = self.invariant_features
        rows = slice(split, None) if equivariant else slice(0, split)
        return F.linear(tokens, self.weight[rows], self.bias[rows])


class PrototypeLinear(nn.Linear):
    """Cosines with prototypes, each times its own learned scale, or plain where the last layer is normalised."""

    def __init__(self, in_features: int, out_features: int, normalized: bool) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = None if normalized else nn.Parameter(torch.ones(out_features, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `(..., in_features)` to `(..., out_features)`, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            weight = F.normalize(self.weight.float(), dim=1)
            return F.linear(features.float(), weight if self.scale is None else weight * self.scale.float())


class PrototypeHead(nn.Module):
    """The head of DINO, iBOT and DINOv2: an MLP, unit length, prototypes.

    Source: arXiv 2104.14294, as iBOT's and DINOv2's code has it for ViTs (no batch norm).
    """

    def __init__(self, in_features: int, num_outputs: int, config: EquiCoherentConfig) -> None:
        super().__init__()
        widths = [in_features, config.head_hidden_size, config.head_hidden_size, config.head_bottleneck_size]
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))
        self.prototypes = PrototypeLinear(widths[-1], num_outputs, bool(config.norm_last_layer))

    def bottleneck(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(..., in_features)` to unit vectors `(..., head_bottleneck_size)`, in float32."""
        first, second, third = self.linears
        return F.normalize(third(F.gelu(second(F.gelu(first(tokens))))).float(), dim=-1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(..., in_features)` to `(..., num_outputs)`, in float32."""
        return self.prototypes(self.bottleneck(tokens))


class GlobalBatchNorm(nn.Module):
    """Batch normalisation by the batch of all processes, always; it keeps no running statistics."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, features)` to the same shape, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            centered = features - mean_over_processes(features.mean(dim=0))
            variance = mean_over_processes(centered.square().mean(dim=0))
            return centered * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


class Projector(nn.Module):
    """The projector of VICReg and SimCLR: linear layers, batch norm and ReLU between them, the last without bias."""

    def __init__(self, in_features: int, sizes: list[int] | tuple[int, ...]) -> None:
        super().__init__()
        widths = [in_features, *sizes]
        last = len(sizes) - 1
        self.linears = nn.ModuleList(
            nn.Linear(before, after, bias=index < last)
            for index, (before, after) in enumerate(itertools.pairwise(widths))
        )
        self.norms = nn.ModuleList(GlobalBatchNorm(width) for width in sizes[:-1])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, in_features)` to `(batch, sizes[-1])`."""
        *hidden, last = self.linears
        for layer, norm in zip(hidden, self.norms, strict=True):
            projected = layer(features)
            features = F.relu(norm(projected)).to(projected.dtype)  # the norm gives float32
        return last(features)
