"""Maps of several strides out of a plain vision transformer, whose layers all have one."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


def layers_of_maps(num_layers: int) -> tuple[int, int, int, int]:
    """The four layers, from 0, that dense heads read: 2, 5, 8 and 11 of 12, as evenly spaced at other depths.

    The last layer is one of them; of trunks with fewer than 4 some come more than once.
    """
    first, second, third, last = (max(num_layers * part // 4, 1) - 1 for part in (1, 2, 3, 4))
    return first, second, third, last


class RescaleNeck(nn.Module):
    """Gives four maps of one stride the strides of a convolutional network: a quarter, a half, once and twice the patch size.

    Two transposed convolutions with BatchNorm and GELU between them, one, none, and max-pooling, as iBOT and the GTSA
    authors put before UPerNet and Mask R-CNN (`Feature2Pyramid` in mmsegmentation).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        up = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        down = nn.MaxPool2d(2, ceil_mode=True)
        self.scales = nn.ModuleList([up, nn.ConvTranspose2d(width, width, 2, stride=2), nn.Identity(), down])

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Four maps `(batch, width, rows, columns)`, from the shallowest layer to the deepest, at 4, 2, 1 and 1/2 times the size."""
        if len(maps) != len(self.scales):
            raise ValueError(f"maps must be {len(self.scales)}, got {len(maps)}; see layers_of_maps")
        return [scale(part) for scale, part in zip(self.scales, maps, strict=True)]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of maps `(batch, channels, rows, columns)`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises maps."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimplePyramid(nn.Module):
    """A feature pyramid out of the last map alone, whose width is a multiple of 4.

    Source: ViTDet (arXiv 2203.16527), section 3 and appendix A.2.
    """

    def __init__(self, width: int, out_channels: int = 256) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"width must be a multiple of 4, got {width}")
        self.out_channels = out_channels
        half, quarter = width // 2, width // 4
        up = nn.ConvTranspose2d
        scales: list[tuple[int, list[nn.Module]]] = [
            (quarter, [up(width, half, 2, stride=2), ChannelNorm(half), nn.GELU(), up(half, quarter, 2, stride=2)]),
            (half, [up(width, half, 2, stride=2)]),
            (width, []),
            (width, [nn.MaxPool2d(2, ceil_mode=True)]),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                *layers,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                ChannelNorm(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                ChannelNorm(out_channels),
            )
            for channels, layers in scales
        )

    def forward(self, last: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """The pyramid of the last layer's patch tokens `(batch, width, rows, columns)`, by the names that torchvision expects.

        Levels "0" to "3" have 4, 2, 1 and 1/2 times as many rows and columns (rounded up); "pool" has every second position
        of "3".
        """
        levels = OrderedDict((str(index), level(last)) for index, level in enumerate(self.levels))
        levels["pool"] = functional.max_pool2d(levels["3"], kernel_size=1, stride=2)
        return levels
