"""An encoder whose tokens are the pixels of their patches: what a protocol makes of features that are known exactly."""

from types import SimpleNamespace

import torch
from torch import nn

from hf_geossl.evaluation.encoders import Encoder


class Pixels(nn.Module):
    """Looks like timm's VisionTransformer to an `Encoder`; its only weights are a square matrix, the identity."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.embed_dim = 3 * patch_size**2
        self.patch_embed = SimpleNamespace(patch_size=(patch_size, patch_size))
        self.blocks = nn.ModuleList([nn.Identity()])
        self.matrix = nn.Parameter(torch.eye(self.embed_dim))

    def init_weights(self) -> None:
        """Nothing remains of the pixels: every token is a constant."""
        nn.init.zeros_(self.matrix)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        side = self.patch_embed.patch_size[0]
        patches = nn.functional.unfold(images, side, stride=side).transpose(1, 2)  # (B, N, 3 * side * side)
        return self.blocks[0](patches @ self.matrix)


def pixel_encoder(patch_size: int, image_size: int = 64) -> Encoder:
    """Without normalisation: grey is 0."""
    module = Pixels(patch_size).eval().requires_grad_(False)
    return Encoder(module, "pixels", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), image_size)
