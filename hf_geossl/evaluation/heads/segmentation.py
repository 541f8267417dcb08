"""Segmentation heads over any encoder, and their loss."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.reading.sample_reader import IGNORED
from hf_geossl.modeling.dense_heads import UPerNetDecoder, layers_of_maps, pixel_cross_entropy, upsample


class DenseHead(nn.Module, ABC):
    """A head that predicts a map and can be trained together with the trunk under it.

    Attributes:
        target (`str`): The map of samples that it learns.
        unknown (`int`): What that is where there is no truth.
    """

    target: ClassVar[str]
    unknown: ClassVar[int]

    @abstractmethod
    def predict(self, encoder: Encoder, pixel_values: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, channels, height, width)` of normalised images `(batch, 3, height, width)`."""

    @abstractmethod
    def compute_loss(self, encoder: Encoder, pixel_values: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The loss of normalised images and their maps of truth `(batch, height, width)`."""


class SegmentationHead(DenseHead):
    """Turns an encoder's tokens into logits.

    Attributes:
        loss_weights (`tuple[float, ...]`): Of the cross-entropy of each map of logits that it gives.
    """

    target, unknown = "semantic", IGNORED
    loss_weights: tuple[float, ...] = (1.0,)

    @abstractmethod
    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Logits `(batch, classes, any, any)` of normalised images; the first are the prediction, others train only."""

    def predict(self, encoder: Encoder, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, classes, height, width)` of normalised images."""
        return upsample(self(encoder, pixel_values)[0], pixel_values.shape[-2:])

    def compute_loss(self, encoder: Encoder, pixel_values: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the cross-entropies of all maps of logits."""
        losses = [pixel_cross_entropy(logits, truth, IGNORED) for logits in self(encoder, pixel_values)]
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


class SemanticFPNHead(SegmentationHead):
    """A top-down pyramid over the maps of layers 2, 5, 8 and 11 of 12 before the final norm, whose levels are summed.

    The four maps have one stride, that of the patches, as in the GTSA authors' configuration, which has no rescaling neck;
    still its head is configured for strides 4, 8, 16 and 32: levels are convolved 1, 1, 2 and 3 times, and enlarged by 2 each
    time (but the first), then reduced again. The arguments are those of `SemanticFPNSettings`.

    Source: Panoptic Feature Pyramid Networks (arXiv 1901.02446), section 3; GTSA (arXiv 2304.08014), section 4.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, *, pyramid_channels: int, head_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork([encoder.width] * 4, pyramid_channels)
        self.levels = nn.ModuleList()
        for level in range(4):
            layers: list[nn.Module] = []
            for step in range(max(1, level)):
                layers += [
                    nn.Conv2d(head_channels if step else pyramid_channels, head_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(head_channels),
                    nn.ReLU(),
                ]
                if level:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.levels.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(head_channels, num_classes, 1)

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """See `SegmentationHead`."""
        maps = encoder.maps(pixel_values, layers_of_maps(encoder.num_layers))
        pyramid = self.pyramid(OrderedDict((str(level), part) for level, part in enumerate(maps)))
        levels = [level(part) for level, part in zip(self.levels, pyramid.values(), strict=True)]
        total = levels[0] + sum(upsample(level, levels[0].shape[-2:]) for level in levels[1:])
        return [self.classifier(self.dropout(total))]


class UPerNetHead(SegmentationHead):
    """transformers' UPerNet over the maps of layers 2, 5, 8 and 11 of 12 before the final norm.

    See `UPerNetDecoder`; the arguments are those of `UPerNetSettings`.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        hidden_size: int,
        pool_scales: Sequence[int],
        auxiliary_channels: int,
        auxiliary_weight: float,
    ) -> None:
        super().__init__()
        self.loss_weights = (1.0, auxiliary_weight)
        self.decoder = UPerNetDecoder(encoder.width, num_classes, hidden_size, pool_scales, auxiliary_channels)

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """See `SegmentationHead`."""
        return self.decoder(encoder.maps(pixel_values, layers_of_maps(encoder.num_layers)))
