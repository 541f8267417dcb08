"""The UPerNet head of transformers, over four layers of the trunk."""

from collections.abc import Sequence

import torch
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.pyramid import RescaleNeck, layers_of_maps
from hf_geossl.evaluation.heads.segmentation import SegmentationHead


class UPerNetHead(SegmentationHead):
    """transformers' UPerNet over the maps of layers 2, 5, 8 and 11 of 12 before the final norm.

    A `RescaleNeck` gives them a quarter, a half, once and twice the stride of the patches.

    Args:
        encoder (`Encoder`): The trunk, for its width.
        num_classes (`int`): Classes.
        hidden_size (`int`): Channels of the decoder.
        pool_scales (`Sequence[int]`): Cells a side that the last map is pooled to.
        auxiliary_channels (`int`): Channels of the auxiliary head, on the third map.
        auxiliary_weight (`float`): Of its cross-entropy.

    Source: UPerNet (arXiv 1807.10221), section 3; neck and auxiliary head as in iBOT (arXiv 2111.07832), appendix.
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
        config = UperNetConfig(
            hidden_size=hidden_size,
            pool_scales=list(pool_scales),
            auxiliary_channels=auxiliary_channels,
        )
        config.num_labels = num_classes
        self.loss_weights = (1.0, auxiliary_weight)
        self.neck = RescaleNeck(encoder.width)
        self.decoder = UperNetHead(config, [encoder.width] * 4)
        self.auxiliary = UperNetFCNHead(config, [encoder.width] * 4)

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """See `SegmentationHead`."""
        maps = self.neck(encoder.maps(pixel_values, layers_of_maps(encoder.num_layers)))
        return [self.decoder(maps), self.auxiliary(maps)]
