"""The Semantic FPN head: a feature pyramid over four layers of the trunk."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.pyramid import layers_of_maps
from hf_geossl.evaluation.heads.segmentation import SegmentationHead, upsample


class SemanticFPNHead(SegmentationHead):
    """A top-down pyramid over the maps of layers 2, 5, 8 and 11 of 12 before the final norm, whose levels are summed.

    The four maps have one stride, that of the patches, as in the GTSA authors' configuration, which has no rescaling neck;
    still its head is configured for strides 4, 8, 16 and 32: levels are convolved 1, 1, 2 and 3 times, and enlarged by 2 each
    time (but the first), then reduced again.

    Args:
        encoder (`Encoder`): The trunk, for its width.
        num_classes (`int`): Classes.
        pyramid_channels (`int`): Channels of the pyramid.
        head_channels (`int`): Channels of the levels.
        dropout (`float`): Share of channels that are dropped before the last layer.

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
