"""Which patches of a view the student does not see: blocks, as iBOT and DINOv2 draw them."""

import math
import random

import numpy as np
import torch

from hf_geossl.views.crops import make_random

MASK_KINDS = ("ibot", "dinov2")
MASKED_SHARE = 0.5  # of the views
SMALLEST_RATIO, LARGEST_RATIO = 0.1, 0.5  # of the patches of a masked view
NARROWEST, WIDEST = 0.3, 1 / 0.3  # height / width of a block
BLOCK_ATTEMPTS = 10
DINOV2_SMALLEST_BLOCK = 4  # patches


def draw_block_masks(
    kind: str, num_images: int, rows: int, columns: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Masks of some views, `(num_images, rows * columns)`: bool, True where masked, in raster order, on the CPU.

    A view's mask is filled by rectangles of random area, aspect ratio and place until it holds what was asked for,
    never more, or until ten draws in a row do not fit. None reaches over the whole height or width, so a single row is
    never masked. One number is taken from the generator (torch's global CPU generator if absent), and the host waits
    for it.

    - "ibot": each view by itself stays unmasked with probability one half, or a share of its patches uniform in
      [0.1, 0.5] is asked for; blocks are no smaller than a third of the shorter side squared (less only at the end).
    - "dinov2": exactly half of all views (rounded down; `num_images` is two an image) are masked, chosen at random; of
      [0.1, 0.5] each gets a share from a slice of its own; blocks have four patches or more (less only at the end). Half
      of a view is their most, as no view is asked for more.

    Raises:
        ValueError: An unknown kind, a negative number of views, or a grid without patches.

    Source: BEiT (arXiv 2106.08254), algorithm 1, with the shares of iBOT (arXiv 2111.07832) and DINOv2
    (arXiv 2304.07193).
    """
    if kind not in MASK_KINDS:
        raise ValueError(f"kind must be 'ibot' or 'dinov2', got {kind!r}")
    if num_images < 0:
        raise ValueError(f"num_images must be 0 or more, got {num_images}")
    if rows < 1 or columns < 1:
        raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")
    device = generator.device if generator is not None else torch.device("cpu")
    rng = make_random(int(torch.randint(2**63 - 1, (), generator=generator, device=device).item()))
    patches = rows * columns
    if kind == "ibot":
        asked = _ibot_shares(rng, num_images)
        blocks = _Blocks(rng, rows, columns, smallest=(min(rows, columns) // 3) ** 2)
        masks = [blocks.fill(share * patches) for share in asked]
    else:
        asked = _dinov2_shares(rng, num_images)
        blocks = _Blocks(rng, rows, columns, smallest=DINOV2_SMALLEST_BLOCK)
        masks = [blocks.fill(int(share * patches)) for share in asked]
    length = (patches + 7) // 8
    packed = np.frombuffer(b"".join(mask.to_bytes(length, "little") for mask in masks), np.uint8)
    bits = np.unpackbits(packed.reshape(num_images, length), axis=1, count=patches, bitorder="little")
    return torch.from_numpy(bits.astype(bool))


def _ibot_shares(rng: random.Random, num_images: int) -> list[float]:
    return [
        SMALLEST_RATIO + rng.random() * (LARGEST_RATIO - SMALLEST_RATIO) if rng.random() >= 1 - MASKED_SHARE else 0.0
        for _ in range(num_images)
    ]


def _dinov2_shares(rng: random.Random, num_images: int) -> list[float]:
    masked = int(MASKED_SHARE * num_images)
    slice_width = (LARGEST_RATIO - SMALLEST_RATIO) / max(masked, 1)
    shares = [SMALLEST_RATIO + (i + rng.random()) * slice_width for i in range(masked)]
    shares += [0.0] * (num_images - masked)
    for i in range(num_images - 1, 0, -1):  # a shuffle that takes `random()` alone
        j = int(rng.random() * (i + 1))
        shares[i], shares[j] = shares[j], shares[i]
    return shares


class _Blocks:
    """Fills masks with rectangles. A mask is an integer with one bit a patch: uniting and counting take no loop."""

    def __init__(self, rng: random.Random, rows: int, columns: int, smallest: int) -> None:
        self.draw, self.rows, self.columns = rng.random, rows, columns
        self.smallest = smallest
        self.stacks = [sum(1 << (row * columns) for row in range(height)) for height in range(rows + 1)]

    def fill(self, asked: float) -> int:
        """A mask of at most `asked` patches."""
        mask, remaining = 0, asked
        while remaining >= 1:
            grown = self._add_block(mask, remaining)
            if grown == mask:
                break
            mask, remaining = grown, asked - grown.bit_count()
        return mask

    def _add_block(self, mask: int, limit: float) -> int:
        """`mask` and a rectangle with 1 to `limit` new patches; `mask` itself if none of the draws fits."""
        draw, count = self.draw, mask.bit_count()
        log_narrowest, log_range = math.log(NARROWEST), math.log(WIDEST / NARROWEST)
        for _ in range(BLOCK_ATTEMPTS):
            area = self.smallest + draw() * (limit - self.smallest)
            ratio = math.exp(log_narrowest + draw() * log_range)
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < height < self.rows and 0 < width < self.columns:
                top = int(draw() * (self.rows - height + 1))
                left = int(draw() * (self.columns - width + 1))
                block = ((1 << width) - 1) * self.stacks[height] << (top * self.columns + left)
                united = mask | block
                if 0 < united.bit_count() - count <= limit:
                    return united
        return mask
