"""Reconstruction of the images on the way of a transformation: a task that any method with two global views can carry."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .objectives import reconstruction_loss

STAGES = 4


class ReconstructionDecoder(nn.Module):
    """
    Tokens to an image: a linear layer, then four times (bilinear upsampling, 3 x 3 convolution), GELU between them.

    Source: arXiv 2503.18753, which says "a single linear layer followed by four convolutional layers"; widths and
    upsampling are ours.
    """

    def __init__(self, in_features: int, hidden_size: int, num_channels: int) -> None:
        super().__init__()
        widths = [max(1, hidden_size >> stage) for stage in range(STAGES)] + [num_channels]
        self.linear = nn.Linear(in_features, widths[0])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[stage], widths[stage + 1], 3, padding=1) for stage in range(STAGES)
        )

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        """Maps `(batch, rows * columns, in_features)` to `(batch, channels, height, width)` of the given `size`."""
        maps = self.linear(tokens).transpose(1, 2).unflatten(2, grid)
        for stage, convolution in enumerate(self.convolutions, start=1):
            if stage < STAGES:
                target = [min(side << stage, whole) for side, whole in zip(grid, size, strict=True)]
            else:
                target = list(size)
            maps = convolution(F.interpolate(maps, target, mode="bilinear", align_corners=False))
            if stage < STAGES:
                maps = F.gelu(maps)
        return maps


class ReconstructionTask(nn.Module):
    """
    The decoders of the intermediate images, one each, and their loss. Used in pretraining only.

    Args:
        features (`int`): Channels of each view's tokens that decoders see (d_equi).
        num_decoders (`int`): Images to reconstruct.
        hidden_size (`int`): Channels of a decoder's first stage (C0).
        num_channels (`int`): Channels of the images.
        in_features (`int`, *optional*): Where given, the tokens have this width and a linear layer of the task's own
            makes `features` channels of them.

    Source: arXiv 2503.18753.
    """

    def __init__(
        self, features: int, num_decoders: int, hidden_size: int, num_channels: int, in_features: int | None = None
    ) -> None:
        super().__init__()
        self.projection = nn.Identity() if in_features is None else nn.Linear(in_features, features)
        self.decoders = nn.ModuleList(
            ReconstructionDecoder(2 * features, hidden_size, num_channels) for _ in range(num_decoders)
        )

    def forward(
        self, first: torch.Tensor, second: torch.Tensor, targets: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            first, second (`torch.Tensor` of shape `(batch, patches, features)`): Patch tokens of the first global view,
                and of the second, which the transformation has been applied to.
            targets (`torch.Tensor` of shape `(batch, num_decoders, channels, height, width)`): Normalised images.
            grid (`(rows, columns)`): Patches of a view.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: the loss, `()`, and the reconstructions, of the targets' shape.

        Raises:
            ValueError: If there are other than `num_decoders` targets an image.
        """
        if targets.ndim != 5 or targets.shape[1] != len(self.decoders) or len(targets) != len(first):
            raise ValueError(
                f"there must be {len(self.decoders)} images to reconstruct for each of {len(first)} images, "
                f"(batch, K, channels, height, width), got {tuple(targets.shape)}; give num_intermediate to the views too"
            )
        pairs = torch.cat([self.projection(first), self.projection(second)], dim=-1)  # (B, N, 2 * features)
        size = (targets.shape[-2], targets.shape[-1])
        reconstructions = torch.stack([decoder(pairs, grid, size) for decoder in self.decoders], dim=1)
        with torch.autocast(targets.device.type, enabled=False):
            return reconstruction_loss(reconstructions, targets), reconstructions


def intermediate_targets(intermediate_pixel_values: Any, final: torch.Tensor, config: Any) -> torch.Tensor:
    """
    The images that are reconstructed.

    Args:
        intermediate_pixel_values (`torch.Tensor` of shape `(batch, K, channels, height, width)`, or None where K = 0):
            The images between the two states of the transformation.
        final (`torch.Tensor` of shape `(batch, channels, height, width)`): The last state, the second global view.
        config: Says by `num_intermediate` and `reconstruct_final` which are wanted.

    Returns:
        `torch.Tensor` of shape `(batch, num_intermediate [+ 1], channels, height, width)`.

    Raises:
        ValueError: If the intermediate images are missing, or are not as many or as large as expected.
    """
    if intermediate_pixel_values is None:
        if config.num_intermediate:
            raise ValueError(
                f"intermediate_pixel_values must hold {config.num_intermediate} images an image, got None; take them from "
                "the views with the same transformation, or set reconstruction_weight=0"
            )
        intermediate_pixel_values = final[:, None][:, :0]
    expected = (len(final), config.num_intermediate, *final.shape[1:])
    if intermediate_pixel_values.shape != expected:
        raise ValueError(
            f"intermediate_pixel_values must have shape {expected}, (batch, num_intermediate, channels, height, width) at "
            f"the size of the transformed view, got {tuple(intermediate_pixel_values.shape)}; give num_intermediate to the "
            "views too"
        )
    if config.reconstruct_final:
        return torch.cat([intermediate_pixel_values, final[:, None]], dim=1)
    return intermediate_pixel_values
