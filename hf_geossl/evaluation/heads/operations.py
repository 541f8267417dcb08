"""How many multiplications and additions a head takes, counted without computing any."""

from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_geossl.evaluation.encoders import Tokens


class PatchGrid:
    """What heads need of an encoder to be counted: empty tokens of one image.

    Args:
        width (`int`): Of a token.
        side (`int`): Rows and columns of patches.
    """

    num_layers = 4

    def __init__(self, width: int, side: int) -> None:
        self.width, self.side = width, side

    def maps(self, pixel_values: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """A map `(1, width, side, side)` for each layer."""
        return [torch.empty(1, self.width, self.side, self.side) for _ in layers]

    def tokens(self, pixel_values: torch.Tensor) -> Tokens:
        """Patch tokens `(1, side, side, width)`."""
        return Tokens(torch.empty(1, self.side, self.side, self.width), None, torch.empty(1, self.width))


def count_operations(run: Callable[[], object]) -> float:
    """Multiplications and additions of the convolutions and matrix products in a function that makes its own modules and tensors.

    They have shapes and no numbers, and nothing is drawn from a generator.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
