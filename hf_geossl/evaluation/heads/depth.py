"""Depth heads over any encoder, and their loss."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.segmentation import DenseHead, layers_of_maps, upsample
from hf_geossl.evaluation.precision import full_precision

MINIMUM = 1e-3  # metres; nearer pixels have no truth


def silog_loss(log_depth: torch.Tensor, depth: torch.Tensor, cap: float, mean_weight: float = 0.5) -> torch.Tensor:
    """Scale-invariant logarithmic error.

    With g = log prediction - log truth it is sqrt(mean(g^2) - mean_weight * mean(g)^2) over all pixels of the batch whose truth
    lies between 1 mm and the cap; 0 where there is none. A `mean_weight` of 1 forgives any common factor, 0 none.

    Args:
        log_depth (`torch.Tensor` of shape `(batch, height, width)`): Logarithm of the predicted metres.
        depth (`torch.Tensor` of shape `(batch, height, width)`): True metres, 0 where unknown.

    Source: Eigen et al., NIPS 2014, equation 4; its root as in Depth Anything V2 (arXiv 2406.09414).
    """
    known = (depth > MINIMUM) & (depth < cap)
    count = known.sum().clamp(min=1)
    error = torch.where(known, log_depth.float() - depth.clamp(min=MINIMUM).log(), 0.0)
    variance = error.square().sum() / count - mean_weight * (error.sum() / count).square()
    return variance.clamp(min=1e-12).sqrt()  # the root's slope is infinite at 0


class LinearDepthHead(nn.Module):
    """A BatchNorm and one linear map of each patch token to log metres, which starts at their mean, resized to the image."""

    def __init__(self, width: int, mean_log_depth: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, mean_log_depth)  # type: ignore[arg-type]

    def forward(self, patches: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Log metres `(batch, height, width)` of patch tokens `(batch, rows, columns, width)`."""
        return upsample(self.linear(self.norm(patches.permute(0, 3, 1, 2))), size)[:, 0]


class DPTHead(DenseHead):
    """transformers' DPT neck and head over layers 2, 5, 8 and 11 of 12, without the class token.

    A sigmoid in the place of the last ReLU gives the depth as a share of the cap, as in Depth Anything V2's metric models. The
    arguments are those of `DPTSettings`.

    Source: DPT (arXiv 2103.13413), section 3; Depth Anything V2 (arXiv 2406.09414).
    """

    target, unknown = "depth", 0

    def __init__(self, width: int, *, neck_hidden_sizes: Sequence[int], fusion_hidden_size: int, cap: float) -> None:
        super().__init__()
        config = DPTConfig(
            hidden_size=width,
            neck_hidden_sizes=list(neck_hidden_sizes),
            fusion_hidden_size=fusion_hidden_size,
            readout_type="ignore",
        )
        self.cap = cap
        self.neck = DPTNeck(config)
        self.head = DPTDepthEstimationHead(config)
        self.head.head[-1] = nn.Identity()

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> torch.Tensor:
        """Log metres `(batch, height, width)` of normalised images."""
        maps = encoder.maps(pixel_values, layers_of_maps(encoder.num_layers))
        rows, columns = maps[0].shape[-2:]
        tokens = [part.flatten(2).transpose(1, 2) for part in maps]
        tokens = [torch.cat([part[:, :1], part], dim=1) for part in tokens]  # the first is what DPT ignores
        features = self.neck(tokens, rows, columns)
        with full_precision(pixel_values.device):  # bfloat16 would round depths to a percent
            logits = self.head([part.float() for part in features])
        logits = upsample(logits[:, None], pixel_values.shape[-2:])[:, 0]
        return nn.functional.logsigmoid(logits) + math.log(self.cap)

    def predict(self, encoder: Encoder, pixel_values: torch.Tensor) -> torch.Tensor:
        """Log metres `(batch, 1, height, width)` of normalised images."""
        return self(encoder, pixel_values)[:, None]

    def compute_loss(self, encoder: Encoder, pixel_values: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The scale-invariant logarithmic error."""
        return silog_loss(self(encoder, pixel_values), truth, self.cap)
