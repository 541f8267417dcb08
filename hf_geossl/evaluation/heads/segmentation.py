"""Segmentation heads over any encoder, and their loss."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.sample_reader import IGNORED


class SegmentationHead(nn.Module, ABC):
    """Turns an encoder's tokens into logits.

    Attributes:
        loss_weights (`tuple[float, ...]`): Of the cross-entropy of each map of logits that it gives.
    """

    loss_weights: tuple[float, ...] = (1.0,)

    @abstractmethod
    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Logits of normalised images.

        Args:
            encoder (`Encoder`): The trunk.
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Normalised images.

        Returns:
            `list[torch.Tensor]`: Logits `(batch, classes, any, any)`; the first are the prediction, others train only.
        """

    def predict(self, encoder: Encoder, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, classes, height, width)` of normalised images."""
        return upsample(self(encoder, pixel_values)[0], pixel_values.shape[-2:])

    def compute_loss(self, encoder: Encoder, pixel_values: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the cross-entropies of all maps of logits."""
        outputs = self(encoder, pixel_values)
        losses = [pixel_cross_entropy(logits, semantic) for logits in outputs]
        return torch.stack([weight * loss for weight, loss in zip(self.loss_weights, losses, strict=True)]).sum()


class LinearHead(SegmentationHead):
    """One linear map of each patch token after the final norm: Segmenter's linear decoder.

    Args:
        width (`int`): Channels of a token.
        num_classes (`int`): Classes.
        standardize (`bool`): Whether a BatchNorm comes first, as in linear probes of frozen features.

    Source: Segmenter (arXiv 2105.05633), section 3.2.
    """

    def __init__(self, width: int, num_classes: int, standardize: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width) if standardize else nn.Identity()
        self.classifier = nn.Conv2d(width, num_classes, 1)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """See `SegmentationHead`."""
        return [self.classify(encoder.tokens(pixel_values).patches)]

    def classify(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, classes, rows, columns)` of patch tokens `(batch, rows, columns, width)`."""
        return self.classifier(self.norm(patches.permute(0, 3, 1, 2)))


def upsample(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps at another size `(height, width)`: bilinear, float32, the corners' pixels as large as others."""
    return functional.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False)


def pixel_cross_entropy(logits: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the pixels that have a truth, 0 where none has.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes, any, any)`): They are resized to the truth's size first.
        semantic (`torch.Tensor` of shape `(batch, height, width)`): Classes, 255 where there is no truth.
    """
    semantic = semantic.long()
    logits = upsample(logits, semantic.shape[-2:])
    total = functional.cross_entropy(logits, semantic, ignore_index=IGNORED, reduction="sum")
    return total / (semantic != IGNORED).sum().clamp(min=1)
